"""What flows carry: pseudo-random bytes, of which both ends know what stands at each place.

So a receiver compares each piece with what must be there as it comes, which finds a lost, repeated
or exchanged byte at once and at its place, where a hash would only tell at the end that there was
one. All sequences are one block, entered at different places and begun again at its end; its length
is a prime, so no loss of a round number of bytes can hide in it.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import Final

PERIOD: Final = 4_194_319
"""Bytes until a sequence begins again: more than anything lost at once."""

PROBE: Final = 24
"""Bytes that are looked for when others are there than must be; no place has them by chance."""

NEAR: Final = 1 << 20
"""Bytes; what is further away is taken for something else than a loss or a repetition."""


@lru_cache(maxsize=1)
def _block(seed: int) -> bytes:
    """The block twice, so that a piece that goes beyond its end is one slice."""
    return Random(seed).randbytes(PERIOD) * 2


class Sequence:
    """The bytes of one direction of one flow.

    Args:
        seed: of all sequences of a run.
        name: of this one.

    """

    __slots__ = ("_block", "_start")

    def __init__(self, seed: int, name: str) -> None:
        self._block = _block(seed)
        self._start = Random(f"{seed} {name}").randrange(PERIOD)

    def piece(self, position: int, size: int) -> bytes:
        """The bytes from a place on; less than a period."""
        at = (self._start + position) % PERIOD
        return self._block[at : at + size]

    def fault(self, position: int, data: bytes) -> tuple[int, str] | None:
        """Where data that should stand at a place differs first, and what it looks like."""
        wanted = self.piece(position, len(data))
        if wanted == data:
            return None
        first = next(place for place, byte in enumerate(data) if byte != wanted[place])
        return position + first, self._describe(position + first, data[first : first + PROBE])

    def _describe(self, position: int, found: bytes) -> str:
        if len(found) < PROBE:
            return f"other bytes: {found.hex()}"
        place = self._block.find(found)
        if place < 0:
            return f"bytes that are nowhere in it: {found.hex()}"
        ahead = (place - self._start - position) % PERIOD
        if ahead < NEAR:
            return f"{ahead} bytes lost"
        if PERIOD - ahead < NEAR:
            return f"{PERIOD - ahead} bytes repeated"
        return "bytes of another place or flow"
