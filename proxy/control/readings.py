"""What workers have counted, those that have ended among them, so that no counter goes backwards.

Of a worker that ends the last reading is kept. Its flows are counted as ``internal``; or they live
on in the next one, which says how many it has. So is kept what it had counted for names that are
no more, in case they come again: *former* names, which only a whole reading shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.flow import CloseReason
from proxy.engine.merge import carry_counters, merge_counters, retire_counters, settle_counters

if TYPE_CHECKING:
    from proxy.engine.port import RelayCounters


class Readings:
    """The readings of so many workers, each of which is meant by its index.

    Args:
        workers: how many there are.

    Attributes:
        past: of those that are no more.

    """

    def __init__(self, workers: int) -> None:
        self.past: list[RelayCounters] = []
        self._last: list[RelayCounters | None] = [None] * workers
        self._bereft: list[RelayCounters | None] = [None] * workers  # whose flows live on
        self._shown: list[RelayCounters | None] = [None] * workers  # without former names
        self._unsettled = set[int]()  # whose former names have to be read once more

    def keep(self, index: int, reading: RelayCounters) -> None:
        """Keep the reading of a worker that is at work."""
        bereft, self._bereft[index] = self._bereft[index], None
        if bereft is not None:
            self.past.append(settle_counters(bereft, reading))
        self._last[index] = carry_counters(self._last[index], reading)
        before, self._shown[index] = self._shown[index], reading
        if _rows(reading) < _rows(before):  # a former name's last flow has ended
            self._unsettled.add(index)

    def shown(self, index: int) -> RelayCounters | None:
        """The last reading of a worker that is at work, as it was; None if there is none."""
        return self._shown[index]

    def keep_whole(self, index: int, reading: RelayCounters) -> None:
        """Keep one with former names."""
        self._last[index] = reading

    def expect_names(self) -> None:
        """Know that names may be no more, or others, in every worker."""
        self._unsettled |= set(range(len(self._last)))

    def take_unsettled(self, index: int) -> bool:
        """Whether a whole reading is wanted of a worker; once."""
        wanted = index in self._unsettled
        self._unsettled.discard(index)
        return wanted

    def lost(self, index: int, *, lives_on: bool) -> int | None:
        """Know that a worker has ended; return how many flows are lost, None if they live on.

        Args:
            index: of the worker.
            lives_on: whether its flows do, in the next one.

        """
        last, self._last[index] = self._last[index], None
        self._shown[index] = None
        bereft = self._bereft[index]
        if last is not None:
            fate = None if lives_on else CloseReason.INTERNAL
            self.past = [merge_counters([*self.past, retire_counters(last, fate)])]
            self._bereft[index] = last if lives_on else None
        elif bereft is not None and not lives_on:  # nobody was left to say what lived on
            self.past.append(settle_counters(bereft, merge_counters(())))
            self._bereft[index] = None
        return None if lives_on else _flows(last or bereft)


def _flows(reading: RelayCounters | None) -> int:
    rows = () if reading is None else reading["listeners"]
    return sum(count for row in rows for count in row["live"].values())


def _rows(reading: RelayCounters | None) -> int:
    if reading is None:
        return 0
    of_listeners = len(reading["listeners"]) + len(reading["routes"])
    return of_listeners + len(reading["endpoints"]) + len(reading["queues"])
