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

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.sources import SourceKey


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
            self._saved = settled(self._saved, endpoints)
            self.pick = self._pick_weighed
        else:
            self._saved = {}
            self.pick = self._pick_next

    def foresee(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> tuple[Endpoint, ...]:
        """Who would be picked next; see ``Picker``."""
        endpoints = self._endpoints
        if self._saved:
            rivals = [each for each in endpoints if each not in tried]
            return (richest_of(self._saved, rivals),) if rivals else ()
        turn = (endpoints[(self._next + ahead) % len(endpoints)] for ahead in range(len(endpoints)))
        found = next((each for each in turn if each not in tried), None)
        return () if found is None else (found,)

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
        rivals = self._endpoints
        if tried:
            rivals = tuple(each for each in rivals if each not in tried)
        return next_in_turn(self._saved, rivals) if rivals else None


def next_in_turn(saved: dict[Endpoint, int], rivals: Sequence[Endpoint]) -> Endpoint:
    """Whose turn it is among these, which changes what they have saved; at least one."""
    total, richest, most = 0, rivals[0], None
    for endpoint in rivals:
        share = endpoint.share
        total += share
        saved[endpoint] = has = saved[endpoint] + share
        if most is None or has > most:
            richest, most = endpoint, has
    saved[richest] -= total
    return richest


def richest_of(saved: Mapping[Endpoint, int], rivals: Sequence[Endpoint]) -> Endpoint:
    """Who ``next_in_turn`` would say that it is, without a change; at least one."""
    return max(rivals, key=lambda each: saved[each] + each.share)


def settled(saved: dict[Endpoint, int], endpoints: Sequence[Endpoint]) -> dict[Endpoint, int]:
    """What these have saved, those who are new nothing, less the average of all."""
    kept = {each: saved.get(each, 0) for each in endpoints}
    average = sum(kept.values()) // max(1, len(kept))
    return {each: has - average for each, has in kept.items()}
