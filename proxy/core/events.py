"""Events: what happens to flows, in the order it happened, for whoever watches; and the ring.

An event carries the flow's row, as it was at that moment. Events are numbered by a *ring*, which
keeps the last of them, so that readers need nothing but a cursor: the number of the last event they
have read. A reader who falls so far behind that its next event is gone is told so, and never gets
what comes after a hole as if there were none.

The numbers of a ring rise by one for each event, and once more for each hole. They begin at the
microsecond of the start, so that those of an earlier life of the process are never among them.

Times are Unix seconds.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final, Generic, NamedTuple, TypeVar

MICROSECONDS: Final = 1_000_000

Item = TypeVar("Item")


class EventKind(StrEnum):
    """What may happen to a flow."""

    OPENED = "opened"  # it was admitted, and entered the table
    ESTABLISHED = "established"  # TCP: the endpoint has accepted; now both pairs are known
    ASSURED = "assured"  # UDP: the endpoint has answered
    HALF_CLOSED = "half_closed"  # one side has ended its direction
    LIMITED = "limited"  # a limit has struck it, which had not yet
    CLOSED = "closed"  # it has ended, with its reason


class FlowEvent(NamedTuple):
    """What happened to a flow.

    Attributes:
        kind: what.
        watches: the numbers of the watches that it is for; see ``engine.watch``.
        time: Unix seconds.
        limit: the one that struck; None if none did.
        row: the flow's row, as JSON.

    """

    kind: EventKind
    watches: tuple[int, ...]
    time: float
    limit: str | None
    row: str


class Ring(Generic[Item]):
    """The last events, numbered.

    Args:
        limit: of how many are kept.
        start: Unix seconds; the numbers begin there.

    Attributes:
        newest: the number of the last event, or hole; a reader who begins now has this cursor.
        hole: the number of the last hole.

    """

    def __init__(self, limit: int, start: float) -> None:
        self._kept: deque[Item] = deque(maxlen=limit)
        self.newest = int(start * MICROSECONDS)
        self.hole = self.newest

    def put(self, item: Item) -> None:
        """Add what happened last."""
        self._kept.append(item)
        self.newest += 1

    def lose(self) -> None:
        """Know that something is missing here: nobody may read across this place."""
        self._kept.clear()
        self.newest += 1
        self.hole = self.newest

    def after(self, cursor: int, most: int) -> list[Item] | None:
        """What came after an event, oldest first; None if some of it is not here any more.

        Args:
            cursor: the number of the last event read.
            most: events given at once; each moves the cursor by one.

        """
        kept, waiting = self._kept, self.newest - cursor
        if not 0 <= waiting <= len(kept):
            return None
        first = len(kept) - waiting
        return [kept[place] for place in range(first, min(first + most, len(kept)))]
