"""Datagram flows over their limits: what is dropped, what is counted, what still passes."""

from __future__ import annotations

from ipaddress import ip_network
from time import monotonic
from typing import Any

import pytest
import trio

from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.ceiling import ShapeRates
from proxy.core.expiry import FlowLimits
from proxy.core.lease import BUDGET_ROOM
from proxy.core.longest import LongestMatch
from proxy.core.rate import Rate
from proxy.engine.datagram_options import DatagramOptions
from proxy.engine.limited import Allowance, LimitedFlow
from proxy.engine.specs import UNRESTRICTED, BandwidthLimits
from tests.engine.lab import Lab, datagram_socket, listening, pair, relaying
from tests.engine.test_admission import become, counts
from tests.engine.test_datagram import client_of, exchange

UDP = Transport.UDP
SELDOM = 1e-3
"""Bytes, or datagrams, a second: so few that no test sees the bucket fill."""

DRY = AdmissionLimits(dry_run=True)


def bandwidth(name: str, burst: float, direction: str = "original") -> BandwidthLimits:
    rates = ShapeRates(**{name: Rate(SELDOM, burst)})
    return UNRESTRICTED._replace(**{direction: rates})


async def dropped(lab: Lab, count: int) -> None:
    await lab.wait_counter(lambda read: read["listeners"][0]["dropped"]["limited"], count)


@pytest.mark.parametrize("level", ["flow", "source", "listener"])
async def test_a_client_that_sends_too_much_loses_what_is_too_much(level: str) -> None:
    endpoint = datagram_socket()
    limits = bandwidth(level, 1000)
    async with relaying([endpoint.getsockname()], UDP, bandwidth=limits) as lab:
        client = await client_of(lab)
        await exchange(client, endpoint, b"x" * 600)
        await client.send(b"y" * 600)
        await dropped(lab, 1)
        row = await lab.wait_live("assured")
        assert row["original"] == {"bytes": 1200, "packets": 2}
        assert await counts(lab, "hits") == {f"{level}_bandwidth": 1}
        (books,) = (await lab.counters())["listeners"]
        assert books["original"]["received"] == 1200
        assert books["original"]["sent"] == 600
        assert books["original"]["packets_sent"] == 1


async def test_an_endpoint_that_answers_too_much_is_cut_off() -> None:
    endpoint = datagram_socket()
    limits = bandwidth("flow", 1000, "reply")
    async with relaying([endpoint.getsockname()], UDP, bandwidth=limits) as lab:
        client = await client_of(lab)
        outbound = await exchange(client, endpoint, b"x" * 600)
        await endpoint.sendto(b"y" * 600, outbound)
        await dropped(lab, 1)
        (books,) = (await lab.counters())["listeners"]
        assert (books["reply"]["received"], books["reply"]["sent"]) == (1200, 600)


async def test_a_datagram_rate_is_kept_by_each_client_for_itself() -> None:
    endpoint = datagram_socket()
    limits = FlowLimits(datagram_rate=2.0)
    async with relaying([endpoint.getsockname()], UDP, limits=limits) as lab:
        began = monotonic()
        one, other = await client_of(lab), await client_of(lab)
        for _ in range(20):
            await one.send(b"x")
        await exchange_unless_lost(other, endpoint)
        (books,) = (await lab.counters())["listeners"]
        most = 2 + 2 * (monotonic() - began)
        flow = await lab.wait_live("assured")
        assert flow["limits"]["datagram_rate"] == 2
        assert books["original"]["packets_sent"] - 1 <= most
        assert books["dropped"]["limited"] >= 20 - most
        assert books["hits"]["datagram_rate"] == books["dropped"]["limited"]


async def exchange_unless_lost(client: Any, endpoint: Any) -> None:
    """Send, and answer whatever came before that too."""
    await client.send(b"mine")
    while True:
        received, sender = await endpoint.recvfrom(100)
        if received == b"mine":
            await endpoint.sendto(b"yours", sender)
            assert await client.recv(100) == b"yours"
            return


async def test_answers_are_not_many_times_the_question_until_the_client_is_proven() -> None:
    endpoint = datagram_socket()
    limits = FlowLimits(amplification=10)
    async with relaying([endpoint.getsockname()], UDP, limits=limits) as lab:
        client = await client_of(lab)
        await client.send(b"x" * 100)
        _, outbound = await endpoint.recvfrom(1000)
        for size in (600, 600, 400):
            await endpoint.sendto(b"y" * size, outbound)
        assert [len(await client.recv(2000)) for _ in range(2)] == [600, 400]
        await dropped(lab, 1)
        assert await counts(lab, "hits") == {"amplification": 1}
        await client.send(b"it was me")
        await endpoint.recvfrom(1000)
        for _ in range(5):
            await endpoint.sendto(b"z" * 5000, outbound)
            assert len(await client.recv(9000)) == 5000


