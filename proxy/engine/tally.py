"""The tally: which flows have moved bytes since they were last looked at, for live rates.

A flow does not tell what it moves; that would cost something for every chunk. It is looked at, once
a second at most and only while somebody wants rates: a quarter of a microsecond a flow, in slices
that give way to the relay. What is told are counts, not differences, so that whoever misses a
look has lost nothing once the next one is told.

``MOVED_MAX`` flows are told at once, those that moved most first. The others stay where they were
in the books, so that what they move adds up until it is their turn.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.core.flow import Flow

MOVED_MAX: Final = 2000
"""Flows told at once, by each worker: a quarter of a megabyte a second, and ten milliseconds."""


class Tally:
    """The bytes that each live flow of a worker had moved when it was last told."""

    def __init__(self) -> None:
        self._told: dict[int, int] | None = None
        self._looked: dict[int, int] = {}
        self._moved: list[tuple[int, Flow]] = []

    def look(self, flows: Iterable[Flow]) -> None:
        """Look at some of the live flows; each is looked at once between two ``settle``."""
        told = self._told
        for flow in flows:
            count = flow.bytes
            if told is None:
                self._looked[flow.id] = count
                continue
            before = self._looked[flow.id] = told.get(flow.id, 0)
            if count != before:
                self._moved.append((count - before, flow))

    def settle(self) -> tuple[list[Flow], int]:
        """Every live flow has been looked at: which are told, and how many moved beside them."""
        moved = heapq.nlargest(MOVED_MAX, self._moved, key=lambda each: each[0])
        omitted = len(self._moved) - len(moved)
        for change, flow in moved:
            self._looked[flow.id] += change
        self._told, self._looked, self._moved = self._looked, {}, []
        return [flow for _, flow in moved], omitted

    def forget(self) -> None:
        """Nobody wants to know any more."""
        self._told, self._looked, self._moved = None, {}, []
