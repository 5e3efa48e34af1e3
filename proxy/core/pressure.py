"""Which flow goes when the table is full, and for whom: the declared order of eviction.

=========  =================================================  ==========================
class      which flow                                         for whom
=========  =================================================  ==========================
unreplied  the oldest, no younger than ``ANSWER_TIME``        every newcomer
half       half-closed, idle longest, ``IDLE_TIME`` at least  who has proven its address
idle       idle longest, ``IDLE_TIME`` at least, of the       who has proven its address,
           source that holds most                             and would hold less
=========  =================================================  ==========================

Whose address is proven: a TCP client has completed the handshake, and of a Unix client the kernel
tells the user. The source of a datagram may be forged, so a flood of them could evict whom it
likes; therefore a newcomer over UDP takes the place of one that is as unproven as itself, or none.
For the same reason unreplied flows do not count for what a source holds: whoever forges the
address of somebody else must not make that one look greedy.

``ANSWER_TIME`` is a second, the first retransmission timeout of TCP (RFC 6298): an endpoint that is
going to answer has done so by then. Without it, under a flood of R newcomers a second in a table
of N, a genuine one had N/R seconds to be answered, which soon is less than any round trip, and then
nobody came in; with it those who come in are answered, and they are one in R/N.

Nobody is evicted for a flow of a source that would then hold as much, so those who have one flow
each never evict each other. And nothing that has moved within ``IDLE_TIME`` goes.

The books that tell all this are kept only while the table is nearly full (see ``FlowTable``): they
are begun with a *survey* of the flows there are, a few for each one that is added, and are then
exact. No question looks at more than a bounded number of flows. Activity is not told to the books:
a heap has each flow at the moment at which it was active when somebody last looked, which is never
too late, so that what comes up first only has to be looked at again.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from heapq import heapify, heappop, heappush, heapreplace, nlargest
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.core.flow import State
from proxy.core.unix import UNKNOWN_SOURCE

if TYPE_CHECKING:
    from proxy.core.flow import Flow
    from proxy.core.sources import SourceKey

Belongs: TypeAlias = "Callable[[Flow], bool]"

ANSWER_TIME: Final = 1.0
"""Seconds in which an endpoint may answer before an unreplied flow can go."""

IDLE_TIME: Final = 10.0
"""Seconds without payload before any other flow can go."""

LOOKS: Final = 64
"""Flows of a heap looked at for one question; who is not found then may be the next time."""

SOURCES_TRIED: Final = 16
"""Sources, of those that hold most, in which an idle flow is looked for."""

SPARE: Final = 64
"""Entries of flows that are no more, which a heap may have beside as many as there are flows."""

STRANGER: Final = ""
"""The key of a source that holds nothing: no source has it."""

HALF_CLOSED: Final = frozenset({State.CLIENT_CLOSED, State.ENDPOINT_CLOSED, State.CLOSING})


class EvictionClass(StrEnum):
    """Why a flow would be the next to go."""

    UNREPLIED = "unreplied"
    HALF_CLOSED = "half_closed"
    IDLE = "idle"


def class_of(state: State) -> EvictionClass:
    """The class of a flow in this state."""
    if state is State.UNREPLIED:
        return EvictionClass.UNREPLIED
    return EvictionClass.HALF_CLOSED if state in HALF_CLOSED else EvictionClass.IDLE


class Pressure:
    """The books of a table that is nearly full.

    Args:
        flows: those there are, oldest first; they are entered by ``survey``.

    """

    def __init__(self, flows: Iterable[Flow]) -> None:
        self._waiting = list(flows)
        self._surveyed = 0
        self._unreplied: dict[Flow, None] = {}  # oldest first
        self._half_closed: set[Flow] = set()
        self._half_heap = IdleHeap()
        self._holder: dict[Flow, Holding] = {}  # of every flow that is not unreplied
        self._holdings: dict[SourceKey, Holding] = {}
        self._ranks: dict[int, dict[Holding, None]] = {}  # by how much they hold

    @property
    def complete(self) -> bool:
        """Whether every flow is in the books."""
        return not self._waiting

    def survey(self, most: int) -> None:
        """Enter so many of the flows that wait for it."""
        waiting = self._waiting
        until = min(self._surveyed + most, len(waiting))
        for place in range(self._surveyed, until):
            if waiting[place].close_reason is None:
                self._enter(waiting[place])
        self._surveyed = until
        if until == len(waiting):
            self._waiting = []
            self._surveyed = 0

    def add(self, flow: Flow) -> None:
        """Enter a flow that was admitted; after those that wait, since it is younger."""
        if self._waiting:
            self._waiting.append(flow)
        else:
            self._enter(flow)

    def moved(self, flow: Flow) -> None:
        """Know that a flow has entered another state."""
        if flow in self._unreplied:
            del self._unreplied[flow]
            self._enter(flow)
        elif flow in self._holder and flow.state in HALF_CLOSED:
            self._halve(flow)

    def discard(self, flow: Flow) -> None:
        """Forget a flow that has ended, or that somebody evicts in thought."""
        if flow in self._unreplied:
            del self._unreplied[flow]
            return
        holding = self._holder.pop(flow, None)
        if holding is None:  # it was not looked at yet
            return
        self._rank(holding, -1)
        holding.heap.trim(holding.flows, self._is_idle)
        if flow in self._half_closed:
            self._half_closed.remove(flow)
            self._half_heap.trim(len(self._half_closed), self._is_half_closed)

    def victim(self, source: SourceKey | None, now: float) -> Flow | None:
        """The flow that goes for a newcomer; None if it must be refused. Evicts nothing.

        Args:
            source: the newcomer's; None if its address is not proven.
            now: monotonic seconds.

        """
        for flow in self._unreplied:
            if flow.opened <= now - ANSWER_TIME:
                return flow
            break
        if source is None or not self.complete:
            return None
        before = now - IDLE_TIME
        return self._half_heap.first(before, self._is_half_closed) or self._idle(source, before)

    def _idle(self, source: SourceKey, before: float) -> Flow | None:
        own = self._holdings.get(source)
        would_hold = 1 + (own.flows if own else 0)
        tried = 0
        for flows in nlargest(SOURCES_TRIED, self._ranks):
            if flows <= would_hold:
                return None
            for holding in islice(self._ranks[flows], SOURCES_TRIED - tried):
                tried += 1
                flow = holding.heap.first(before, self._is_idle)
                if flow is not None:
                    return flow
        return None

    def _enter(self, flow: Flow) -> None:
        if flow.state is State.UNREPLIED:
            self._unreplied[flow] = None
            return
        key = holder_key(flow)
        holding = self._holdings.get(key)
        if holding is None:
            holding = self._holdings[key] = Holding(key)
        self._holder[flow] = holding
        self._rank(holding, 1)
        if flow.state in HALF_CLOSED:
            self._halve(flow)
        else:
            holding.heap.push(flow)

    def _halve(self, flow: Flow) -> None:
        if flow not in self._half_closed:
            self._half_closed.add(flow)
            self._half_heap.push(flow)

    def _rank(self, holding: Holding, change: int) -> None:
        """Count for a source, and move it to those that hold as much."""
        if holding.flows:
            equals = self._ranks[holding.flows]
            del equals[holding]
            if not equals:
                del self._ranks[holding.flows]
        holding.flows += change
        if holding.flows:
            self._ranks.setdefault(holding.flows, {})[holding] = None
        else:
            del self._holdings[holding.key]

    def _is_half_closed(self, flow: Flow) -> bool:
        return flow in self._half_closed

    def _is_idle(self, flow: Flow) -> bool:
        """Whether a flow in the heap of its source still belongs there."""
        return flow in self._holder and flow not in self._half_closed


class Holding:
    """What one source holds.

    Attributes:
        key: of the source.
        flows: how many, without those that are unreplied.
        heap: those that are not half-closed.

    """

    __slots__ = ("flows", "heap", "key")

    def __init__(self, key: SourceKey) -> None:
        self.key = key
        self.flows = 0
        self.heap = IdleHeap()


class IdleHeap:
    """Flows by when they were last active, as far as somebody has looked.

    A flow that does not belong here any more stays until it comes up, or the heap is trimmed;
    whoever asks says by ``belongs`` which do.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Flow]] = []  # by the id where times are equal

    def push(self, flow: Flow) -> None:
        """Add a flow."""
        heappush(self._entries, (flow.active, flow.id, flow))

    def first(self, before: float, belongs: Belongs) -> Flow | None:
        """The flow that has been idle longest, since ``before`` at least."""
        entries = self._entries
        for _ in range(LOOKS):
            if not entries or entries[0][0] > before:
                return None
            active, id, flow = entries[0]
            if not belongs(flow):
                heappop(entries)
            elif flow.active != active:
                heapreplace(entries, (flow.active, id, flow))
            else:
                return flow
        return None

    def trim(self, flows: int, belongs: Belongs) -> None:
        """Take out what does not belong here, if that is more than half, and ``SPARE``."""
        if len(self._entries) > 2 * flows + SPARE:
            self._entries = [
                (flow.active, id, flow) for _, id, flow in self._entries if belongs(flow)
            ]
            heapify(self._entries)


def holder_key(flow: Flow) -> SourceKey:
    """The key of the source that holds a flow, as the limits of its listener tell sources apart."""
    if flow.transport.is_unix:
        return UNKNOWN_SOURCE if flow.credentials is None else flow.credentials.source
    return flow.counters.gate.limits.key(flow.client_remote[0])
