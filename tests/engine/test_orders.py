"""Orders on flows that live and on new ones; with real sockets on loopback.

That a flow is slow is shown by what has arrived: never more than the order lets through. That it is
free again is shown by an amount that the order would not let through while the test has patience.
"""

from __future__ import annotations

import os
from ipaddress import ip_network
from math import inf
from time import monotonic
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.ceiling import shaping_rate
from proxy.core.expiry import FlowLimits
from proxy.core.live_limit import LimitValues, LiveLimit
from proxy.core.query import FlowQuery
from proxy.engine.stream import StreamFlow
from proxy.engine.throttle import ShareMeter
from tests.engine.lab import (
    Lab,
    connect,
    datagram_socket,
    is_refused,
    is_reset,
    listening,
    pair,
    receive_exactly,
    relaying,
    reset,
    send_all,
)
from tests.engine.test_admission import become
from tests.engine.test_throttle import QUICK, Sink, both, pour

SLOW = 64 * 1024
MUCH = 4 << 20
"""Bytes; a minute's work for the slow one."""

LAB = FlowQuery(listener="lab")


def order(number: int = 1, query: FlowQuery = LAB, **values: Any) -> LiveLimit:
    return LiveLimit(number=number, query=query, values=LimitValues(**values), by="test", since=0.0)


async def arrives(sinks: list[Sink], least: int) -> int:
    """Wait until so much has arrived since now, of all together."""
    before = sum(sink.bytes for sink in sinks)
    while sum(sink.bytes for sink in sinks) - before < least:
        await trio.sleep(0.002)
    return sum(sink.bytes for sink in sinks)


async def matched(lab: Lab) -> dict[int, int]:
    return {row["number"]: row["flows"] for row in await lab.worker.order_counts()}


async def stays_below(sinks: list[Sink], rate: float, burst: float, least: int) -> None:
    """What arrives from now on is never more than a ceiling lets through."""
    before, began = sum(sink.bytes for sink in sinks), monotonic()
    while (moved := sum(sink.bytes for sink in sinks) - before) < least:
        assert moved <= burst + rate * (monotonic() - began)
        await trio.sleep(0.002)


async def settled(sinks: list[Sink]) -> None:
    """Wait until what was under way when an order came has arrived."""
    seen = -1
    while (now := sum(sink.bytes for sink in sinks)) - seen > 2 * SLOW:
        seen = now
        await trio.sleep(0.1)


@pytest.mark.parametrize("parts", [{}, {"bandwidth": both(listener=1e9)}, {"dry": True}])
async def test_a_live_flow_becomes_slow_and_free_again(parts: dict[str, Any]) -> None:
    if parts.pop("dry", False):
        parts = {"bandwidth": both(flow=QUICK), "admission": AdmissionLimits(dry_run=True)}
    endpoint = listening()
    async with relaying([endpoint.getsockname()], **parts) as lab, trio.open_nursery() as nursery:
        client, accepted = await pair(lab, endpoint)
        sinks = [Sink(accepted), Sink(client)]
        for sink, source in zip(sinks, (client, accepted), strict=True):
            nursery.start_soon(sink.run)
            nursery.start_soon(pour, source)
        await arrives(sinks, MUCH)
        await lab.worker.limit([order(flow_bandwidth=float(SLOW))])
        assert await matched(lab) == {1: 1}
        (row,) = await lab.live()
        assert row["limits"]["bandwidth_original"] == SLOW
        await settled(sinks)
        burst = shaping_rate(SLOW).burst
        await stays_below(sinks, 2 * SLOW, 2 * (burst + shaping_rate(SLOW).burst), 4096)
        await lab.worker.limit([])
        await arrives(sinks, MUCH)
        assert await matched(lab) == {}
        (row,) = await lab.live()
        assert row["limits"].get("bandwidth_original") != SLOW
        nursery.cancel_scope.cancel()


async def test_bandwidth_is_of_all_flows_of_an_order_together() -> None:
    endpoint = listening()
    query = FlowQuery(client=ip_network("127.0.0.1/32"))
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:
        await lab.worker.limit([order(query=query, bandwidth=float(QUICK))])
        sinks = []
        began = monotonic()
        for _ in range(4):
            client, accepted = await pair(lab, endpoint)
            sinks.append(Sink(accepted))
            nursery.start_soon(sinks[-1].run)
            nursery.start_soon(pour, client)
        assert await matched(lab) == {1: 4}
        while (moved := sum(sink.bytes for sink in sinks)) < 1 << 20:
            assert moved <= shaping_rate(QUICK).burst + QUICK * (monotonic() - began)
            await trio.sleep(0.002)
        assert min(sink.bytes for sink in sinks) > 0
        nursery.cancel_scope.cancel()


