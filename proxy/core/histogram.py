"""Histograms: counts of observations by upper bound, each with an example of a flow.

A bucket remembers the last flow that fell into it, as an *exemplar*: whoever sees a slow one on a
chart finds the flow behind it in the table or in the log. It is one tuple a bucket, so memory does
not grow with the flows, and an observation costs a third of a microsecond.

Times are monotonic seconds, which all processes of a host share.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, TypeAlias, TypedDict

Exemplar: TypeAlias = tuple[int, float, float]
"""The flow's id, the value observed, and when."""

DURATION_BOUNDS: Final = (0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
"""Seconds; a flow lives from a DNS exchange to a working day."""

CONNECT_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Seconds; from loopback to a SYN that was sent again."""

RTT_BOUNDS: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Seconds; from a machine beside this one to a phone in a train."""

BYTES_BOUNDS: Final = (64, 512, 4096, 32768, 262144, 2**21, 2**24, 2**27, 2**30)
"""Bytes of one direction of a flow: powers of eight, from a DNS question to a backup.
Whole numbers: comparing one with a float takes twice as long."""


class Histogram:
    """Counts of observations by upper bound, with their sum; the last bucket has no bound."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, flow: int, now: float) -> None:
        """Count one observation of a flow; a value equal to a bound lies within it."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.exemplars[bucket] = (flow, value, now)
        self.sum += value

    def snapshot(self) -> HistogramSnapshot:
        """Return a copy that no later observation changes."""
        return {
            "bounds": list(self.bounds),
            "counts": list(self.counts),
            "sum": self.sum,
            "exemplars": list(self.exemplars),
        }


class HistogramSnapshot(TypedDict):
    """``counts`` and ``exemplars`` have one more item than ``bounds``: what lies above the last."""

    bounds: list[float]
    counts: list[int]
    sum: float
    exemplars: list[Exemplar | None]


def add_histograms(one: HistogramSnapshot, other: HistogramSnapshot) -> HistogramSnapshot:
    """Add up what was observed in two places; of the exemplars the later ones stay."""
    assert one["bounds"] == other["bounds"], "workers of different versions"
    exemplars = zip(one["exemplars"], other["exemplars"], strict=True)
    return {
        "bounds": one["bounds"],
        "counts": [a + b for a, b in zip(one["counts"], other["counts"], strict=True)],
        "sum": one["sum"] + other["sum"],
        "exemplars": [_later(*pair) for pair in exemplars],
    }


def _later(one: Exemplar | None, other: Exemplar | None) -> Exemplar | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda exemplar: (exemplar[2], exemplar))