async def test_a_flow_ends_when_it_has_moved_all_it_may() -> None:
    endpoint = datagram_socket()
    limits = FlowLimits(bytes=1000)
    async with relaying([endpoint.getsockname()], UDP, limits=limits) as lab:
        client = await client_of(lab)
        await exchange(client, endpoint, b"x" * 500)
        await client.send(b"y")
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("byte_budget", "proxy")
        await exchange(client, endpoint, b"another flow")


@pytest.mark.parametrize(
    ("limits", "restricted", "word"),
    [
        (FlowLimits(datagram_rate=1 / 3600), UNRESTRICTED, "datagram_rate"),
        (FlowLimits(bytes=1), UNRESTRICTED, "byte_budget"),
        (FlowLimits(), bandwidth("source", 2), "source_bandwidth"),
    ],
)
async def test_a_dry_run_counts_and_drops_nothing(
    limits: FlowLimits, restricted: BandwidthLimits, word: str
) -> None:
    endpoint = datagram_socket()
    async with relaying(
        [endpoint.getsockname()], UDP, limits=limits, bandwidth=restricted, admission=DRY
    ) as lab:
        client = await client_of(lab)
        for _ in range(3):
            await exchange(client, endpoint, b"hello")
        assert (await counts(lab, "dry_run_hits"))[word] >= 2
        assert await counts(lab, "hits") == {}
        assert await counts(lab, "dropped") == {}


async def test_a_reload_limits_flows_that_live_and_frees_them_again() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        outbound = await exchange(client, endpoint, b"hello")
        await become(lab, endpoint, bandwidth=bandwidth("flow", 100))
        await client.send(b"x" * 80)
        assert len((await endpoint.recvfrom(1000))[0]) == 80
        await client.send(b"x" * 80)
        await dropped(lab, 1)
        await become(lab, endpoint)
        assert await exchange(client, endpoint, b"x" * 80) == outbound
        assert len(lab.worker._relay.table) == 1


async def test_a_flow_that_is_read_in_trains_is_limited_by_a_reload_too() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        outbound = await exchange(client, endpoint, b"hello")
        (flow,) = lab.worker._relay.table
        flow.read_trains()  # type: ignore[attr-defined]
        assert not lab.worker._relay.pump.serves(flow.socket.fileno(), flow)  # type: ignore[attr-defined]
        await become(lab, endpoint, bandwidth=bandwidth("flow", 100, "reply"))
        await endpoint.sendto(b"y" * 80, outbound)
        assert len(await client.recv(1000)) == 80
        await endpoint.sendto(b"y" * 80, outbound)
        await dropped(lab, 1)


async def test_responses_and_datagrams_count_beside_limits() -> None:
    endpoint = datagram_socket()
    async with relaying(
        [endpoint.getsockname()],
        UDP,
        datagrams=DatagramOptions(responses=1),
        limits=FlowLimits(amplification=10),
    ) as lab:
        client = await client_of(lab)
        for _ in range(3):
            await exchange(client, endpoint, b"hello")
        assert [row["close_reason"] for row in await lab.wait_ended(3)] == ["finished"] * 3


async def test_what_a_flow_had_a_part_of_is_free_when_it_ends() -> None:
    endpoint = datagram_socket()
    limits = FlowLimits(idle=0.05, unreplied=0.05)
    async with relaying(
        [endpoint.getsockname()], UDP, limits=limits, bandwidth=bandwidth("source", 10**6)
    ) as lab:
        for _ in range(5):
            await exchange(await client_of(lab), endpoint, b"hello")
        assert all(isinstance(flow, LimitedFlow) for flow in lab.worker._relay.table)
        await lab.wait_ended(5)
        assert all(flow.allowance is None for flow in lab.worker._relay.table.recent)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_reload_gives_the_sources_of_live_flows_other_weights(dry_run: bool) -> None:
    """Those of datagrams, and those of streams that are only watched."""
    transport = Transport.TCP if dry_run else UDP
    endpoint = listening() if dry_run else datagram_socket()
    limits = bandwidth("listener", 1e6)
    parts: dict[str, Any] = {"admission": DRY} if dry_run else {}
    async with relaying([endpoint.getsockname()], transport, bandwidth=limits, **parts) as lab:
        if dry_run:
            await pair(lab, endpoint)
        else:
            await exchange(await client_of(lab), endpoint, b"x")
        terms = lab.worker._roster.terms["lab"]
        shared = terms.bandwidth._original.policer if dry_run else terms.policing.original
        (source,) = shared._sources._known.values()
        assert source.weight == 1
        weights = LongestMatch({ip_network("127.0.0.0/8"): 7})
        await become(lab, endpoint, bandwidth=limits._replace(weights=weights), **parts)
        assert source.weight == 7


