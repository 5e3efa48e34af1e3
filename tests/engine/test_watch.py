"""What a worker tells of its flows to those who watch, and that it tells nobody else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from random import Random
from socket import SHUT_WR
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.core.address import Transport
from proxy.core.events import EventKind, FlowEvent
from proxy.core.expiry import FlowLimits
from proxy.core.query import FlowQuery
from proxy.engine import errands, watch
from proxy.engine import tally as tally_module
from proxy.engine import worker as worker_module
from proxy.engine.tally import Tally
from tests.core.flows import tcp_flow
from tests.engine.lab import (
    Lab,
    closed_port,
    connect,
    datagram_socket,
    is_refused,
    listening,
    pair,
    receive_all,
    receive_exactly,
    relaying,
    reset,
    send_all,
)
from tests.engine.test_throttle import both

ALL = {1: FlowQuery()}


@asynccontextmanager
async def watched(
    endpoint: SocketType, queries: dict[int, FlowQuery] | None = None, **parts: Any
) -> AsyncIterator[Lab]:
    async with relaying([endpoint.getsockname()], **parts) as lab:
        await lab.worker.watch(ALL if queries is None else queries)
        yield lab


async def told(lab: Lab, count: int) -> list[FlowEvent]:
    """The next events, so many at least."""
    found: list[FlowEvent] = []
    while len(found) < count:
        events, lost = await lab.worker.wait_flow_events()
        assert not lost
        found += events
    return found


def kinds(events: list[FlowEvent]) -> list[str]:
    return [event.kind for event in events]


async def test_a_tcp_flow_is_told_from_its_first_moment_to_its_last() -> None:
    endpoint = listening()
    async with watched(endpoint) as lab:
        client, served = await pair(lab, endpoint)
        await send_all(client, b"ask")
        await receive_exactly(served, 3)
        client.shutdown(SHUT_WR)
        assert await receive_all(served) == b""
        await send_all(served, b"answer")
        served.close()
        assert await receive_all(client) == b"answer"
        events = await told(lab, 4)
        assert kinds(events) == ["opened", "established", "half_closed", "closed"]
        rows = [json.loads(event.row) for event in events]
        states = ["connecting", "established", "client_closed", "client_closed"]
        assert [row["state"] for row in rows] == states
        assert [row["close_reason"] for row in rows] == [None, None, None, "finished"]
        assert [row["original"]["bytes"] for row in rows] == [0, 0, 3, 3]
        assert rows[0]["endpoint"]["local"] is None
        assert rows[1]["endpoint"]["remote"] is not None
        (ended,) = await lab.ended()
        assert rows[3] == json.loads(json.dumps(ended))
        assert {event.watches for event in events} == {(1,)}
        times = [event.time for event in events]
        assert times == sorted(times)
        assert abs(times[3] - ended["closed"]) < 1


async def test_what_ends_before_it_is_established_is_told() -> None:
    async with relaying([closed_port()]) as lab:
        await lab.worker.watch(ALL)
        assert await is_refused(lab.address)
        events = await told(lab, 2)
        assert kinds(events) == ["opened", "closed"]
        assert json.loads(events[1].row)["close_reason"] == "connect_refused"


async def test_a_reset_is_told_with_its_reason() -> None:
    endpoint = listening()
    async with watched(endpoint) as lab:
        client, served = await pair(lab, endpoint)
        await send_all(served, b"x")
        await receive_exactly(client, 1)
        reset(client)
        closed = (await told(lab, 3))[-1]
        assert closed.kind == "closed"
        assert json.loads(closed.row)["close_reason"] == "client_reset"


async def test_a_udp_flow_is_told() -> None:
    endpoint = datagram_socket()
    async with watched(endpoint, transport=Transport.UDP) as lab:
        client = datagram_socket()
        for _ in range(2):
            await client.sendto(b"ask", lab.address)
            _, outside = await endpoint.recvfrom(100)
            await endpoint.sendto(b"answer", outside)
            await client.recv(100)
        await lab.worker.kill(FlowQuery())
        events = await told(lab, 3)
        assert kinds(events) == ["opened", "assured", "closed"]
        assert json.loads(events[2].row)["close_reason"] == "killed"


async def test_a_limit_that_strikes_a_stream_is_told_once() -> None:
    endpoint = listening()
    async with watched(endpoint, bandwidth=both(flow=1 << 20)) as lab:
        client, served = await pair(lab, endpoint)
        data = bytes(1 << 19)
        await send_all(client, data)
        await receive_exactly(served, len(data))
        await lab.worker.kill(FlowQuery())
        events = await told(lab, 4)
        assert kinds(events) == ["opened", "established", "limited", "closed"]
        assert [event.limit for event in events] == [None, None, "flow_bandwidth", None]


async def test_a_byte_budget_is_told_before_the_end() -> None:
    endpoint = listening()
    async with watched(endpoint, limits=FlowLimits(bytes=10)) as lab:
        client, _ = await pair(lab, endpoint)
        await send_all(client, bytes(11))
        events = await told(lab, 4)
        assert kinds(events)[2:] == ["limited", "closed"]
        assert events[2].limit == "byte_budget"


async def test_a_limit_that_drops_datagrams_is_told_once() -> None:
    endpoint = datagram_socket()
    limits = FlowLimits(bytes=10)
    async with watched(endpoint, transport=Transport.UDP, limits=limits) as lab:
        client = datagram_socket()
        await client.sendto(bytes(11), lab.address)
        events = await told(lab, 2)
        assert kinds(events)[:2] == ["opened", "limited"]
        assert events[1].limit == "byte_budget"


async def test_only_what_a_query_matches_is_told_and_by_its_number() -> None:
    endpoint = listening()
    queries = {
        3: FlowQuery(client=ip_network("127.0.0.2/32")),
        5: FlowQuery(client=ip_network("127.0.0.0/8")),
    }
    async with watched(endpoint, queries) as lab:
        await connect(lab.address, "127.0.0.1")
        await connect(lab.address, "127.0.0.2")
        events = await told(lab, 4)
        opened = [event.watches for event in events if event.kind == EventKind.OPENED]
        assert opened == [(5,), (3, 5)]
        await lab.worker.watch({7: FlowQuery(listener="nobody")})
        await lab.worker.kill(FlowQuery())
        await lab.worker.watch({7: FlowQuery()})
        await connect(lab.address)
        assert {event.watches for event in await told(lab, 2)} == {(7,)}


async def test_nothing_is_written_down_for_nobody() -> None:
    endpoint = listening()
    async with watched(endpoint) as lab:
        await lab.worker.watch({})
        assert lab.worker._relay.watch is None
        client, _ = await pair(lab, endpoint)
        client.close()
        await lab.worker.kill(FlowQuery())
        await lab.wait_ended()
        assert lab.worker._watch.take() == ([], False)


async def test_more_than_is_held_is_told_as_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "EVENTS_HELD", 3)
    endpoint = listening()
    async with watched(endpoint) as lab:
        await pair(lab, endpoint)
        await lab.wait_live("established")
        await pair(lab, endpoint)
        while len(await lab.live()) < 2:
            await trio.sleep(0.002)
        await lab.worker.kill(FlowQuery())
        events, lost = await lab.worker.wait_flow_events()
        assert lost
        assert len(events) <= 3


async def test_what_moved_is_told_until_it_is_still() -> None:
    endpoint = listening()
    async with watched(endpoint) as lab:
        client, served = await pair(lab, endpoint)
        await send_all(client, b"before")
        await receive_exactly(served, 6)
        assert (await lab.worker.moved_flows())["flows"] == []
        await send_all(client, b"ask")
        await receive_exactly(served, 3)
        ((watches, text),) = (await lab.worker.moved_flows())["flows"]
        row = json.loads(text)
        assert watches == (1,)
        assert row["original"] == {"bytes": 9, "packets": None}
        (live,) = await lab.live()
        assert row == {key: live[key] for key in row}  # type: ignore[literal-required]
        assert (await lab.worker.moved_flows())["flows"] == []
        await lab.worker.watch({2: FlowQuery(listener="other")})
        await send_all(client, b"again")
        await receive_exactly(served, 5)
        assert (await lab.worker.moved_flows())["flows"] == []


async def test_the_relay_has_its_turn_between_two_flows_that_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errands, "SHORTEST", 0.0)
    monkeypatch.setattr(errands, "PART", 0.0)
    monkeypatch.setattr(worker_module, "LISTED", 1)
    endpoint = listening()
    async with watched(endpoint) as lab:
        pairs = [await pair(lab, endpoint) for _ in range(4)]
        await lab.worker.moved_flows()
        for client, served in pairs:
            await send_all(client, b"ask")
            await receive_exactly(served, 3)
        beginning = lab.worker._relay.pump.rounds
        moved = (await lab.worker.moved_flows())["flows"]
        assert len(moved) == len(pairs)
        assert lab.worker._relay.pump.rounds - beginning >= 2 * len(moved)


async def test_what_moved_while_nobody_wanted_to_know_is_not_told() -> None:
    endpoint = listening()
    async with watched(endpoint) as lab:
        client, served = await pair(lab, endpoint)
        await lab.worker.moved_flows()
        await lab.worker.watch({})
        await send_all(client, b"ask")
        await receive_exactly(served, 3)
        await lab.worker.watch(ALL)
        assert (await lab.worker.moved_flows())["flows"] == []


async def test_the_tally_tells_every_byte_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever does not fit is told later; flows come and go."""
    monkeypatch.setattr(tally_module, "MOVED_MAX", 2)
    chance, tally, known = Random(5), Tally(), dict[int, int]()
    flows = [tcp_flow(number) for number in range(1, 8)]
    tally.look(flows)
    assert tally.settle() == ([], 0)
    for turn in range(50):
        for flow in chance.sample(flows, 3) if turn < 30 else []:
            flow.original.bytes += chance.randrange(5)
        if turn in {10, 20}:
            flows = [*flows[2:], tcp_flow(100 + turn)]
        tally.look(flows[:3])
        tally.look(flows[3:])
        before = [flow for flow in flows if flow.bytes != known.get(flow.id, 0)]
        moved, omitted = tally.settle()
        assert len(moved) + omitted == len(before)
        assert len(moved) == min(2, len(before))
        assert {flow.id for flow in moved} <= {flow.id for flow in before}
        known |= {flow.id: flow.bytes for flow in moved}
    assert all(known.get(flow.id, 0) == flow.bytes for flow in flows)


async def test_the_tally_begins_anew_when_it_was_not_wanted() -> None:
    tally, flow = Tally(), tcp_flow()
    tally.look([flow])
    tally.settle()
    tally.forget()
    flow.reply.bytes = 7
    tally.look([flow])
    assert tally.settle() == ([], 0)
