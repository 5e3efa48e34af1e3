"""The ways in a will: from a listener to an endpoint, by names, and what went over each.

A flow's record has only the number of its way; its names are written once, when the first flow goes
it. Beside them are sums over those flows that have ended, or went to another worker: what they had
moved here, which their records tell no more.

Whoever is killed is killed between any two instructions. So how many bytes of names there are is
written after them, and a way's number is in no record before that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from proxy.core.counters import ListenerCounters
    from proxy.core.endpoint import Endpoint

USED: Final = Struct("=Q")
"""First of all: how many bytes there are of names."""

NAMES_AT: Final = USED.size
NAMES_SIZE: Final = (1 << 20) - NAMES_AT
"""Bytes: some ten thousand ways; flows of further ones are not left behind."""

TOTALS_AT: Final = NAMES_AT + NAMES_SIZE
TOTALS_SIZE: Final = 1 << 20
TOTAL_NUMBERS: Final = 3
TOTAL: Final = Struct(f"={TOTAL_NUMBERS}Q")
"""Of a way: bytes of either direction, and flows that have finished in order."""

WAYS_MOST: Final = TOTALS_SIZE // TOTAL.size
SIZE_OF_WAYS: Final = TOTALS_AT + TOTALS_SIZE

KNOWN_MAX: Final = 10_000
"""Ways that are remembered by the objects at their ends, so that names are not looked up."""


class Way(NamedTuple):
    """From a listener to an endpoint, by their names; of datagrams the note tells the latter."""

    listener: str
    transport: str
    upstream: str
    endpoint: str


class Ways:
    """The ways of one will.

    Args:
        view: of the will's memory, which is zero at first.
        start: of the part of it that is ours, ``SIZE_OF_WAYS`` bytes.

    """

    def __init__(self, view: memoryview, start: int) -> None:
        self._view = view
        self._start = start
        self._totals = view[start + TOTALS_AT :][:TOTALS_SIZE].cast("Q")
        self._numbers: dict[Way, int] = {}
        self._known: dict[tuple[ListenerCounters, Endpoint], int] = {}

    def number_of(self, way: Way) -> int | None:
        """The number of a way, which is written down if it is new; None if there is no room."""
        known = self._numbers.get(way)
        return self._write(way) if known is None else known

    def between(self, counters: ListenerCounters, endpoint: Endpoint) -> int | None:
        """The number of the way from a listener to an endpoint; see ``number_of``."""
        known = self._known.get((counters, endpoint))
        if known is None:
            upstream = endpoint.counters.upstream
            way = Way(counters.listener, counters.transport, upstream, endpoint.name)
            known = self.number_of(way)
            if known is not None:
                if len(self._known) >= KNOWN_MAX:
                    self._known.clear()
                self._known[counters, endpoint] = known
        return known

    def count(self, number: int, original: int, reply: int, finished: int) -> None:
        """Know what a flow has moved on a way, and whether it finished in order: 1 or 0."""
        totals, at = self._totals, number * TOTAL_NUMBERS
        totals[at] += original
        totals[at + 1] += reply
        totals[at + 2] += finished

    def totals(self) -> Iterator[tuple[Way, tuple[int, int, int]]]:
        """Each way, and what ``count`` was told: bytes of either direction, and flows."""
        for number, way in enumerate(self.read()):
            at = self._start + TOTALS_AT + number * TOTAL.size
            original, reply, finished = TOTAL.unpack_from(self._view, at)
            yield way, (original, reply, finished)

    def read(self) -> list[Way]:
        """All of them, in the order of their numbers."""
        start = self._start + NAMES_AT
        text = bytes(self._view[start : start + self._used])
        return [Way(*json.loads(line)) for line in text.splitlines()]

    @property
    def _used(self) -> int:
        return int(USED.unpack_from(self._view, self._start)[0])

    def _write(self, way: Way) -> int | None:
        line = json.dumps(way).encode() + b"\n"
        used = self._used
        if used + len(line) > NAMES_SIZE or len(self._numbers) == WAYS_MOST:
            return None
        at = self._start + NAMES_AT + used
        self._view[at : at + len(line)] = line
        USED.pack_into(self._view, self._start, used + len(line))
        self._numbers[way] = len(self._numbers)
        return len(self._numbers) - 1
