"""Ceilings of bandwidth: a rate in the form that shaping and policing want.

What is moved at once is a *piece*: large enough to be worth a wake-up, small enough to be smooth.
Where many share a ceiling, pieces are cut down to a *quantum*.

Units: bytes, seconds, bytes a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import Final

from proxy.core.rate import Rate

SLACK: Final = 0.05
"""Seconds that ``serve`` may be late without loss, and that a share should wait for its turn."""

PAUSE: Final = 0.001
"""Seconds between two calls of ``serve``: a thousand wake-ups a second are enough."""

GRANT_MAX: Final = 128 * 1024
"""More at once saves nothing, and makes the others wait."""

GRANT_MIN: Final = 1448
"""A segment of Ethernet. Less at once would be fairer still; it costs the same system calls."""

PIECE_MIN: Final = 2.0
"""Bytes; half of it can still be granted."""

GRANTS_A_PIECE: Final = 16
"""How finely a piece is divided among many at most: this bounds the grants in a second."""

LEASE_MAX: Final = 1 << 20
"""Bytes of a lease: a look at the books for each MiB costs nothing that could be measured."""

LEASES_A_BURST: Final = 4
"""A lease is no more than so much of a burst: what is booked late, all at once, is no more."""

FEW: Final = 4
"""Datagrams. A bucket that holds fewer is filled with one more; see ``after_datagram``."""

CALM: Final = 0.75
"""Of a burst; while a policer has so much, nobody wants too much, and nothing is noted."""


def piece_of(per_second: float) -> float:
    """How many bytes are worth a wake-up at this rate.

    The square root is between two ends: equal times, which are choppy when slow, and equal sizes,
    which are too many when fast. 64 kbit/s move 400 bytes each 50 ms, 10 Mbit/s 12.5 kB each 10 ms,
    1 Gbit/s 125 kB each ms.
    """
    at_least, at_most = per_second * PAUSE, per_second * SLACK
    return max(PIECE_MIN, min(max(sqrt(125 * per_second), at_least), at_most))


def shaping_rate(per_second: float) -> Rate:
    """A ceiling with its default burst: what may come together while ``serve`` is late."""
    return Rate(per_second, per_second * SLACK + piece_of(per_second))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeRates:
    """The ceilings of a listener's direction, in bytes a second; None is no ceiling.

    Attributes:
        listener: of all its flows together.
        source: of each source, that is of all flows of one prefix of clients.
        flow: of each flow that has none of its own.

    """

    listener: Rate | None = None
    source: Rate | None = None
    flow: Rate | None = None


class Ceiling:
    """A rate that may change, shared by all that have it: so a reload costs nothing per flow.

    It is the rate in the form that the fast path wants, where a bucket's missing bytes are the time
    it *owes*, ``full_at - now``. No rate is one without end, and needs no case of its own there.

    Attributes:
        rate: as it was told.
        per_second: of the rate.
        burst: of the rate.
        cost: seconds that a byte costs.
        whole: seconds that fill the bucket.
        piece: bytes that are worth a wake-up.
        quantum: bytes of a grant where many share, at least.
        least: bytes that are worth a grant at all; half a piece at most, so that who wakes has
            them, whatever was rounded.
        lease: bytes that may be moved before they are booked; see ``core.shaper``.
        first_lease: the same of a new bucket, which holds a piece.
        new: what a new bucket owes, which holds a piece. Were it empty, each new flow would wait
            for its first byte; full, it would begin with a burst. 10 seconds bring 100.5 % at most.
        at_lease: what a bucket owes that holds a lease.
        calm_lease: bytes that may pass a policer before they are booked; half of what is above
            ``CALM``, so that who stays below the ceiling has a lease always.
        at_calm: what a bucket owes that is calm still when all of that has passed.
        at_piece: what a bucket owes that holds a piece.
        at_least: what a bucket owes that holds the least.
        at_most: what a bucket owes that holds the largest grant; -inf if none does.

    """

    __slots__ = (
        "at_calm",
        "at_lease",
        "at_least",
        "at_most",
        "at_piece",
        "burst",
        "calm_lease",
        "cost",
        "first_lease",
        "lease",
        "least",
        "new",
        "per_second",
        "piece",
        "quantum",
        "rate",
        "whole",
    )

    def __init__(self, rate: Rate | None) -> None:
        self.become(rate)

    def become(self, rate: Rate | None) -> None:
        """Have another rate, or none.

        Nobody is told: who waits for the old one looks again when that time is over, a piece later.
        The debt stays as a time, so a bucket may be overdrawn by a byte when it is next looked at.
        """
        self.rate = rate
        self.per_second = self.burst = self.whole = inf
        self.at_piece = self.at_least = self.at_most = self.at_lease = self.at_calm = inf
        self.cost = self.new = 0.0
        self.lease = self.first_lease = self.calm_lease = LEASE_MAX
        self.piece, self.quantum, self.least = inf, float(GRANT_MIN), 0.0
        if rate is None:
            return
        assert rate.burst >= PIECE_MIN
        self.per_second, self.burst = rate
        self.cost = 1 / rate.per_second
        self.whole = rate.burst * self.cost
        self.piece = min(piece_of(rate.per_second), rate.burst)
        self.quantum = max(GRANT_MIN, self.piece / GRANTS_A_PIECE)
        self.least = min(self.piece / 2, self.quantum)
        self.at_piece = (rate.burst - self.piece) * self.cost
        self.at_least = (rate.burst - self.least) * self.cost
        self.at_most = (rate.burst - GRANT_MAX) * self.cost if rate.burst >= GRANT_MAX else -inf
        self.new = self.at_piece
        self.lease = int(min(LEASE_MAX, rate.burst / LEASES_A_BURST))
        self.first_lease = int(min(self.lease, self.piece))
        self.at_lease = (rate.burst - self.lease) * self.cost
        spare = (1 - CALM) * rate.burst
        self.calm_lease = int(min(LEASE_MAX, spare / 2))
        self.at_calm = (spare - self.calm_lease) * self.cost

    def after_lease(self, full_at: float, moved: int, now: float) -> float:
        """When a bucket is full again of which so much was moved by a lease.

        No lease takes more than the bucket holds. One of before the ceiling changed may have: of a
        MiB that was free the bucket would be empty for two minutes when it is 64 kbit/s now.
        """
        return min(max(full_at, now) + moved * self.cost, now + self.whole)

    def after_datagram(self, full_at: float, size: int, now: float) -> float:
        """When a bucket is full again that let a datagram pass.

        Datagrams come when they come, and whole. A bucket of a few of them is often full before the
        next is there, and what comes meanwhile would be lost: of 64 kbit/s those of 1400 bytes got
        57 to 85 %. So for as much as one more the time counts for which it has been full.
        """
        cost = size * self.cost
        since = now - cost if self.burst < FEW * size else now
        return max(full_at, since) + cost

    def tokens(self, owed: float) -> float:
        """Bytes in a bucket that owes so much, and below 0 owes nothing."""
        return self.burst if owed <= 0 else (self.whole - owed) * self.per_second
