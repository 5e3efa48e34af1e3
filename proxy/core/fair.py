"""A perfect divider in thought: who still owes how much of what was let through.

A *fluid* server passes everything that is given to it at a known speed, and serves all who have
something outstanding at the same time, each by its weight; so what is outstanding tells who has
had more than its part lately. Nothing is queued: those are numbers about bytes that went long ago.

One number says it for all: the *virtual* time rises by what is drained over the weights of those
who are busy, and whoever got ``size`` in is done when it has risen by ``size / weight`` more. So a
drain costs nothing for those who stay busy, and O(log n) for each who is done.

Units: bytes.

Source: A. Parekh, R. Gallager, "A generalized processor sharing approach to flow control" (1993).
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush, heapreplace


class Part:
    """One of those who share a fluid server.

    Attributes:
        weight: beside the others, more than 0; changed by ``Fluid.weigh``.
        done_at: the virtual time when nothing of it is outstanding.
        busy: something of it was, when the server was last drained.

    """

    __slots__ = ("busy", "done_at", "weight")

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.done_at = 0.0
        self.busy = False


class Fluid:
    """A server that is divided perfectly.

    Who leaves is not told: what it has outstanding drains away like the others', and then it is
    forgotten.

    Args:
        numbers: rising, to order those who are done together.

    """

    __slots__ = ("_busy", "_numbers", "_virtual", "_weight")

    def __init__(self, numbers: Iterator[int]) -> None:
        self._busy: list[tuple[float, int, Part]] = []  # when done, or an earlier time
        self._numbers = numbers
        self._virtual = 0.0
        self._weight = 0.0

    @property
    def weight(self) -> float:
        """Of all those who have something outstanding."""
        return self._weight if self._busy else 0.0

    def outstanding(self, part: Part) -> float:
        """How many bytes are not served yet of what a part was given."""
        return max(0.0, part.done_at - self._virtual) * part.weight

    def add(self, part: Part, size: float) -> None:
        """Give it so much more."""
        if not part.busy:
            part.busy = True
            part.done_at = self._virtual
            self._weight += part.weight
            heappush(self._busy, (part.done_at, next(self._numbers), part))
        part.done_at += size / part.weight

    def weigh(self, part: Part, weight: float) -> None:
        """Give a part another weight; what it has outstanding stays.

        It may be done earlier than was noted, so it is noted again, and what was noted first is
        passed over later.
        """
        if part.busy and weight != part.weight:
            part.done_at = self._virtual + self.outstanding(part) / weight
            self._weight += weight - part.weight
            heappush(self._busy, (part.done_at, next(self._numbers), part))
        part.weight = weight

    def drain(self, amount: float) -> None:
        """Serve so many bytes, or all there are."""
        busy = self._busy
        while busy:
            noted, _, part = busy[0]
            if not part.busy:  # it was noted twice
                heappop(busy)
                continue
            if noted < part.done_at:  # it was given more since
                heapreplace(busy, (part.done_at, next(self._numbers), part))
                continue
            needed = (noted - self._virtual) * self._weight
            if needed > amount:
                self._virtual += amount / self._weight
                return
            amount -= needed
            self._virtual = noted
            part.busy = False
            heappop(busy)
            self._weight -= part.weight
        self._weight = 0.0  # and not by subtraction, so that roundings do not add up
