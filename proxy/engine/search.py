"""The search: which flows of the table a query asks for, in its order, a slice at a time.

Between two slices the pump has its turn, so what is found is not of one moment: a flow that was
opened meanwhile may be missing, and one that has ended may be there.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import trio

from proxy.core.address import Transport
from proxy.core.pressure import STRANGER, Pressure
from proxy.core.query import SORTS
from proxy.engine.drains import slices
from proxy.engine.turns import Turn

if TYPE_CHECKING:
    from proxy.core.flow import Flow
    from proxy.core.query import FlowQuery
    from proxy.core.sources import SourceKey
    from proxy.core.table import FlowTable

SEARCHED: Final = 40
"""Flows asked whether they match, and put in order, before a turn may end: a thirtieth of a
millisecond."""

MERGED: Final = 25
"""Flows put in order before a turn may end, where that takes a microsecond or two each."""


class FlowSearch:
    """Searches a table for whoever asks, one after the other.

    Args:
        table: of the worker.

    """

    def __init__(self, table: FlowTable) -> None:
        self._table = table
        self._searching = trio.CapacityLimiter(1)

    async def find(self, query: FlowQuery) -> tuple[list[Flow], int]:
        """The flows a query asks for, in its order, and how many match without its limit.

        One search at a time, in slices: however many people ask, the relay loses one slice a turn.
        """
        async with self._searching:
            if query.evictable:
                leaving = list(filter(query.matches, await self._evictions(query.newcomer)))
                return leaving[: query.limit or None], len(leaving)
            limit = query.limit or None
            order = SORTS[query.sort]
            matched = 0
            runs: list[list[Flow]] = []
            turn = Turn()
            for part in slices(self._candidates(query), SEARCHED):
                fitting = sorted(filter(query.matches, part), key=order)
                matched += len(fitting)
                _add_run(runs, fitting[:limit], order)
                await turn.may_end()
            if len(runs) < 2:
                return list(*runs)[:limit], matched
            found: list[Flow] = []
            for flow in islice(heapq.merge(*runs, key=order), limit):
                found.append(flow)
                if len(found) % MERGED == 0:
                    await turn.may_end()
        return found, matched

    async def victim(self, source: SourceKey | None) -> Flow | None:
        """The flow that goes for a newcomer of this source, None if its address is not proven.

        By books of our own: those of the table are as they were.
        """
        async with self._searching:
            return (await self._books()).victim(source, monotonic())

    async def _books(self) -> Pressure:
        books, turn = Pressure(self._table), Turn()
        while not books.complete:
            books.survey(MERGED)
            await turn.may_end()
        return books

    async def _evictions(self, newcomer: Transport) -> list[Flow]:
        """The flows that would go for so many newcomers, of sources that hold nothing; in order.

        They are evicted in thought, from books of our own.
        """
        now, books = monotonic(), await self._books()
        source = None if newcomer is Transport.UDP else STRANGER
        leaving: list[Flow] = []
        turn = Turn()
        while (flow := books.victim(source, now)) is not None:
            books.discard(flow)
            if flow.close_reason is None:
                leaving.append(flow)
            if len(leaving) % MERGED == 0:
                await turn.may_end()
        return leaving

    def _candidates(self, query: FlowQuery) -> list[Flow]:
        table = self._table
        if query.recent:
            return list(table.recent)
        if query.id is not None:
            flow = table.get(query.id)
            return [] if flow is None else [flow]
        return list(table)


def _add_run(runs: list[list[Flow]], flows: list[Flow], order: Callable[[Flow], Any]) -> None:
    """Add flows in order to the runs that are to be merged; to the last one if they follow it.

    The table is in the order of ids, so the usual listing is one run and has nothing to merge.
    """
    if runs and flows and order(runs[-1][-1]) <= order(flows[0]):
        runs[-1] += flows
    elif flows:
        runs.append(flows)
