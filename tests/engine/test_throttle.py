"""Streams whose bandwidth, or whose bytes, are limited; with real sockets on loopback.

That nothing is faster than its ceiling can be shown here, since the ceiling is a bound on what has
arrived by now. That nothing is slower is an affair of the benchmark.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from ipaddress import ip_network
from socket import MSG_OOB, SHUT_WR, SO_OOBINLINE, SOL_SOCKET
from time import monotonic
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.core.admission import AdmissionLimits
from proxy.core.ceiling import ShapeRates, shaping_rate
from proxy.core.expiry import FlowLimits
from proxy.core.longest import LongestMatch
from proxy.core.query import FlowQuery
from proxy.engine import leg
from proxy.engine.handover.frozen import freeze
from proxy.engine.handover.revive import thaw
from proxy.engine.leg import StreamLeg
from proxy.engine.specs import BandwidthLimits
from proxy.engine.splice import PipePool
from proxy.engine.stream import StreamFlow
from proxy.engine.throttle import Throttle
from tests.engine.lab import (
    Lab,
    accept,
    connect,
    is_reset,
    listening,
    pair,
    receive_all,
    receive_exactly,
    relaying,
    reset,
    send_all,
)
from tests.engine.test_admission import become, counts

QUICK = 4 << 20
"""Bytes a second; some pieces every few milliseconds."""

BULK = os.urandom(1 << 20)


def both(**rates: float) -> BandwidthLimits:
    """The same ceilings in both directions, in bytes a second."""
    shaped = ShapeRates(**{name: shaping_rate(value) for name, value in rates.items()})
    return BandwidthLimits(shaped, shaped)


@asynccontextmanager
async def limited(endpoint: SocketType, **parts: Any) -> AsyncIterator[Lab]:
    async with relaying([endpoint.getsockname()], **parts) as lab:
        yield lab


async def pour(socket: SocketType) -> None:
    """Send without end."""
    while True:
        await socket.send(BULK)


class Sink:
    """Receives all that comes, and counts."""

    def __init__(self, socket: SocketType) -> None:
        self.socket = socket
        self.bytes = 0

    async def run(self) -> None:
        while part := await self.socket.recv(1 << 16):
            self.bytes += len(part)


@pytest.mark.parametrize("rates", [{"flow": QUICK}, {"source": QUICK}, {"listener": QUICK}])
async def test_what_has_arrived_is_never_more_than_the_ceiling_lets_through(
    rates: dict[str, float],
) -> None:
    endpoint = listening()
    async with limited(endpoint, bandwidth=both(**rates)) as lab:
        began = monotonic()
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:
            there, back = Sink(accepted), Sink(client)
            for run in (there.run, back.run):
                nursery.start_soon(run)
            nursery.start_soon(pour, client)
            nursery.start_soon(pour, accepted)
            while min(there.bytes, back.bytes) < 1 << 20:
                await trio.sleep(0.005)
                burst, rate = shaping_rate(QUICK).burst, QUICK
                most = burst + rate * (monotonic() - began)
                assert max(there.bytes, back.bytes) <= most
            nursery.cancel_scope.cancel()


async def test_every_byte_arrives_in_order_and_so_does_the_end() -> None:
    endpoint = listening()
    async with limited(endpoint, bandwidth=both(flow=QUICK, source=QUICK, listener=QUICK)) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:

            async def send_there() -> None:
                await send_all(client, BULK)
                client.shutdown(SHUT_WR)

            async def send_back() -> None:
                await send_all(accepted, BULK[::-1])
                accepted.shutdown(SHUT_WR)

            received: dict[str, bytes] = {}

            async def receive(name: str, socket: SocketType) -> None:
                received[name] = await receive_all(socket)

            nursery.start_soon(send_there)
            nursery.start_soon(send_back)
            nursery.start_soon(receive, "there", accepted)
            nursery.start_soon(receive, "back", client)
        assert received == {"there": BULK, "back": BULK[::-1]}
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == "finished"
        assert ended["original"]["bytes"] == ended["reply"]["bytes"] == len(BULK)
        (row,) = (await lab.counters())["listeners"]
        assert row["original"]["buffered"] == row["reply"]["buffered"] == 0


async def test_urgent_data_keeps_its_place_below_a_ceiling() -> None:
    endpoint = listening()
    async with limited(endpoint, bandwidth=both(flow=QUICK)) as lab:
        client, accepted = await pair(lab, endpoint)
        accepted.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
        async with trio.open_nursery() as nursery:
            received = b""

            async def receive() -> None:
                nonlocal received
                received = await receive_all(accepted)

            nursery.start_soon(receive)
            await send_all(client, BULK)
            await client.send(b"!", MSG_OOB)
            await send_all(client, b"after")
            client.shutdown(SHUT_WR)
        assert received == BULK + b"!after"


async def test_many_flows_of_one_source_have_together_what_one_of_another_has() -> None:
    endpoint = listening()
    async with (
        limited(endpoint, bandwidth=both(listener=QUICK)) as lab,
        trio.open_nursery() as nursery,
    ):
        for source in ["127.0.0.1"] * 10 + ["127.0.0.2"]:
            client = await connect(lab.address, source)
            nursery.start_soon(Sink(await accept(endpoint)).run)
            nursery.start_soon(pour, client)
        await shares(lab, 1 << 19)
        many = [flow for flow in lab.worker._relay.table if flow.client_remote[0] == "127.0.0.1"]
        before = [flow.original.bytes for flow in many]
        assert 0.9 < await shares(lab, 2 << 20) < 1.1
        each = [flow.original.bytes - start for flow, start in zip(many, before, strict=True)]
        assert max(each) < 1.3 * min(each)
        nursery.cancel_scope.cancel()


def weighing(weights: dict[str, int], **rates: float) -> BandwidthLimits:
    networks = {ip_network(prefix): weight for prefix, weight in weights.items()}
    return both(**rates)._replace(weights=LongestMatch(networks))


def passed(lab: Lab) -> Counter[str]:
    """What has come from each client's host and gone on.

    Not what the endpoint has taken: a burst may lie in its sockets, a sixth of what is measured.
    """
    bytes_ = Counter[str]()
    for flow in lab.worker._relay.table:
        bytes_[flow.client_remote[0]] += flow.original.bytes
    return bytes_


async def shares(lab: Lab, least: int) -> float:
    """What the first host has beside the second, while each moves so much at least."""
    before = passed(lab)
    while True:
        moved = passed(lab)
        moved.subtract(before)
        if min(moved.values()) >= least:
            return moved["127.0.0.1"] / moved["127.0.0.2"]
        await trio.sleep(0.005)


async def test_a_source_has_as_much_as_the_longest_prefix_says_also_after_a_reload() -> None:
    endpoint = listening()
    weights = {"127.0.0.0/8": 9, "127.0.0.1/32": 3, "127.0.0.2/32": 1}
    async with (
        limited(endpoint, bandwidth=weighing(weights, listener=QUICK)) as lab,
        trio.open_nursery() as nursery,
    ):
        for source in ["127.0.0.1", "127.0.0.2"] * 2:
            client = await connect(lab.address, source)
            nursery.start_soon(Sink(await accept(endpoint)).run)
            nursery.start_soon(pour, client)
        await shares(lab, 1 << 16)
        assert 2.6 < await shares(lab, 1 << 19) < 3.4
        weights = {"127.0.0.2/32": 2}
        await become(lab, endpoint, bandwidth=weighing(weights, listener=QUICK))
        await shares(lab, 1 << 16)
        assert 0.43 < await shares(lab, 1 << 20) < 0.58
        nursery.cancel_scope.cancel()


async def test_the_prefix_names_the_source_that_a_ceiling_is_for() -> None:
    """Two addresses of one prefix share a ceiling that a third has alone."""
    endpoint = listening()
    admission = AdmissionLimits(prefix_v4=24)
    async with (
        limited(endpoint, admission=admission, bandwidth=both(source=QUICK)) as lab,
        trio.open_nursery() as nursery,
    ):
        sinks = []
        for source in ("127.0.0.1", "127.0.0.2", "127.0.1.1"):
            client = await connect(lab.address, source)
            sinks.append(Sink(await accept(endpoint)))
            nursery.start_soon(pour, client)
            nursery.start_soon(sinks[-1].run)
        while sinks[2].bytes < 1 << 20:
            await trio.sleep(0.005)
        together = sinks[0].bytes + sinks[1].bytes
        assert 0.7 < together / sinks[2].bytes < 1.3
        nursery.cancel_scope.cancel()


async def test_a_ceiling_that_comes_holds_for_a_flow_that_pours_already() -> None:
    """It comes while bulk goes through a pipe, and goes again."""
    endpoint = listening()
    async with limited(endpoint) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:
            sink = Sink(accepted)
            nursery.start_soon(sink.run)
            nursery.start_soon(pour, client)
            while sink.bytes < 16 << 20:
                await trio.sleep(0.002)
            await become(lab, endpoint, bandwidth=both(flow=QUICK))
            (flow,) = lab.worker._relay.table
            before, began = flow.original.bytes, monotonic()
            await trio.sleep(0.2)
            moved = flow.original.bytes - before
            assert moved <= shaping_rate(QUICK).burst + QUICK * (monotonic() - began)
            assert moved
            await become(lab, endpoint)
            before = sink.bytes
            while sink.bytes - before < 64 << 20:
                await trio.sleep(0.002)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("who", ["client", "endpoint", "order"])
async def test_who_waits_for_bandwidth_can_end_at_any_time(who: str) -> None:
    endpoint = listening()
    slow = both(flow=100_000, source=100_000, listener=100_000)
    async with limited(endpoint, bandwidth=slow) as lab:
        waiting = [await pair(lab, endpoint) for _ in range(5)]
        for client, _ in waiting:
            await client.send(BULK[:30_000])
        await lab.wait_counter(lambda read: read["listeners"][0]["original"]["received"], 1)
        if who == "order":
            assert await lab.worker.kill(FlowQuery()) == 5
        else:
            for client, accepted in waiting:
                reset(client if who == "client" else accepted)
        await lab.wait_ended(5)
        client, accepted = await pair(lab, endpoint)
        await client.send(b"x")
        assert await receive_exactly(accepted, 1) == b"x"


@pytest.mark.parametrize("rates", [{}, {"flow": 1e12}])
async def test_a_flow_moves_as_many_bytes_as_it_may_and_then_ends(rates: dict[str, float]) -> None:
    endpoint = listening()
    limits, bandwidth = FlowLimits(bytes=100), both(**rates)
    async with limited(endpoint, limits=limits, bandwidth=bandwidth) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"x" * 60)
        assert await receive_exactly(accepted, 60)
        await send_all(accepted, b"y" * 40)
        assert await receive_exactly(client, 40)
        assert (await lab.live())[0]["limits"]["bytes"] == 100
        await send_all(client, b"z")
        assert await is_reset(client)
        assert await is_reset(accepted)
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("byte_budget", "proxy")
        assert ended["original"]["bytes"] + ended["reply"]["bytes"] == 100
        (row,) = (await lab.counters())["listeners"]
        assert row["hits"]["byte_budget"] == 1


@pytest.mark.parametrize("rates", [{}, {"flow": 1e12}])
async def test_a_flow_that_goes_by_leases_moves_not_a_byte_more_than_it_may(
    rates: dict[str, float],
) -> None:
    """Neither while both sides pour, nor where what is left is held back by who does not read."""
    endpoint = listening()
    budget = 5 * len(BULK) + 7
    limits = FlowLimits(bytes=budget)
    async with limited(endpoint, limits=limits, bandwidth=both(**rates)) as lab:
        client, accepted = await pair(lab, endpoint)
        (flow,) = lab.worker._relay.table
        assert flow.original.lease is not None  # type: ignore[attr-defined]
        async with trio.open_nursery() as nursery:
            there, back = Sink(accepted), Sink(client)
            for run in (there.run, back.run):
                nursery.start_soon(_until_reset, run)
            for socket in (client, accepted):
                nursery.start_soon(_until_reset, partial(pour, socket))
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == "byte_budget"
        assert ended["original"]["bytes"] + ended["reply"]["bytes"] == budget


async def _until_reset(run: Callable[[], Awaitable[None]]) -> None:
    with suppress(OSError):
        await run()


async def test_who_is_far_from_all_limits_is_seldom_asked() -> None:
    endpoint = listening()
    rates = both(flow=1e9, source=1e9, listener=1e9)
    async with limited(endpoint, limits=FlowLimits(bytes=1 << 40), bandwidth=rates) as lab:
        client, accepted = await pair(lab, endpoint)
        (flow,) = lab.worker._relay.table
        original = flow.original
        assert isinstance(original, StreamLeg)
        before = original.lease
        assert before is original
        levels = before, before.source, before.whole
        left = [level.left for level in levels]
        for _ in range(10):
            await send_all(client, b"x" * 100)
            await receive_exactly(accepted, 100)
        assert original.lease is before
        assert [level.left for level in levels] == [each - 1000 for each in left]


@pytest.mark.parametrize("size", [100, len(BULK)])
@pytest.mark.parametrize("end", ["finished", "client_reset", "killed", "frozen"])
async def test_a_flow_that_has_ended_is_a_member_of_no_source(end: str, size: int) -> None:
    """Whether or not it has moved so much that it had a share made, in either direction."""
    endpoint = listening()
    async with limited(endpoint, bandwidth=both(flow=1e9, source=1e9, listener=1e9)) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, BULK[:size])
            await receive_exactly(accepted, size)
        (flow,) = lab.worker._relay.table
        assert isinstance(flow, StreamFlow)
        assert flow.reply.throttle is not None
        terms = lab.worker._roster.terms["lab"]
        assert terms.bandwidth is not None
        throttles = terms.bandwidth._original, terms.bandwidth._reply
        assert (flow.original.meter is None, flow.reply.meter) == (size == 100, None)
        shapers = [each.shaper for each in throttles if isinstance(each, Throttle)]
        sources = [shaper._sources._known.values() for shaper in shapers]
        assert [[source.members for source in each] for each in sources] == [[1], [1]]
        match end:
            case "finished":
                client.close()
                accepted.close()
            case "client_reset":
                reset(client)
            case "killed":
                await lab.worker.kill(FlowQuery())
            case "frozen":  # to go to another process, which then did not take it
                freeze(flow)
                assert [[source.members for source in each] for each in sources] == [[0], [0]]
                thaw(flow, lab.worker._roster, monotonic())
                await lab.worker.kill(FlowQuery())
        await lab.wait_ended()
        assert [[source.members for source in each] for each in sources] == [[0], [0]]
        assert all(shaper._sources._idle for shaper in shapers)  # to be forgotten in time


async def test_a_flow_that_needs_all_its_bytes_and_no_more_is_finished() -> None:
    endpoint = listening()
    async with limited(endpoint, limits=FlowLimits(bytes=len(BULK) + 3)) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, BULK)
            assert await receive_exactly(accepted, len(BULK)) == BULK
        await send_all(accepted, b"yes")
        assert await receive_exactly(client, 3) == b"yes"
        client.shutdown(SHUT_WR)
        assert await receive_all(accepted) == b""
        accepted.close()
        assert await receive_all(client) == b""
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == "finished"


@pytest.mark.parametrize("level", ["flow", "source", "listener"])
async def test_who_is_held_back_is_counted_by_what_holds_it(level: str) -> None:
    endpoint = listening()
    async with limited(endpoint, bandwidth=both(**{level: QUICK})) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, BULK)
            await receive_exactly(accepted, len(BULK))
        hits = await counts(lab, "hits")
        assert set(hits) == {f"{level}_bandwidth"}


async def test_a_dry_run_counts_and_holds_nobody_back() -> None:
    endpoint = listening()
    dry = AdmissionLimits(dry_run=True)
    async with limited(endpoint, bandwidth=both(flow=1000), admission=dry) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, BULK)
            assert await receive_exactly(accepted, len(BULK)) == BULK
        assert (await counts(lab, "dry_run_hits"))["flow_bandwidth"] >= 1
        assert await counts(lab, "hits") == {}


async def test_a_dry_run_that_begins_lets_those_go_who_are_held_back() -> None:
    endpoint = listening()
    slow = both(flow=1000)
    async with limited(endpoint, bandwidth=slow) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, BULK)
            await lab.wait_counter(lambda read: read["listeners"][0]["hits"]["flow_bandwidth"], 1)
            await become(lab, endpoint, bandwidth=slow, admission=AdmissionLimits(dry_run=True))
            assert await receive_exactly(accepted, len(BULK)) == BULK


async def test_a_dry_run_lets_a_flow_move_more_than_its_bytes_and_counts_it_once() -> None:
    endpoint = listening()
    dry = AdmissionLimits(dry_run=True)
    async with limited(endpoint, limits=FlowLimits(bytes=10), admission=dry) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, BULK)
            assert await receive_exactly(accepted, len(BULK)) == BULK
        assert await counts(lab, "dry_run_hits") == {"byte_budget": 1}


async def test_what_was_not_taken_is_sent_before_a_pipe_is_borrowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leg, "BUDGET_ROOM", 1 << 50)  # so that each move is asked for
    monkeypatch.setattr(leg, "LEAST_BULK", 16 << 10)
    monkeypatch.setattr(leg, "LARGEST_CHUNK", 16 << 10)
    take, hold = PipePool.take, StreamLeg._hold
    monkeypatch.setattr(PipePool, "take", lambda _: None)

    def hold_and_have_pipes(self: StreamLeg, rest: memoryview, mask: int) -> None:
        monkeypatch.setattr(PipePool, "take", take)
        hold(self, rest, mask)

    monkeypatch.setattr(StreamLeg, "_hold", hold_and_have_pipes)
    endpoint, bulk = listening(), os.urandom(6 << 20)
    async with limited(endpoint, limits=FlowLimits(bytes=1 << 40)) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, bulk)
            await lab.wait_counter(lambda read: read["listeners"][0]["original"]["buffered"], 1)
            assert await receive_exactly(accepted, len(bulk)) == bulk
