"""A change applied to a worker that relays: what it does to new flows, and to those there are."""

from __future__ import annotations

import pickle
from dataclasses import replace
from socket import socket as Socket
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.address import Address, Transport
from proxy.core.expiry import FlowLimits
from proxy.core.flow import CloseReason
from proxy.core.pace import Pace
from proxy.engine.marks import Marks
from proxy.engine.specs import (
    EVERYTHING,
    Change,
    DrainOrder,
    DrainTarget,
    ListenerSpec,
    OpenListener,
    SourceSpec,
    UpstreamSpec,
    cookie_of,
)
from tests.engine.lab import (
    Lab,
    accept,
    change,
    connect,
    datagram_socket,
    is_refused,
    is_reset,
    listening,
    opened,
    pair,
    receive_exactly,
    relaying,
    send_all,
    upstream_spec,
)
from tests.engine.test_datagram import client_of, exchange

UDP = Transport.UDP
NOW = Pace(timeout=0.0, rate=1000.0, spread=10.0)
NEVER = Pace(timeout=3600.0, rate=1000.0, spread=10.0)


def spec(upstream: str = "lab", transport: Transport = Transport.TCP, **parts: Any) -> ListenerSpec:
    whole = {"name": "lab", "limits": FlowLimits(), **parts}
    return ListenerSpec(transport=transport, upstream=upstream, **whole)


def bound(transport: Transport = Transport.TCP) -> Socket:
    return bind_socket(ListenAddress(transport, "127.0.0.1", 0))


def upstreams(endpoint: Address, *more: Address) -> UpstreamSpec:
    return upstream_spec("lab", [endpoint, *more])


def connected_at_once(address: Address) -> SocketType:
    """A client that has connected before the worker had a turn to accept it."""
    socket = Socket()
    socket.connect(address)
    opened.append(trio.socket.from_stdlib_socket(socket))
    return opened[-1]


async def counters_of(lab: Lab, name: str = "lab") -> Any:
    rows = (await lab.counters())["listeners"]
    return next((row for row in rows if row["listener"] == name), None)


async def test_a_change_can_cross_a_process() -> None:
    source = SourceSpec(("192.0.2.1",), range(1000, 2000))
    upstream = replace(upstream_spec("lab", [("10.0.0.1", 80)]), source=source, marks=Marks(mark=7))
    sent = change(upstream, changed=(spec(),), closed=("old",), table_limit=1, recent=2)
    received = pickle.loads(pickle.dumps(sent))
    assert isinstance(received, Change)
    assert received.upstreams == sent.upstreams
    assert received.changed[0].limits.stream_look == sent.changed[0].limits.stream_look
    order = DrainOrder(EVERYTHING, NOW)
    assert pickle.loads(pickle.dumps(order)) == order


async def test_all_duplicates_of_a_socket_have_its_cookie() -> None:
    with bound() as one, one.dup() as same, bound() as other:
        assert cookie_of(one) == cookie_of(same) != cookie_of(other)


async def test_other_clocks_reach_live_streams() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, _ = await pair(lab, endpoint)
        await lab.wait_live("established")
        changed = spec(limits=FlowLimits(idle=0.1))
        await lab.worker.apply(change(upstreams(endpoint.getsockname()), changed=(changed,)))
        assert (await lab.live())[0]["limits"]["idle"] == 0.1
        assert await is_reset(client)
        assert (await lab.wait_ended())[0]["close_reason"] == "idle_timeout"


async def test_other_clocks_reach_live_datagram_flows_of_a_former_socket_too() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        await exchange(client, endpoint, b"hello")
        changed = spec(transport=UDP, limits=FlowLimits(idle=0.1, unreplied=0.1))
        new = OpenListener(changed, (bound(UDP),))
        await lab.worker.apply(change(upstreams(endpoint.getsockname()), opened=(new,)))
        assert (await lab.wait_ended())[0]["close_reason"] == "idle_timeout"


async def test_a_closed_stream_listener_accepts_who_has_connected_and_no_more() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        clients = [connected_at_once(lab.address) for _ in range(40)]
        await lab.worker.apply(change(closed=("lab",), pace=NEVER))
        with pytest.raises(ConnectionRefusedError):
            await connect(lab.address)
        for client in clients:
            await send_all(client, b"hello")
        for _ in clients:
            accepted = await accept(endpoint)
            assert await receive_exactly(accepted, 5) == b"hello"
        assert (await lab.worker.status())["listening"] == []


async def test_a_closed_datagram_listener_serves_its_flows_and_goes_with_the_last() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client, stranger = await client_of(lab), await client_of(lab)
        await exchange(client, endpoint, b"hello")
        listener = lab.listener
        await lab.worker.apply(change(closed=("lab",), pace=NEVER))
        await stranger.send(b"me too")
        await exchange(client, endpoint, b"still here")
        assert (await counters_of(lab))["refused"]["draining"] == 1
        assert listener.is_open
        (flow,) = lab.worker._relay.table
        assert lab.worker._relay.is_own(lab.address)
        lab.worker._end([flow], CloseReason.KILLED)
        assert not listener.is_open
        assert listener.socket.fileno() == -1
        assert not lab.worker._relay.is_own(lab.address)
        assert await counters_of(lab) is None


async def test_a_socket_that_comes_again_goes_on_with_its_flows_under_another_name() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client, stranger = await client_of(lab), await client_of(lab)
        await exchange(client, endpoint, b"hello")
        listener = lab.listener
        new = OpenListener(spec(name="new", transport=UDP), (listener.socket,))
        upstream = upstreams(endpoint.getsockname())
        await lab.worker.apply(change(upstream, opened=(new,), closed=("lab",), pace=NEVER))
        assert lab.listener is listener
        await exchange(client, endpoint, b"the same flow")
        await exchange(stranger, endpoint, b"a new one")
        assert [row["listener"] for row in await lab.live()] == ["lab", "new"]


