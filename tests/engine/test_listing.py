"""A listing finds what was asked for, in its order, and lets the relay have its turn meanwhile."""

from __future__ import annotations

from random import Random
from typing import get_args

import pytest
import trio

from proxy.core.address import Transport
from proxy.core.flow import State
from proxy.core.query import SORTS, FlowQuery, SortKey
from proxy.engine import errands, turns
from proxy.engine.drains import SLICE
from proxy.engine.search import MERGED, SEARCHED
from proxy.engine.worker import LISTED, Worker
from tests.core.flows import tcp_counters, tcp_flow
from tests.engine.lab import listening, pair, relaying

FLOWS = 5 * SLICE + 7


@pytest.fixture
def worker() -> Worker:
    """A worker whose flows have moved bytes by chance, many the same."""
    made = Worker(FLOWS, recent=1)
    counters, chance = tcp_counters(), Random(3)
    for number in range(1, FLOWS + 1):
        flow = tcp_flow(number, counters, ("192.0.2.1", number), now=float(number))
        flow.original.bytes = chance.randrange(40)
        flow.reply.bytes = chance.randrange(40)
        made._relay.table.add(flow)
    return made


async def turns_during(worker: Worker, query: FlowQuery) -> int:
    """How often another task gets its turn while the flows are looked for."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await worker.flow_ids(query)
        nursery.cancel_scope.cancel()
    return turns


@pytest.mark.parametrize("limit", [0, 1, SLICE, SLICE + 1, 2 * FLOWS])
@pytest.mark.parametrize("sort", get_args(SortKey))
async def test_flows_come_in_the_order_asked_for(worker: Worker, sort: SortKey, limit: int) -> None:
    in_order = sorted(worker._relay.table, key=SORTS[sort])

    found = await worker.flow_ids(FlowQuery(sort=sort, limit=limit))

    assert found["ids"] == [flow.id for flow in in_order][: limit or None]
    assert found["keys"] == [SORTS[sort](flow) for flow in in_order][: limit or None]
    assert found["matched"] == FLOWS


async def test_no_flow_is_no_fault(worker: Worker) -> None:
    found = await worker.flow_ids(FlowQuery(listener="another"))

    assert (found["ids"], found["matched"]) == ([], 0)


async def test_the_relay_has_its_turn_whenever_it_is_over(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN", 0.0)
    told, searched = -(-FLOWS // LISTED), -(-FLOWS // SEARCHED)

    assert await turns_during(worker, FlowQuery(transport=Transport.TCP)) >= told + searched
    in_order = told + searched + FLOWS // MERGED
    assert await turns_during(worker, FlowQuery(sort="bytes")) >= in_order


async def test_the_relay_has_its_turn_between_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        peers = [await pair(lab, endpoint) for _ in range(5)]
        found = await lab.worker.flow_ids(FlowQuery())
        monkeypatch.setattr(errands, "SHORTEST", 0.0)
        monkeypatch.setattr(errands, "PART", 0.0)
        beginning = lab.worker._relay.pump.rounds
        rows = await lab.worker.flow_rows(found["ids"], recent=False)
        assert lab.worker._relay.pump.rounds - beginning >= len(rows) == len(peers)


@pytest.mark.parametrize(
    "query",
    [
        FlowQuery(id=7),
        FlowQuery(listener="web"),
        FlowQuery(transport=Transport.UDP),
        FlowQuery(state=State.CLIENT_CLOSED),
        FlowQuery(min_bytes=1),
        FlowQuery(server_name="www.example.org"),
        FlowQuery(client=("192.0.2.1", 1)),
        FlowQuery(endpoint=("192.0.2.1", 1)),
        FlowQuery(address=("192.0.2.1", 1)),
        FlowQuery(port=1),
        FlowQuery(recent=True),
        FlowQuery(evictable=True),
        FlowQuery(sort="bytes"),
    ],
)
async def test_a_query_that_asks_for_anything_is_not_for_the_table(query: FlowQuery) -> None:
    assert not query.is_for_the_table
    assert FlowQuery(limit=3).is_for_the_table