async def test_an_order_and_the_listener_are_both_kept_to() -> None:
    """Two that wait in both lines move on, and what one of them has is never more than its own."""
    endpoint = listening()
    async with (
        relaying([endpoint.getsockname()], bandwidth=both(listener=QUICK)) as lab,
        trio.open_nursery() as nursery,
    ):
        first = FlowQuery(client=ip_network("127.0.0.0/8"))
        await lab.worker.limit(
            [order(1, first, bandwidth=QUICK / 2), order(2, bandwidth=QUICK / 1.5)]
        )
        sinks = []
        began = monotonic()
        for _ in range(3):
            client, accepted = await pair(lab, endpoint)
            sinks.append(Sink(accepted))
            nursery.start_soon(sinks[-1].run)
            nursery.start_soon(pour, client)
        while (moved := sum(sink.bytes for sink in sinks)) < 1 << 20:
            assert moved <= shaping_rate(QUICK / 2).burst + QUICK / 2 * (monotonic() - began)
            await trio.sleep(0.002)
        assert min(sink.bytes for sink in sinks) > 0
        assert await matched(lab) == {1: 3, 2: 3}
        await lab.worker.limit([order(2, bandwidth=QUICK / 1.5)])
        assert await matched(lab) == {2: 3}
        await arrives(sinks, 1 << 20)
        await lab.worker.limit([])
        await arrives(sinks, 1 << 20)
        for flow in lab.worker._relay.table:
            assert isinstance(flow, StreamFlow)
            assert isinstance(flow.original.meter, ShareMeter)
            assert flow.original.meter.share.owner is flow.original
        nursery.cancel_scope.cancel()


async def test_every_byte_arrives_whatever_is_ordered_meanwhile() -> None:
    endpoint = listening()
    data = os.urandom(MUCH)
    async with relaying([endpoint.getsockname()], bandwidth=both(flow=MUCH * 4.0)) as lab:
        client, accepted = await pair(lab, endpoint)
        received = b""

        async def receive() -> None:
            nonlocal received
            received = await receive_exactly(accepted, len(data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send_all, client, data)
            number = 0
            while len(received) < len(data):
                number += 1
                await lab.worker.limit([order(number, bandwidth=MUCH * 3.0)])
                await trio.sleep(0.02)
                await lab.worker.limit(
                    [order(number, bandwidth=MUCH * 3.0), order(0, bytes=1 << 40)]
                )
                await trio.sleep(0.02)
                await lab.worker.limit([])
        assert received == data


async def test_no_more_flows_than_ordered_are_admitted() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, _ = await pair(lab, endpoint)
        query = FlowQuery(client=ip_network("127.0.0.1/32"))
        await lab.worker.limit([order(query=query, flows=2)])
        second, _ = await pair(lab, endpoint)
        assert await is_refused(lab.address)
        (row,) = (await lab.counters())["listeners"]
        assert row["refused"]["ordered_flows"] == row["hits"]["ordered_flows"] == 1
        other = await connect(lab.address, "127.0.0.2")
        reset(second)
        while (await matched(lab))[1] > 1:
            await trio.sleep(0.002)
        third, _ = await pair(lab, endpoint)
        for socket in (client, third, other):
            socket.close()


async def test_a_dry_run_of_the_file_does_not_touch_an_order() -> None:
    endpoint = listening()
    parts = {"limits": FlowLimits(bytes=4), "admission": AdmissionLimits(dry_run=True)}
    async with relaying([endpoint.getsockname()], **parts) as lab:
        await lab.worker.limit([order(flows=1, bytes=8)])
        client, accepted = await pair(lab, endpoint)
        assert await is_refused(lab.address)
        await send_all(client, b"12345")
        assert await receive_exactly(accepted, 5) == b"12345"
        await send_all(client, b"6789")
        assert await is_reset(client)
        (row,) = (await lab.counters())["listeners"]
        assert row["dry_run_hits"]["byte_budget"] == 1
        assert (row["hits"]["ordered_flows"], row["hits"]["ordered_bytes"]) == (1, 1)


async def test_a_live_flow_ends_when_it_has_moved_what_was_ordered() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"x" * 1000)
        await receive_exactly(accepted, 1000)
        (row,) = await lab.live()
        await lab.worker.limit([order(query=FlowQuery(id=row["id"]), bytes=1500)])
        await send_all(client, b"x" * 500)
        await receive_exactly(accepted, 500)
        await send_all(client, b"x")
        assert await is_reset(client)
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["original"]["bytes"]) == ("byte_budget", 1500)
        (counters,) = (await lab.counters())["listeners"]
        assert counters["hits"]["ordered_bytes"] == 1
        assert await matched(lab) == {1: 0}


async def test_an_order_for_an_endpoint_holds_once_it_is_known() -> None:
    endpoint = listening()
    address = endpoint.getsockname()
    async with relaying([address]) as lab:
        await lab.worker.limit(
            [
                order(1, FlowQuery(endpoint=address), bytes=10),
                order(2, FlowQuery(endpoint=("127.0.0.1", 9)), bytes=5),
            ]
        )
        client, accepted = await pair(lab, endpoint)
        await lab.wait_live("established")
        assert await matched(lab) == {1: 1, 2: 0}
        await send_all(client, b"0123456789+")
        assert await receive_exactly(accepted, 10) == b"0123456789"
        assert await is_reset(client)


