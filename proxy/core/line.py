"""A line: who waits, by a number, the least first and of equals the first come; any may step out.

A heap cannot let anybody go from its middle, so whoever does leaves its entry behind. Such an entry
is dropped when it comes to the front, or when more than half are such: what a flood of short flows
leaves behind is bounded, at O(1) amortised for each.

Invariants: the first entry is alive, so a line is empty exactly if its heap is; of the others at
least half are.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar


class Waiter:
    """Who can stand in a line, in one at a time.

    Attributes:
        line: where it waits; None if it does not.
        place: its entry there.

    """

    __slots__ = ("line", "place")

    def __init__(self) -> None:
        self.line: Line[Any] | None = None
        self.place: object = None


Who = TypeVar("Who", bound=Waiter)


class Line(Generic[Who]):
    """Those who wait, in order.

    Args:
        numbers: rising, so that those with equal keys keep their order.

    Attributes:
        heap: the entries: key, number, who. The first is always alive.

    """

    __slots__ = ("_gone", "_numbers", "heap")

    def __init__(self, numbers: Iterator[int]) -> None:
        self.heap: list[tuple[float, int, Who]] = []
        self._numbers = numbers
        self._gone = 0

    def __len__(self) -> int:
        return len(self.heap) - self._gone

    def __iter__(self) -> Iterator[Who]:
        """Everybody who waits, in no order."""
        return (who for entry in self.heap if (who := entry[2]).place is entry)

    @property
    def first(self) -> Who:
        """Who is next, if anybody waits."""
        return self.heap[0][2]

    def push(self, key: float, who: Who) -> None:
        """Let somebody who stands nowhere stand here."""
        entry = (key, next(self._numbers), who)
        who.line = self
        who.place = entry
        heappush(self.heap, entry)

    def drop(self, who: Who) -> None:
        """Let somebody who stands here go, from any place."""
        assert who.line is self
        place = who.place
        who.line = who.place = None
        heap = self.heap
        if heap[0] is not place:
            self._gone += 1
            self._compact()
            return
        heappop(heap)
        while heap and _is_gone(heap[0]):
            heappop(heap)
            self._gone -= 1

    def _compact(self) -> None:
        if self._gone > len(self.heap) // 2:
            self.heap = [entry for entry in self.heap if not _is_gone(entry)]
            heapify(self.heap)
            self._gone = 0


def _is_gone(entry: tuple[float, int, Waiter]) -> bool:
    return entry[2].place is not entry
