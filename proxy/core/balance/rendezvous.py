"""The same endpoint for the same source, by highest random weight: ``source``.

Each endpoint draws a number for the source, by a hash of both, and the highest wins. So a source
stays where it is as long as its endpoint is usable; when that goes, its sources are spread over all
others, and no other source moves; when it comes back, exactly they come back. Every process and
machine with the same endpoints chooses alike, in whatever order they are written.

An endpoint of weight w must win w times as often. Its number u, even between 0 and 1, counts as
-w / ln u: the time of the first event of a process with rate w is exponential, and of several the
first is each one's with the chance of its rate.

A choice looks at every endpoint: about a microsecond for each. For many take ``maglev``.

Source: D. Thaler and C. Ravishankar, "Using name-based mappings to increase hit rates" (1998).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import log
from typing import TYPE_CHECKING, Final

from proxy.core.balance.hashing import WORD, hash_of, identity_of, mixed

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.sources import SourceKey


class Rendezvous:
    """For each source its endpoint, which another one's coming or going seldom changes."""

    __slots__ = ("_endpoints",)

    by_source: Final = True

    def __init__(self) -> None:
        self._endpoints: tuple[tuple[Endpoint, int], ...] = ()

    def become(self, endpoints: Sequence[Endpoint]) -> None:
        """Choose among these."""
        self._endpoints = tuple((each, hash_of(identity_of(each))) for each in endpoints)

    def pick(self, tried: Collection[Endpoint], source: SourceKey, now: float) -> Endpoint | None:
        """Choose one; see ``Pick``."""
        key = hash_of(source)
        highest, winner = 0.0, None
        for endpoint, own in self._endpoints:
            if endpoint in tried:
                continue
            number = (mixed(key, own) + 1) / (WORD + 2)
            score = -endpoint.share / log(number)
            if score > highest:
                highest, winner = score, endpoint
        return winner

    def foresee(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> tuple[Endpoint, ...]:
        """Who would be picked next; see ``Picker``."""
        picked = self.pick(tried, source, now)  # which changes nothing either
        return () if picked is None else (picked,)