async def test_a_reload_changes_nothing_about_an_order() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:
        client, accepted = await pair(lab, endpoint)
        await lab.worker.limit([order(flow_bandwidth=float(SLOW), bytes=1 << 40)])
        sinks = [Sink(accepted)]
        nursery.start_soon(sinks[0].run)
        nursery.start_soon(pour, client)
        for parts in ({"bandwidth": both(flow=QUICK)}, {"limits": FlowLimits(idle=77.0)}, {}):
            await become(lab, endpoint, **parts)
            (row,) = await lab.live()
            assert row["limits"]["bandwidth_original"] == SLOW
            assert row["limits"]["bytes"] == 1 << 40
            await stays_below(sinks, SLOW, 2 * shaping_rate(SLOW).burst, 8192)
        await lab.worker.limit([])
        (row,) = await lab.live()
        assert "bytes" not in row["limits"]
        assert not lab.worker._relay.orders.held
        await arrives(sinks, MUCH)
        nursery.cancel_scope.cancel()


async def talk(client: SocketType, endpoint: SocketType) -> None:
    """One datagram there and one back."""
    await client.send(b"hello")
    _, via = await endpoint.recvfrom(100)
    await endpoint.sendto(b"hello", via)
    assert await client.recv(100) == b"hello"


async def udp_client(lab: Lab) -> SocketType:
    client = datagram_socket()
    await client.connect(lab.address)
    return client


@pytest.mark.parametrize("values", [{"bandwidth": 1.0}, {"flow_bandwidth": 1.0}])
async def test_a_live_flow_of_datagrams_is_policed_and_free_again(
    values: dict[str, float],
) -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], Transport.UDP) as lab:
        client = await udp_client(lab)
        await talk(client, endpoint)
        trains = lab.listener.trains
        await lab.worker.limit([order(**values)])
        assert not lab.listener.trains
        assert await matched(lab) == {1: 1}
        for _ in range(20):  # one may pass: it leaves a debt of seconds
            await client.send(b"x" * 100)
        await lab.wait_counter(lambda read: read["listeners"][0]["dropped"]["limited"], 19)
        (row,) = (await lab.counters())["listeners"]
        assert row["hits"]["ordered_bandwidth"] == row["dropped"]["limited"]
        await lab.worker.limit([])
        assert lab.listener.trains == trains
        assert len(await endpoint.recv(200)) == 100
        await talk(client, endpoint)


async def test_a_new_flow_of_datagrams_is_under_the_orders_there_are() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], Transport.UDP) as lab:
        await lab.worker.limit([order(bytes=12), order(2, flows=1)])
        client, refused = await udp_client(lab), await udp_client(lab)
        await talk(client, endpoint)
        await refused.send(b"one too many")
        await lab.wait_counter(lambda read: read["listeners"][0]["refused"]["ordered_flows"], 1)
        await client.send(b"more than is left")
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["original"]["packets"]) == ("byte_budget", 2)
        assert await matched(lab) == {1: 0, 2: 0}
        assert inf > (await lab.counters())["listeners"][0]["hits"]["ordered_bytes"] == 1


async def test_a_reload_changes_nothing_about_an_order_for_datagrams() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], Transport.UDP) as lab:
        client = await udp_client(lab)
        await talk(client, endpoint)
        await lab.worker.limit([order(flow_bandwidth=float(SLOW), bytes=30)])
        for parts in (
            {"limits": FlowLimits(idle=77.0)},
            {"bandwidth": both(flow=QUICK)},
            {"limits": FlowLimits(bytes=1000)},
        ):
            await become(lab, endpoint, **parts)
            assert not lab.listener.trains
            (row,) = await lab.live()
            assert (row["limits"]["bandwidth_reply"], row["limits"]["bytes"]) == (SLOW, 30)
        await talk(client, endpoint)
        await client.send(b"more than is left")
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["original"]["packets"]) == ("byte_budget", 3)
        (at_work,) = lab.worker._relay.orders._orders.values()
        for policer in at_work._policers:
            assert [source.members for source in policer._sources._known.values()] == [0]


async def test_nothing_is_left_of_orders_when_their_flows_have_ended() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        await lab.worker.limit([order(bandwidth=1e9), order(2, flows=100, bytes=1 << 40)])
        for _ in range(5):
            client, accepted = await pair(lab, endpoint)
            await send_all(client, b"x")
            await receive_exactly(accepted, 1)
            client.close()
            accepted.close()
        await lab.wait_ended(5)
        assert await matched(lab) == {1: 0, 2: 0}
        assert not lab.worker._relay.orders.held
