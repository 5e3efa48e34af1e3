"""What the workers of one sockpair know of each other: a page of numbers in shared memory.

Ceilings of a listener as a whole hold over all its workers, and a worker that has to admit a flow
cannot ask around. So each *tells* some numbers of each listener: how many flows it has and how many
it has admitted ever (see ``proxy.core.admission`` for what follows), how much bandwidth it wants
(``proxy.core.parts``), and since when its first client waits (``proxy.engine.waiting``); and it
reads those of the others.

The memory is a memfd that the supervisor makes and every worker maps. It is an array of
``SLOTS`` x workers x ``NUMBERS`` whole numbers of 8 bytes, each written by one process alone, in
one store.
A listener has a *slot*, which the supervisor gives it; pages that nobody touches cost nothing.

Nothing here is trusted further than counts go: what a worker that has gone mad writes can let
others admit too many or too few flows, and no more.

Source: memfd_create(2); Intel SDM volume 3, 9.2.3.4: a store may be seen by others after a later
load, unless a locked instruction stands between.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from math import inf
from threading import Lock
from typing import Final

from proxy.core.parts import Want

SLOTS: Final = 1 << 16
"""Listeners with ceilings at once; a configuration of 4 MiB cannot have as many."""

NUMBERS: Final = 7
"""Of each worker in each slot: its flows, its admissions, for each direction what it wants, and
since when somebody waits."""

WANTS: Final = 2
"""Where the wants begin: the weight of who waits, and bytes a second, of either direction."""

WAITS: Final = 6
"""Where that is, in microseconds of the machine's monotonic clock; 0: nobody waits."""

NUMBER_SIZE: Final = 8


NOTHING: Final = Want(0, 0)


class Commons:
    """The shared memory, mapped. Owns the mapping, not the descriptor.

    Args:
        fd: of the memory.
        size: the number of workers.

    """

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self._map = mmap.mmap(fd, _bytes(size))
        self._numbers = memoryview(self._map).cast("q")

    def row(self, slot: int, index: int) -> Row:
        """A listener as worker ``index`` sees it."""
        return Row(self._numbers, slot * self.size * NUMBERS, self.size, index)

    def clear(self, slot: int) -> None:
        """Have a slot know nothing: it goes to another listener."""
        for index in range(self.size):
            row = self.row(slot, index)
            row.tell(0, 0)
            row.tell_wants((NOTHING, NOTHING))
            row.tell_waiting(inf)

    def leave(self, slot: int, index: int) -> None:
        """Have a worker that is lost have no flows."""
        row = self.row(slot, index)
        row.tell(0, row.own_admitted())
        row.tell_wants((NOTHING, NOTHING))
        row.tell_waiting(inf)

    def close(self) -> None:
        """Unmap."""
        self._numbers.release()
        self._map.close()


class Row:
    """One listener in all workers, seen from one of them; an ``Elsewhere``."""

    __slots__ = ("_fence", "_numbers", "_others", "_own")

    def __init__(self, numbers: memoryview, first: int, size: int, index: int) -> None:
        self._numbers = numbers
        self._own = first + NUMBERS * index
        self._others = [first + NUMBERS * other for other in range(size) if other != index]
        self._fence = Lock()

    def flows(self) -> int:
        """How many flows the others have told of."""
        numbers = self._numbers
        return sum(numbers[other] for other in self._others)

    def admitted(self) -> int:
        """How many flows they have admitted so far."""
        numbers = self._numbers
        return sum(numbers[other + 1] for other in self._others)

    def tell(self, flows: int, admitted: int) -> None:
        """Tell them the same of this worker, before anything that is read afterwards."""
        self._numbers[self._own] = flows
        self._numbers[self._own + 1] = admitted
        with self._fence:  # a locked instruction
            pass

    def tell_wants(self, wants: Sequence[Want]) -> None:
        """Tell them what this worker wants, of the original and of the reply direction."""
        for index, want in enumerate(wants):
            at = self._own + WANTS + 2 * index
            self._numbers[at] = round(want.weight)
            self._numbers[at + 1] = round(want.used)

    def wants(self, index: int) -> list[Want]:
        """What the others want of a direction: 0 is the original one, 1 the reply."""
        numbers, at = self._numbers, WANTS + 2 * index
        return [Want(numbers[other + at], numbers[other + at + 1]) for other in self._others]

    def waits_since(self, not_before: float) -> float:
        """Since when the first of the others' clients waits; what is from before is passed over."""
        numbers = self._numbers
        told = (numbers[other + WAITS] / 1e6 for other in self._others)
        return min((since for since in told if since and since >= not_before), default=inf)

    def tell_waiting(self, since: float) -> None:
        """Tell them since when the first client of this worker waits."""
        self._numbers[self._own + WAITS] = 0 if since == inf else round(since * 1e6)

    def own_admitted(self) -> int:
        """What this worker told of admissions last."""
        return self._numbers[self._own + 1]


def make_commons(size: int) -> int:
    """Make the memory for so many workers; its descriptor is the caller's."""
    fd = os.memfd_create("sockpair-commons", os.MFD_CLOEXEC)
    os.ftruncate(fd, _bytes(size))
    return fd


def _bytes(size: int) -> int:
    return SLOTS * size * NUMBERS * NUMBER_SIZE
