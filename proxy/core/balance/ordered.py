"""The first that can: ``first``.

The order of the configuration decides; the next one is asked only when those before it are not
usable, or have all the flows they may have. Weights say nothing here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.sources import SourceKey


class FirstOfAll:
    """The first endpoint of the list."""

    __slots__ = ("_endpoints",)

    by_source: Final = False

    def __init__(self) -> None:
        self._endpoints: tuple[Endpoint, ...] = ()

    def become(self, endpoints: Sequence[Endpoint]) -> None:
        """Choose among these."""
        self._endpoints = tuple(endpoints)

    def pick(self, tried: Collection[Endpoint], source: SourceKey, now: float) -> Endpoint | None:
        """Choose one; see ``Pick``."""
        return next((each for each in self._endpoints if each not in tried), None)

    def foresee(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> tuple[Endpoint, ...]:
        """Who would be picked next; see ``Picker``."""
        picked = self.pick(tried, source, now)  # which changes nothing either
        return () if picked is None else (picked,)
