"""Rates: so much a second, and how much of it at once. A token bucket in one number.

A bucket that fills at ``per_second`` and holds ``burst`` is known by *when it will be full*: what
is missing now is the time until then, times the rate. That moment is the only state (the "virtual
scheduling" of the generic cell rate algorithm), so a source that is limited costs one float, time
is never added up and does not drift, and a change of the rate leaves the debt as a time.

Two ways to use one. A *ceiling* takes what is there or refuses: ``allows``, then ``spend``. A
*debt* is spent after the fact, as much as it was, and the next one waits: ``spend``, ``ready_at``.

Invariants: in any span of ``t`` seconds a ceiling passes at most ``burst + per_second * t``; what
was not used is kept up to ``burst`` and no further.

Times are monotonic seconds; what is counted is the user's affair: flows, datagrams, bytes.

Source: ITU-T I.371 Annex A, which shows that this and the leaky bucket are one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

DUST: Final = 1e-9
"""Seconds; what adding up times in floats may lack. A rate has at most a thousand times finer."""


class Rate(NamedTuple):
    """A rate with its burst.

    Attributes:
        per_second: more than 0.
        burst: what a full bucket holds, at least the largest amount that is asked for at once.

    """

    per_second: float
    burst: float

    def tokens(self, full_at: float, now: float) -> float:
        """What a bucket that will be full at ``full_at`` holds now; below 0 it is a debt."""
        return self.burst - max(0.0, full_at - now) * self.per_second

    def allows(self, full_at: float, amount: float, now: float) -> bool:
        """Whether so much may be taken now."""
        return now >= self.ready_at(full_at, amount)

    def ready_at(self, full_at: float, amount: float) -> float:
        """When so much may be taken, if nothing else is taken before."""
        return full_at - (self.burst - amount) / self.per_second - DUST

    def spend(self, full_at: float, amount: float, now: float) -> float:
        """Take so much, be it there or not; return when the bucket will be full now."""
        return max(full_at, now) + amount / self.per_second
