"""Alarms: moments at which the pump must act though no socket has news.

For what the timer wheel is too coarse: who has been sent so much that its bandwidth allows no more
now is served again in a millisecond or ten, not in fifty. The pump asks for ``next`` before it
sleeps, and rings after a round in which that moment has come. A kernel's sleep ends up to a
millisecond late, by the grain of epoll_wait(2).

A heap, in which an alarm that was set anew leaves its former entry behind; that is thrown away
when its moment comes. Moments are less than a second away, and a sleeper sets another one when it
was woken, or when an earlier one has come up: so it holds few entries for each sleeper.
"""

from __future__ import annotations

import heapq
from math import inf
from typing import Protocol


class Sleeper(Protocol):
    """What can be woken; ``alarm`` belongs to the alarms, and is infinite while none is set."""

    alarm: float

    def wake(self, now: float) -> None:
        """Act; the alarm is off, and may be set again."""
        ...

    def crashed(self, error: Exception, now: float) -> None:
        """Take the consequences: ``wake`` raised."""
        ...


class Alarms:
    """The alarms of one worker, one for each sleeper.

    Attributes:
        next: when the first of them rings, or earlier, in monotonic seconds.

    """

    __slots__ = ("_heap", "_number", "next")

    def __init__(self) -> None:
        self.next = inf
        self._heap: list[tuple[float, int, Sleeper]] = []
        self._number = 0

    def set(self, sleeper: Sleeper, when: float) -> None:
        """Wake a sleeper at that moment, in place of any other; never, if it is infinite."""
        if sleeper.alarm == when:
            return
        sleeper.alarm = when
        if when < inf:
            self._number += 1  # sleepers cannot be compared
            heapq.heappush(self._heap, (when, self._number, sleeper))
            self.next = self._heap[0][0]

    def ring(self, now: float) -> None:
        """Wake everybody whose moment has come; one who sets a past moment is woken next time."""
        due: list[Sleeper] = []
        while self._heap and self._heap[0][0] <= now:
            when, _, sleeper = heapq.heappop(self._heap)
            if sleeper.alarm == when:
                sleeper.alarm = inf
                due.append(sleeper)
        for sleeper in due:
            try:
                sleeper.wake(now)
            except Exception as error:
                sleeper.crashed(error, now)
        self.next = self._heap[0][0] if self._heap else inf
