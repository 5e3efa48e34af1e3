"""Memory that outlives a worker: the buffer that all its flows share, and the mark.

Both are anonymous shared memory, made before the worker's standby is cloned (see ``standby``), so
it has them at the same place. The *mark* is one number: which leg is about to receive into the
buffer, and how many bytes it had received before. So if the worker is killed at any moment after
that, the kernel's counters tell what of the buffer is that leg's last chunk; see ``core.crossing``.
Only legs of flows that shall live on set it; see ``surviving``.

The number is stored in one instruction: it is never seen half-written.
"""

from __future__ import annotations

import mmap
from typing import Final, NamedTuple

BUFFER_SIZE: Final = 256 * 1024
"""Bytes; beyond this a larger receive saves no more CPU per byte."""

BUFFER: Final = memoryview(mmap.mmap(-1, BUFFER_SIZE))

MARK: Final = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

BYTES_BITS: Final = 45
"""For the count of bytes, modulo 35 TB, of which a receive adds 256 KiB at most; above it is the
place, of which there are ``will.RECORDS`` times two, and which is 0 for nobody."""

LOW: Final = (1 << BYTES_BITS) - 1


class Mark(NamedTuple):
    """A mark, taken apart.

    Attributes:
        will: the number of the will that it is about.
        record: of the flow in the will; -1 if no flow's.
        leg: 0 for the client's, 1 for the endpoint's.
        before: bytes that the leg had received, modulo ``LOW`` + 1.

    """

    will: int
    record: int
    leg: int
    before: int

    def before_of(self, total: int) -> int:
        """Bytes that the leg had received before; it has received ``total`` now."""
        return total - ((total - self.before) & LOW)


def place_of(record: int, leg: int) -> int:
    """What a leg's mark begins with."""
    return (2 * record + leg + 1) << BYTES_BITS


def leg_at(place: int) -> tuple[int, int]:
    """The record and the leg whose mark begins with this."""
    number = (place >> BYTES_BITS) - 1
    return number >> 1, number & 1


def read_mark() -> Mark:
    """The mark as it was set last."""
    value = MARK[0]
    return Mark(MARK[1], *leg_at(value), value & LOW)


def take_mark(will: int) -> None:
    """Have marks be about records of this will; the buffer holds nothing of anybody's."""
    MARK[0] = 0
    MARK[1] = will
