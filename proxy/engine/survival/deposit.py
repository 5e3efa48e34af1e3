"""Deposits: pieces of shared memory for bytes that must outlive the worker.

Sizes are powers of two, and what was given back is used again for the same size; so nothing moves,
and to take or give back costs a list's ``pop`` or ``append``. The worker alone keeps these books;
who comes after it only reads what the will says, and begins a will, and deposits, of its own.
"""

from __future__ import annotations

import mmap
from typing import Final

SMALLEST: Final = 9
"""A piece has 512 bytes at least, as a power of two."""

LARGEST: Final = 18
"""And 256 KiB at most: a chunk."""

AREA: Final = 1 << 30
"""Bytes of address space, not of memory: 4,000 stalled directions with a largest chunk each."""

KEPT_PIECES: Final = 64
"""Of each size, that keep their memory while nobody uses them; others give it back."""


class Deposits:
    """The pieces of one area.

    Args:
        memory: in which the area is.
        start: of the area.

    """

    def __init__(self, memory: mmap.mmap, start: int) -> None:
        self._memory = memory
        self._view = memoryview(memory)
        self._end = start + AREA
        self._next = start
        self._free: dict[int, list[int]] = {size: [] for size in range(SMALLEST, LARGEST + 1)}

    def take(self, data: memoryview | bytes) -> int:
        """Deposit a copy; return where it is, or 0 if there is no room."""
        power = _power_of(len(data))
        if power > LARGEST:
            return 0
        free = self._free[power]
        if free:
            at = free.pop()
        elif self._next + (1 << power) <= self._end:
            at = self._next
            self._next += 1 << power
        else:
            return 0
        self._view[at : at + len(data)] = data
        return at

    def give_back(self, at: int, size: int) -> None:
        """Have a piece, of so many bytes that were deposited, to use again."""
        power = _power_of(size)
        free = self._free[power]
        if len(free) >= KEPT_PIECES and 1 << power >= mmap.PAGESIZE:
            start = -(-at // mmap.PAGESIZE) * mmap.PAGESIZE
            self._memory.madvise(mmap.MADV_REMOVE, start, at + (1 << power) - start)
        free.append(at)


def _power_of(size: int) -> int:
    return max(SMALLEST, (size - 1).bit_length())
