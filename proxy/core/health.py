"""What active checks say of an endpoint: a state that changes by results in a row.

The first result decides, so that a start does not wait. From then on ``rise`` good results in a row
make an endpoint up, and ``fall`` bad ones make it down.

Silence is a result of its own: a datagram that was not answered proves nothing. So it does not
break a row of others, or ICMP errors, which hosts send only so often, would never count up. But as
many silent results in a row as would otherwise lead there take an endpoint away from what was
proved before, be that up or down, and leave it unknown: flows may go there, as they may to one that
was never checked. Were it left down, a service that answers no probe could never come back.

Times are monotonic seconds.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from proxy.core.condition import Health

JITTER: Final = 0.1
"""The part of its interval by which a check may be early or late, so that checks do not meet."""


class Verdict(StrEnum):
    """What one check has shown."""

    PASSED = "passed"
    FAILED = "failed"
    SILENT = "silent"  # nothing, either way


class Result(NamedTuple):
    """How one check ended, and why, in a few words for people."""

    verdict: Verdict
    reason: str


class Thresholds(NamedTuple):
    """How many results in a row make an endpoint up, or down."""

    rise: int
    fall: int


LEADS_TO: Final = {
    Verdict.PASSED: Health.UP,
    Verdict.FAILED: Health.DOWN,
    Verdict.SILENT: Health.UNKNOWN,
}


class Checked:
    """An endpoint as its checks show it.

    Attributes:
        health: what they say.
        since: when that began; None before the first result.
        last: the last result.
        last_at: when it came.
        took: seconds that the last check took.
        verdicts: how often each was given.

    """

    __slots__ = ("_rows", "health", "last", "last_at", "since", "took", "verdicts")

    def __init__(self) -> None:
        self.health = Health.UNKNOWN
        self.since: float | None = None
        self.last: Result | None = None
        self.last_at = 0.0
        self.took = 0.0
        self.verdicts = dict.fromkeys(Verdict, 0)
        self._rows = dict.fromkeys(Verdict, 0)  # results in a row

    def learn(self, result: Result, now: float, took: float, thresholds: Thresholds) -> bool:
        """Know how a check ended; return whether the endpoint's health is another now.

        Args:
            result: how.
            now: when.
            took: seconds from its begin.
            thresholds: in force.

        """
        is_first = self.last is None
        self.last, self.last_at, self.took = result, now, took
        self.verdicts[result.verdict] += 1
        row = self._lengthen(result.verdict)
        health, before = LEADS_TO[result.verdict], self.health
        if not is_first and (health is before or row < self._needed(health, thresholds)):
            return False
        self.health, self.since = health, now
        self._rows = dict.fromkeys(Verdict, 0)
        return health is not before

    def _lengthen(self, verdict: Verdict) -> int:
        """Count a result in its row, and end those that it breaks."""
        for other in Verdict:
            if other is not verdict and verdict is not Verdict.SILENT:
                self._rows[other] = 0
        self._rows[verdict] += 1
        return self._rows[verdict]

    def _needed(self, health: Health, thresholds: Thresholds) -> int:
        """How many results in a row lead to another health."""
        if health is Health.UNKNOWN:
            return thresholds.fall if self.health is Health.UP else thresholds.rise
        return thresholds.rise if health is Health.UP else thresholds.fall


def pause(interval: float, dice: float) -> float:
    """Seconds until the next check.

    Args:
        interval: as configured.
        dice: a random number from 0 to 1.

    """
    return interval * (1 + JITTER * (2 * dice - 1))
