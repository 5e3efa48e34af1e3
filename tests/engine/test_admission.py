"""Who is let in and who is not, with real sockets; what is refused, and what is counted of it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest
from trio.socket import SocketType

from proxy.core.access import AccessList
from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits, Gate
from proxy.core.expiry import FlowLimits
from proxy.core.query import FlowQuery
from proxy.core.rate import Rate
from proxy.engine.specs import DrainOrder, DrainTarget, ListenerSpec
from tests.engine.lab import (
    PACE,
    Lab,
    accept,
    change,
    connect,
    datagram_socket,
    is_refused,
    listening,
    pair,
    relaying,
    reset,
    upstream_spec,
)
from tests.engine.test_datagram import client_of, exchange

UDP = Transport.UDP
ONE, OTHER, THIRD = "127.0.0.1", "127.0.0.2", "127.0.0.3"

SELDOM = 1e-6
"""New flows a second, so few that no test sees the bucket fill."""


def access(*deny: str, allow: tuple[str, ...] = ()) -> AccessList:
    return AccessList(map(ip_network, allow), map(ip_network, deny))


def gate_of(lab: Lab) -> Gate:
    (counters,) = (each for each in lab.worker._roster.counters if each.listener == "lab")
    return counters.gate


async def counts(lab: Lab, what: str = "refused") -> dict[str, int]:
    """What has been counted, without the zeros."""
    (row,) = (row for row in (await lab.counters())["listeners"] if row["listener"] == "lab")
    counted: dict[str, int] = row[what]  # type: ignore[literal-required]
    return {word: count for word, count in counted.items() if count}


def spec(transport: Transport = Transport.TCP, **parts: Any) -> ListenerSpec:
    whole = {"name": "lab", "upstream": "lab", "limits": FlowLimits(), **parts}
    return ListenerSpec(transport=transport, **whole)


async def become(lab: Lab, endpoint: SocketType, **parts: Any) -> None:
    upstream = upstream_spec("lab", [endpoint.getsockname()])
    await lab.worker.apply(change(upstream, changed=(spec(lab.transport, **parts),)))


async def test_who_is_denied_is_reset_and_who_is_not_is_served() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], access=access(f"{OTHER}/32")) as lab:
        assert await is_refused(lab.address, OTHER)
        await connect(lab.address, ONE)
        await accept(endpoint)
        assert await counts(lab) == {"access": 1}


async def test_who_is_not_allowed_is_denied() -> None:
    endpoint = listening()
    only = access(allow=(f"{OTHER}/32",))
    async with relaying([endpoint.getsockname()], access=only) as lab:
        assert await is_refused(lab.address, ONE)
        await connect(lab.address, OTHER)
        await accept(endpoint)
        assert await counts(lab) == {"access": 1}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_datagram_of_who_is_denied_opens_no_flow(host: str) -> None:
    endpoint = datagram_socket(host)
    async with relaying([endpoint.getsockname()], UDP, host, access=access(f"{host}")) as lab:
        client = await client_of(lab, host)
        await client.send(b"hello")
        await lab.wait_counter(lambda read: read["listeners"][0]["refused"]["access"], 1)
        assert await lab.live() == []


async def test_a_reload_changes_who_is_let_in_for_those_who_come_then() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await become(lab, endpoint, access=access("127.0.0.0/8"))
        assert await is_refused(lab.address)
        await client.send(b"still here")
        assert await accepted.recv(100) == b"still here"


async def test_a_listener_has_so_many_flows_and_no_more() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=AdmissionLimits(flows=2)) as lab:
        first, _ = await pair(lab, endpoint)
        await pair(lab, endpoint)
        assert await is_refused(lab.address)
        reset(first)
        await lab.wait_counter(lambda _: 2 - gate_of(lab).flows, 1)
        await pair(lab, endpoint)
        assert await is_refused(lab.address)
        assert await counts(lab) == await counts(lab, "hits") == {"listener_flows": 2}


async def test_a_source_has_so_many_flows_and_no_more() -> None:
    endpoint = listening()
    limits = AdmissionLimits(source_flows=1)
    async with relaying([endpoint.getsockname()], admission=limits) as lab:
        for source in (ONE, OTHER):
            await connect(lab.address, source)
            await accept(endpoint)
            assert await is_refused(lab.address, source)
        assert await counts(lab) == {"source_flows": 2}


async def test_a_prefix_is_one_source() -> None:
    endpoint = listening()
    limits = AdmissionLimits(source_flows=1, prefix_v4=24)
    async with relaying([endpoint.getsockname()], admission=limits) as lab:
        await connect(lab.address, ONE)
        await accept(endpoint)
        assert await is_refused(lab.address, OTHER)
        await connect(lab.address, "127.0.1.1")
        await accept(endpoint)
        assert [row["source"] for row in await lab.live()] == ["127.0.0.0/24", "127.0.1.0/24"]


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (AdmissionLimits(flow_rate=Rate(SELDOM, 2)), "listener_rate"),
        (AdmissionLimits(source_rate=Rate(SELDOM, 2)), "source_rate"),
    ],
)
async def test_new_flows_come_at_a_rate_and_ended_ones_count(
    limits: AdmissionLimits, word: str
) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=limits) as lab:
        for _ in range(2):
            client, _ = await pair(lab, endpoint)
            reset(client)
        assert await is_refused(lab.address)
        assert await counts(lab) == await counts(lab, "hits") == {word: 1}


async def test_datagrams_of_a_source_open_so_many_flows() -> None:
    endpoint = datagram_socket()
    limits = AdmissionLimits(source_flows=1)
    async with relaying([endpoint.getsockname()], UDP, admission=limits) as lab:
        one, other = await client_of(lab), await client_of(lab)
        await exchange(one, endpoint, b"hello")
        await other.send(b"hello")
        await lab.wait_counter(lambda read: read["listeners"][0]["refused"]["source_flows"], 1)
        await exchange(one, endpoint, b"again")
        assert len(await lab.live()) == 1


async def test_a_dry_run_counts_every_limit_and_refuses_nobody() -> None:
    endpoint = listening()
    limits = AdmissionLimits(
        flows=1,
        source_flows=1,
        flow_rate=Rate(SELDOM, 1),
        source_rate=Rate(SELDOM, 1),
        dry_run=True,
    )
    async with relaying([endpoint.getsockname()], admission=limits) as lab:
        for _ in range(3):
            await pair(lab, endpoint)
        assert await counts(lab) == await counts(lab, "hits") == {}
        assert await counts(lab, "dry_run_hits") == dict.fromkeys(
            ("listener_flows", "listener_rate", "source_flows", "source_rate"), 2
        )


async def test_other_ceilings_hold_for_new_flows_and_leave_those_there_are() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        for _ in range(3):
            await pair(lab, endpoint)
        await become(lab, endpoint, admission=AdmissionLimits(source_flows=3))
        assert await is_refused(lab.address)
        await become(lab, endpoint, admission=AdmissionLimits(flows=3))
        assert await is_refused(lab.address)
        await become(lab, endpoint, admission=AdmissionLimits(source_flows=4))
        await pair(lab, endpoint)
        assert len(await lab.live()) == 4
        assert await counts(lab) == {"source_flows": 1, "listener_flows": 1}


async def test_another_prefix_counts_live_flows_anew() -> None:
    endpoint = listening()
    limits = AdmissionLimits(source_flows=1)
    async with relaying([endpoint.getsockname()], admission=limits) as lab:
        for source in (ONE, OTHER):
            await connect(lab.address, source)
            await accept(endpoint)
        await become(lab, endpoint, admission=AdmissionLimits(source_flows=3, prefix_v4=8))
        await connect(lab.address, THIRD)
        await accept(endpoint)
        assert await is_refused(lab.address, ONE)


def _ways(lab: Lab) -> dict[str, Callable[[SocketType, SocketType], Any]]:
    async def kill(*_: SocketType) -> None:
        await lab.worker.kill(FlowQuery())

    async def drain(*_: SocketType) -> None:
        pace = PACE._replace(timeout=0.0)
        await lab.worker.drain(DrainOrder(DrainTarget(upstream="lab", endpoint="e0"), pace))

    async def client_resets(client: SocketType, _: SocketType) -> None:
        reset(client)

    async def endpoint_resets(_: SocketType, accepted: SocketType) -> None:
        reset(accepted)

    async def both_close(client: SocketType, accepted: SocketType) -> None:
        client.close()
        accepted.close()

    return {
        "kill": kill,
        "drain": drain,
        "client": client_resets,
        "endpoint": endpoint_resets,
        "both": both_close,
    }


@pytest.mark.parametrize("way", ["kill", "drain", "client", "endpoint", "both"])
async def test_a_place_is_free_again_whichever_way_a_flow_ends(way: str) -> None:
    endpoint = listening()
    limits = AdmissionLimits(flows=10, source_flows=10)
    async with relaying([endpoint.getsockname()], admission=limits) as lab:
        ends = [await pair(lab, endpoint) for _ in range(3)]
        assert gate_of(lab).flows == 3
        for client, accepted in ends:
            await _ways(lab)[way](client, accepted)
        await lab.wait_ended(3)
        assert gate_of(lab).flows == 0
        assert len(gate_of(lab).sources) == 0


async def test_a_flow_that_cannot_be_connected_takes_no_place() -> None:
    limits = AdmissionLimits(flows=1, source_flows=1)
    async with relaying([("127.0.0.1", 1)], admission=limits) as lab:
        for _ in range(3):
            assert await is_refused(lab.address)
        assert await counts(lab) == {}
        assert gate_of(lab).flows == 0