async def test_counters_go_on_where_they_were() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        client.close()
        accepted.close()
        await lab.wait_ended()
        await lab.worker.apply(change(closed=("lab",)))
        assert await counters_of(lab) is None
        new = OpenListener(spec(), (socket := bound(),))
        await lab.worker.apply(change(upstreams(endpoint.getsockname()), opened=(new,)))
        await connect(socket.getsockname())
        await accept(endpoint)
        assert (await counters_of(lab))["opened"] == 2


async def test_a_former_endpoint_gets_no_new_flows_and_keeps_its_own() -> None:
    one, two = listening(), listening()
    async with relaying([one.getsockname()]) as lab:
        client, accepted = await pair(lab, one)
        upstream = replace(
            upstreams(two.getsockname()),
            endpoints=(upstreams(two.getsockname()).endpoints[0]._replace(name="other"),),
        )
        await lab.worker.apply(change(upstream))
        await connect(lab.address)
        await accept(two)
        await send_all(client, b"still here")
        assert await receive_exactly(accepted, 10) == b"still here"
        rows = {row["endpoint"]: row for row in (await lab.counters())["endpoints"]}
        assert (rows["e0"]["flows"], rows["e0"]["draining"]) == (1, True)
        assert not rows["other"]["draining"]
        client.close()
        accepted.close()
        await lab.wait_counter(lambda c: "e0" not in {r["endpoint"] for r in c["endpoints"]}, 1)


async def test_the_table_takes_other_bounds() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        await pair(lab, endpoint)
        await pair(lab, endpoint)
        await lab.worker.apply(change(upstreams(endpoint.getsockname()), table_limit=1, recent=5))
        assert await is_refused(lab.address)
        assert len(await lab.live()) == 2
        assert lab.worker._relay.table.recent.maxlen == 5


async def test_a_drain_ends_early_when_nothing_is_left() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await lab.wait_live("established")
        assert await lab.worker.drain(DrainOrder(EVERYTHING, NEVER))
        with pytest.raises(ConnectionRefusedError):
            await connect(lab.address)
        client.close()
        accepted.close()
        await lab.worker.wait_drained()
        assert (await lab.ended())[0]["close_reason"] == "finished"


async def test_a_drained_endpoint_ends_a_flow_that_connects_late() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client = await connect(lab.address)
        await lab.wait_live("established")
        target = DrainTarget(upstream="lab", endpoint="e0")
        assert await lab.worker.drain(DrainOrder(target, NOW))
        assert await is_reset(client)
        (row,) = (await lab.worker.status())["drains"]
        assert (row["flows"], row["ended"]) == (0, 1)
        assert await is_refused(lab.address)
        (problem,) = (await lab.worker.status())["not_ready"]
        assert "every endpoint drains" in problem
        await lab.worker.apply(change(upstreams(endpoint.getsockname())))
        assert (await lab.worker.status())["drains"] == []
        await connect(lab.address)
        await lab.wait_live("established")


@pytest.mark.parametrize(
    "target", [DrainTarget(listener="x"), DrainTarget(upstream="lab", endpoint="x")]
)
async def test_what_there_is_not_cannot_drain(target: DrainTarget) -> None:
    async with relaying([("127.0.0.1", 9)]) as lab:
        assert not await lab.worker.drain(DrainOrder(target, NOW))


async def test_a_listener_wanted_again_no_longer_drains() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        await exchange(client, endpoint, b"hello")
        socket = lab.listener.socket
        await lab.worker.drain(DrainOrder(DrainTarget(listener="lab"), NEVER))
        assert "drained" in (await lab.worker.status())["not_ready"][0]
        new = OpenListener(spec(transport=UDP), (socket,))
        await lab.worker.apply(change(upstreams(endpoint.getsockname()), opened=(new,)))
        assert (await lab.worker.status())["not_ready"] == []
        stranger = await client_of(lab)
        await exchange(stranger, endpoint, b"hello")
        await exchange(client, endpoint, b"on and on")


async def test_changes_leave_nothing_behind() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        upstream = upstreams(endpoint.getsockname())
        relay = lab.worker._relay
        while relay.pump.rounds == 0:  # it has not begun
            await trio.lowlevel.checkpoint()
        served = len(relay.pump._handlers)
        for _ in range(500):
            new = OpenListener(spec(name="more"), (bound(),))
            await lab.worker.apply(change(upstream, opened=(new,)))
            await lab.worker.apply(change(upstream, closed=("more",)))
            await trio.lowlevel.checkpoint()
        assert len(relay.pump._handlers) == served
        assert len(relay._own) == 1
        assert len(relay.wheel) == 0
        assert lab.worker._roster._retired == []
        while (await lab.worker.status())["drains"]:
            await trio.sleep(0.01)


async def test_names_that_change_places_keep_their_own_clocks() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        upstream, other = upstreams(endpoint.getsockname()), bound(UDP)
        first = OpenListener(spec(name="other", transport=UDP), (other,))
        await lab.worker.apply(change(upstream, opened=(first,)))
        client = await client_of(lab)
        await exchange(client, endpoint, b"hello")
        socket, clocks = lab.listener.socket, FlowLimits(idle=1000.0)
        swapped = (
            OpenListener(spec(transport=UDP, limits=clocks), (other,)),
            OpenListener(spec(name="other", transport=UDP), (socket,)),
        )
        await lab.worker.apply(change(upstream, opened=swapped))
        stranger = await client_of(lab)
        await exchange(stranger, endpoint, b"hello")
        (row,) = [row for row in await lab.live() if row["listener"] == "other"]
        assert row["limits"]["idle"] == FlowLimits().idle