def allowance_of(lab: Lab) -> Allowance:
    (flow,) = lab.worker._relay.table
    assert isinstance(flow, LimitedFlow)
    assert flow.allowance is not None
    return flow.allowance


async def test_who_is_far_from_all_limits_goes_by_leases_once_it_is_proven() -> None:
    endpoint = datagram_socket()
    far = ShapeRates(listener=Rate(1e9, 1e9), source=Rate(1e9, 1e9), flow=Rate(1e9, 1e9))
    limits = FlowLimits(bytes=1 << 40, datagram_rate=1e4, amplification=10)
    bounds = BandwidthLimits(far, far)
    async with relaying([endpoint.getsockname()], UDP, limits=limits, bandwidth=bounds) as lab:
        client = await client_of(lab)
        await exchange(client, endpoint, b"x" * 100)
        allowance = allowance_of(lab)
        assert not allowance.free
        await exchange(client, endpoint, b"x" * 100)
        leases = [
            lease
            for part in (allowance.original, allowance.reply)
            for lease in (part, part.source, part.whole)
        ]
        there, before = allowance.left, [lease.left for lease in leases]
        assert allowance.free
        for _ in range(5):
            await exchange(client, endpoint, b"x" * 100)
        assert allowance.left == there - 5
        assert [lease.left for lease in leases] == [left - 500 for left in before]
        assert (await lab.wait_live("assured"))["reply"] == {"bytes": 700, "packets": 7}


async def test_a_datagram_rate_is_kept_by_leases_too() -> None:
    endpoint = datagram_socket()
    limits = FlowLimits(datagram_rate=100.0)
    async with relaying([endpoint.getsockname()], UDP, limits=limits) as lab:
        client = await client_of(lab)
        began = monotonic()
        for _ in range(300):
            await client.send(b"x")
        await lab.wait_counter(
            lambda read: read["listeners"][0]["original"]["packets_received"], 300
        )
        most = 100 + 100 * (monotonic() - began)
        (books,) = (await lab.counters())["listeners"]
        assert 100 <= books["original"]["packets_sent"] <= most + 1


async def test_a_budget_is_kept_to_the_byte_by_leases_too() -> None:
    endpoint = datagram_socket()
    size, budget = 50_000, BUDGET_ROOM + 10 * 50_000
    async with relaying([endpoint.getsockname()], UDP, limits=FlowLimits(bytes=budget)) as lab:
        client = await client_of(lab)
        free = 0
        while not await lab.ended():
            await client.send(b"x" * size)
            with trio.move_on_after(0.2) as waited:
                _, outbound = await endpoint.recvfrom(size)
                await endpoint.sendto(b"y" * size, outbound)
                await client.recv(size)
            if not waited.cancelled_caught:
                free += allowance_of(lab).free
        assert free >= 3
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == "byte_budget"
        assert budget - 2 * size < ended["original"]["bytes"] + ended["reply"]["bytes"]
        (books,) = (await lab.counters())["listeners"]
        assert books["original"]["sent"] + books["reply"]["sent"] <= budget


async def test_a_reload_ends_the_leases_of_flows_that_live() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP, limits=FlowLimits(bytes=1 << 40)) as lab:
        client = await client_of(lab)
        for _ in range(3):
            await exchange(client, endpoint, b"hello")
        assert allowance_of(lab).free
        await become(lab, endpoint, limits=FlowLimits(datagram_rate=1 / 3600, bytes=1 << 40))
        await client.send(b"one")
        await client.send(b"two")
        await dropped(lab, 1)


async def test_answers_alone_do_not_exceed_a_budget_by_leases() -> None:
    endpoint = datagram_socket()
    size, budget = 50_000, BUDGET_ROOM + (3 << 19)
    async with relaying([endpoint.getsockname()], UDP, limits=FlowLimits(bytes=budget)) as lab:
        client = await client_of(lab)
        outbound = await exchange(client, endpoint, b"x" * 100)
        for _ in range(budget // size):
            await endpoint.sendto(b"y" * size, outbound)
            assert len(await client.recv(size)) == size
        await endpoint.sendto(b"y" * size, outbound)
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == "byte_budget"
        (books,) = (await lab.counters())["listeners"]
        assert books["original"]["sent"] + books["reply"]["sent"] <= budget


async def test_datagrams_are_counted_beside_limits_that_are_far_away() -> None:
    endpoint = datagram_socket()
    options = DatagramOptions(datagrams=5)
    limits = FlowLimits(bytes=1 << 40)
    async with relaying([endpoint.getsockname()], UDP, datagrams=options, limits=limits) as lab:
        client = await client_of(lab)
        outbound = [await exchange(client, endpoint, b"hello") for _ in range(10)]
        assert [outbound.count(each) for each in (outbound[0], outbound[-1])] == [5, 5]
