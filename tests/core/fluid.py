"""What a perfect divider would give, found the slow way: nothing is ever cut into pieces.

A level rises; whoever has all it wants, or can have, stays behind; when the capacity is used up,
what each has is its part. Found by halving, so that it shares no thought with what is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

STEPS = 200


class Hungry(NamedTuple):
    """One source: what its own ceiling is, its weight, and what each of its flows wants."""

    flows: Sequence[float]
    ceiling: float = inf
    weight: float = 1.0

    @property
    def demand(self) -> float:
        return min(self.ceiling, sum(self.flows))


def water(capacity: float, demands: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The parts at the level where all of the capacity is used, or all have what they want."""
    if sum(demands) <= capacity:
        return list(demands)
    low, high = 0.0, capacity / min(weights)
    for _ in range(STEPS):
        level = (low + high) / 2
        parts = [min(d, level * w) for d, w in zip(demands, weights, strict=True)]
        low, high = (level, high) if sum(parts) < capacity else (low, level)
    return [min(d, high * w) for d, w in zip(demands, weights, strict=True)]


def tree(capacity: float, sources: Sequence[Hungry]) -> list[list[float]]:
    """The part of each flow, by source."""
    parts = water(capacity, [one.demand for one in sources], [one.weight for one in sources])
    return [
        water(part, one.flows, [1.0] * len(one.flows))
        for part, one in zip(parts, sources, strict=True)
    ]


class Gauge:
    """A leaking bucket that watches what passes: it must never run over, by more than dust."""

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self.per_second, self.burst = per_second, burst
        self.level, self.at = 0.0, now

    def passed(self, size: float, now: float) -> None:
        self.level = max(0.0, self.level - (now - self.at) * self.per_second) + size
        self.at = now
        assert self.level <= self.burst * (1 + 1e-6) + 1e-3, "more than burst and rate together"
