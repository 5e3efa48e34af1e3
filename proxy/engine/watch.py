"""The watch: tells what happens to flows, while somebody wants to know.

A worker that nobody watches has no watch, and its flows pay one comparison when they are opened,
when they change their state and when they end. Who watches says so by a query, under a number; an
event is told with the numbers of the queries that its flow matches at that moment, and is not even
written down where there are none. So a filter means here what it means in the table.

The row of a flow that has ended is written when the event is taken: nothing changes it any more,
and the end of a flow has other things to do. Every other row is written at once.

Invariants: nothing here waits. Events are held until they are taken, ``EVENTS_HELD`` of them; what
does not fit is not told, and it is told that it was not. A flow that ends is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import time
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

import trio

from proxy.core.events import EventKind, FlowEvent
from proxy.core.flow import Flow
from proxy.core.query import FlowQuery

if TYPE_CHECKING:
    from proxy.core.admission import Limit

EVENTS_HELD: Final = 4096
"""Events that wait to be taken: 3 MB. They are taken fifty times a second, unless there are more
than the machine can tell; then it is better to lose them than to hold up the relay for them."""

GATHER: Final = 0.02
"""Seconds that events gather before they are taken."""

SLICE: Final = 100
"""Events taken at once: half a millisecond, if all their rows have to be written."""

EVERY_FLOW: Final = FlowQuery()

Item = TypeVar("Item")


class Told(NamedTuple):
    """Events since the last time, oldest first; and whether some before them are missing."""

    events: list[FlowEvent]
    lost: bool


class Pending(Generic[Item]):
    """Events on their way: bounded, with a mark where some are missing.

    Args:
        gather: seconds that they gather, once there are any.

    """

    def __init__(self, gather: float = 0.0) -> None:
        self._gather = gather
        self._held: list[Item] = []
        self._lost = False
        self._filled = trio.Event()

    def put(self, item: Item) -> None:
        """Add one; if there is no room for it, nothing is held any more."""
        if len(self._held) < EVENTS_HELD:
            self._held.append(item)
            self._filled.set()
        else:
            self.lose()

    def lose(self) -> None:
        """Know that something is missing. What is held is of no use: who reads it begins anew."""
        self._held.clear()
        self._lost = True
        self._filled.set()

    async def wait(self) -> None:
        """Wait until there is something."""
        if self._filled.is_set():  # more than one slice
            await trio.lowlevel.checkpoint()
        else:
            await self._filled.wait()
            await trio.sleep(self._gather)

    def take(self) -> tuple[list[Item], bool]:
        """Take a slice, oldest first; and whether something before it is missing."""
        taken, self._held = self._held[:SLICE], self._held[SLICE:]
        lost, self._lost = self._lost, False
        if not self._held:
            self._filled = trio.Event()
        return taken, lost


class _Note(NamedTuple):
    """An event whose row may have to be written yet."""

    kind: EventKind
    watches: tuple[int, ...]
    time: float
    limit: str | None
    row: str | Flow


class Watch:
    """What is watched of a worker's flows.

    Args:
        describe: writes a flow's row.

    """

    def __init__(self, describe: Callable[[Flow], str]) -> None:
        self._describe = describe
        self._queries: dict[int, FlowQuery | None] = {}  # None: that of every flow
        self._struck: dict[int, set[Limit]] = {}
        self._notes: Pending[_Note] = Pending(GATHER)

    def become(self, queries: Mapping[int, FlowQuery]) -> None:
        """Watch for these from now on, and for nothing else."""
        self._queries = {
            number: None if query == EVERY_FLOW else query for number, query in queries.items()
        }
        if not queries:
            self._struck.clear()

    def watches(self, flow: Flow) -> tuple[int, ...]:
        """The numbers of the queries that a flow matches."""
        return tuple(
            number
            for number, query in self._queries.items()
            if query is None or query.matches(flow)
        )

    def note(self, kind: EventKind, flow: Flow, limit: Limit | None = None) -> None:
        """Tell what has happened to a flow just now."""
        watches = self.watches(flow)
        if watches:
            row = flow if kind is EventKind.CLOSED else self._describe(flow)
            self._notes.put(_Note(kind, watches, time(), limit, row))

    def closed(self, flow: Flow) -> None:
        """Tell of a flow that has ended."""
        self._struck.pop(flow.id, None)
        self.note(EventKind.CLOSED, flow)

    def struck(self, flow: Flow, limit: Limit) -> None:
        """Tell of a flow that a limit has struck: once of each limit, for it may strike often."""
        known = self._struck.setdefault(flow.id, set())
        if limit not in known:
            known.add(limit)
            self.note(EventKind.LIMITED, flow, limit)

    async def wait(self) -> None:
        """Wait until there is something to tell."""
        await self._notes.wait()

    def take(self) -> Told:
        """A slice of what there is to tell."""
        notes, lost = self._notes.take()
        return Told([self._event(*note) for note in notes], lost)

    def _event(
        self,
        kind: EventKind,
        watches: tuple[int, ...],
        when: float,
        limit: str | None,
        row: str | Flow,
    ) -> FlowEvent:
        text = self._describe(row) if isinstance(row, Flow) else row
        return FlowEvent(kind, watches, round(when, 6), limit, text)
