"""What was counted before us, by workers whose flows we go on with: so that no counter falls.

A predecessor counted its flows from their beginning, and we go on from where they came to us. So
its last reading is added to each of ours. While flows drain there, it goes on to count, and each
new reading of it takes the place of the one before.

What it read is only data, perhaps of another version; what cannot be added is left out.

Those that have ended are one reading, however many lives there were: each life hands it on to the
next, and adds it to whatever is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.core.flow import CloseReason
from proxy.engine.merge import beside_counters, merge_counters, only_names_of, retire_counters

if TYPE_CHECKING:
    from proxy.engine.port import RelayCounters


class Forebears:
    """The readings of predecessors."""

    def __init__(self) -> None:
        self._readings: dict[str, RelayCounters] = {}  # of those that live
        self._ended: list[RelayCounters] = []  # the sum of all others, once there are any

    def remember(self, name: str, reading: Any) -> bool:
        """Add what a predecessor counted from now on; false if it cannot be read.

        Args:
            name: what it is known by.
            reading: its last.

        """
        try:
            merge_counters([reading, reading])
            self._readings[name] = beside_counters(reading)
        except (KeyError, TypeError, ValueError, AttributeError):
            return False
        return True

    def settle(self, name: str) -> None:
        """Know that a predecessor has ended, and that its flows have."""
        last = self._readings.pop(name, None)
        if last is not None:
            ended = retire_counters(last, CloseReason.DRAINED)
            self._ended = [merge_counters([*self._ended, ended])]

    def added_to(self, reading: RelayCounters, *, former: bool = False) -> RelayCounters:
        """A reading of ours, and what was counted before.

        Args:
            reading: ours.
            former: with names that are not among ours.

        """
        if not (self._readings or self._ended):
            return reading
        total = merge_counters([reading, *self.readings()])
        return total if former else only_names_of(reading, total)

    def readings(self) -> list[RelayCounters]:
        """That of each who lives, and that of all others together."""
        return [*self._readings.values(), *self._ended]
