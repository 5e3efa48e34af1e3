"""The better of two that chance names: ``random``.

Two different endpoints are drawn, each with the chance of its weight, and the one with fewer live
flows for its weight is chosen; of equals, the first drawn. That is nearly as even as the least of
all, at a cost that does not grow with their number; and where several proxies choose for
themselves, they do not all choose the one that is idle at the moment.

Source: M. Mitzenmacher, "The power of two choices in randomized load balancing" (2001).
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.sources import SourceKey


class TwoChoices:
    """The better of two endpoints drawn at random.

    Args:
        random: gives a number from 0 to less than 1, evenly.

    """

    __slots__ = ("_bounds", "_endpoints", "_random")

    by_source: Final = False

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._endpoints: tuple[Endpoint, ...] = ()
        self._bounds: list[int] = []

    def become(self, endpoints: Sequence[Endpoint]) -> None:
        """Choose among these."""
        self._endpoints = tuple(endpoints)
        self._bounds = _bounds(endpoints)

    def pick(self, tried: Collection[Endpoint], source: SourceKey, now: float) -> Endpoint | None:
        """Choose one; see ``Pick``."""
        endpoints: Sequence[Endpoint] = self._endpoints
        bounds = self._bounds
        if tried:
            endpoints = [each for each in endpoints if each not in tried]
            bounds = _bounds(endpoints)
        if len(endpoints) < 2:
            return endpoints[0] if endpoints else None
        first = bisect(bounds, self._drawn(bounds[-1]))
        one = endpoints[first]
        point = self._drawn(bounds[-1] - one.share)  # among the others
        if point >= bounds[first] - one.share:
            point += one.share
        # Rounding may bring the point to the very end, which is nobody's part.
        other = endpoints[bisect(bounds, point, hi=len(bounds) - 1)]
        return other if other.flows * one.share < one.flows * other.share else one

    def foresee(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> tuple[Endpoint, ...]:
        """Who would be picked next; see ``Picker``."""
        left = [each for each in self._endpoints if each not in tried]
        if len(left) < 2:
            return tuple(left)
        # Who has more flows for its weight than each of the others loses to any of them.
        return tuple(
            each
            for each in left
            if any(
                other.flows * each.share >= each.flows * other.share
                for other in left
                if other is not each
            )
        )

    def _drawn(self, count: int) -> int:
        """One of so many tickets; the product may be rounded up to their number."""
        return min(int(self._random() * count), count - 1)


def _bounds(endpoints: Sequence[Endpoint]) -> list[int]:
    """Where the part of each ends, if all their shares are laid end to end."""
    return list(accumulate(each.share for each in endpoints))
