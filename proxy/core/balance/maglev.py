"""The same endpoint for the same source, by one look into a table: ``maglev``.

Each endpoint has a permutation of the table's places, by two hashes of its name; they take turns to
claim the first place of theirs that is still free, until none is. Then every one has its part of
the places, and a change of the set moves little more than it must. The table is the same on every
machine that has the same endpoints, in whatever order they are written, so it does not matter which
machine of a fleet a client comes to.

Weights: in round k an endpoint claims as many places as bring it to k times its part of the
greatest weight. A choice is one hash and one look, however many endpoints there are; a change costs
a table, some milliseconds. Beside ``source`` it moves some that need not move: less than 2 % where
the table has ``PLACES`` or more for each endpoint, which is so up to 256 of them.

``SIZES`` are primes, since only then is every step a permutation. The size follows from how many
endpoints are *configured*, not from how many are usable: another size is another table.

An endpoint that is passed over for one flow leaves it to the next place of the table that is
another's.

Source: D. Eisenbud et al., "Maglev: a fast and reliable software network load balancer" (2016).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from proxy.core.balance.hashing import hash_of, identity_of

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.sources import SourceKey

SIZES: Final = (4099, 16411, 65537)

PLACES: Final = 256
"""Of the table, for each endpoint. With 200, and weights from 1 to 256 in one upstream, a change
moved up to 1.97 % that need not have moved; with 340, 1.47 %."""

OFFSET: Final = b"offset"
STEP: Final = b"step"


class Maglev:
    """For each source its endpoint, by a table.

    Args:
        size: of the table; see ``size_for``.

    """

    __slots__ = ("_size", "_table")

    by_source: Final = True

    def __init__(self, size: int) -> None:
        self._size = size
        self._table: list[Endpoint] = []

    def become(self, endpoints: Sequence[Endpoint]) -> None:
        """Choose among these."""
        self._table = filled(endpoints, self._size) if endpoints else []

    def pick(self, tried: Collection[Endpoint], source: SourceKey, now: float) -> Endpoint | None:
        """Choose one; see ``Pick``."""
        table = self._table
        if not table:
            return None
        place = hash_of(source) % self._size
        endpoint = table[place]
        if endpoint not in tried:
            return endpoint
        others = (table[place - self._size + ahead] for ahead in range(1, self._size))
        return next((each for each in others if each not in tried), None)

    def foresee(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> tuple[Endpoint, ...]:
        """Who would be picked next; see ``Picker``."""
        picked = self.pick(tried, source, now)  # which changes nothing either
        return () if picked is None else (picked,)


def size_for(configured: int) -> int:
    """Places of a table for so many endpoints, usable or not."""
    return next((size for size in SIZES if size >= PLACES * configured), SIZES[-1])


def filled(endpoints: Sequence[Endpoint], size: int) -> list[Endpoint]:
    """The table: whose each place is."""
    named = sorted((identity_of(each), index) for index, each in enumerate(endpoints))
    claims = [_Claim(name, endpoints[index], size) for name, index in named]
    greatest = max(each.share for each in endpoints)
    owners: list[Endpoint | None] = [None] * size
    free, round_number = size, 0
    while free:
        round_number += 1
        for claim in claims:
            while free and claim.taken * greatest < round_number * claim.endpoint.share:
                claim.take_next(owners)
                free -= 1
    return [each for each in owners if each is not None]


class _Claim:
    """An endpoint that claims places, in the order of its permutation."""

    __slots__ = ("_place", "_step", "endpoint", "taken")

    def __init__(self, name: str, endpoint: Endpoint, size: int) -> None:
        self.endpoint = endpoint
        self.taken = 0
        self._step = hash_of(name, STEP) % (size - 1) + 1
        self._place = hash_of(name, OFFSET) % size

    def take_next(self, owners: list[Endpoint | None]) -> None:
        """Take the next place that is free; there is one."""
        place, step, size = self._place, self._step, len(owners)
        while owners[place] is not None:
            place = (place + step) % size
        owners[place] = self.endpoint
        self._place = (place + step) % size
        self.taken += 1
