"""Taking turns: ``round_robin``.

Where all weigh the same, a cursor goes round. Where they do not, the turns are spread smoothly:
with weights 5, 1, 1 the order is a a b a c a a, not a a a a a b c, so that a heavy endpoint is not
hit by bursts. Each endpoint saves up its weight with every turn; who has saved most is next, and
pays what all have saved together. So the savings always sum to 0, and in as many turns as the
weights sum to each endpoint has as many as it weighs, exactly.

What was saved is kept when the endpoints change, less what those that stay have saved on average: a
change must not begin again with the first one, nor favour one that is new.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.core.sources import SourceKey
    from proxy.core.upstream import Endpoint


class Turns:
    """Endpoints in turn."""

    __slots__ = ("_endpoints", "_next", "_saved", "pick")

    by_source: Final = False

    def __init__(self) -> None:
        self._endpoints: tuple[Endpoint, ...] = ()
        self._next = 0
        self._saved: dict[Endpoint, int] = {}
        self.pick = self._pick_next

    def become(self, endpoints: Sequence[Endpoint]) -> None:
        """Choose among these; the turn goes on where it is."""
        self._endpoints = tuple(endpoints)
        if len({each.share for each in endpoints}) > 1:
            saved = [self._saved.get(each, 0) for each in endpoints]
            average = sum(saved) // len(saved)
            self._saved = {
                each: of_each - average for each, of_each in zip(endpoints, saved, strict=True)
            }
            self.pick = self._pick_weighed
        else:
            self._saved = {}
            self.pick = self._pick_next

    def _pick_next(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> Endpoint | None:
        endpoints = self._endpoints
        for _ in endpoints:
            endpoint = endpoints[self._next % len(endpoints)]
            self._next = (self._next + 1) % len(endpoints)
            if endpoint not in tried:
                return endpoint
        return None

    def _pick_weighed(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> Endpoint | None:
        saved = self._saved
        total, richest = 0, None
        for endpoint in self._endpoints:
            if endpoint in tried:
                continue
            total += endpoint.share
            saved[endpoint] += endpoint.share
            if richest is None or saved[endpoint] > saved[richest]:
                richest = endpoint
        if richest is not None:
            saved[richest] -= total
        return richest
