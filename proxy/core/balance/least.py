"""Fewest live flows for its weight: ``least_flows``.

Flows that are still being connected count, so that many clients who come at once are not all sent
to the one endpoint that had fewest a moment ago. Among equals, turns are taken by weight: idle
endpoints share out short flows as ``round_robin`` would.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from proxy.core.balance.turns import next_in_turn, richest_of, settled

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.sources import SourceKey


class LeastFlows:
    """The endpoint with the fewest flows for its weight."""

    __slots__ = ("_endpoints", "_saved")

    by_source: Final = False

    def __init__(self) -> None:
        self._endpoints: tuple[Endpoint, ...] = ()
        self._saved: dict[Endpoint, int] = {}

    def become(self, endpoints: Sequence[Endpoint]) -> None:
        """Choose among these; the turn of equals goes on where it is."""
        self._endpoints = tuple(endpoints)
        self._saved = settled(self._saved, endpoints)

    def pick(self, tried: Collection[Endpoint], source: SourceKey, now: float) -> Endpoint | None:
        """Choose one; see ``Pick``."""
        least = self._least(tried)
        return next_in_turn(self._saved, least) if len(least) > 1 else next(iter(least), None)

    def foresee(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> tuple[Endpoint, ...]:
        """Who would be picked next; see ``Picker``."""
        least = self._least(tried)
        return (richest_of(self._saved, least),) if least else ()

    def _least(self, tried: Collection[Endpoint]) -> list[Endpoint]:
        """Those with the fewest flows for their weight."""
        least: list[Endpoint] = []
        for endpoint in self._endpoints:
            if endpoint in tried:
                continue
            if least:  # a / b < c / d, without a division
                more = endpoint.flows * least[0].share - least[0].flows * endpoint.share
                if more > 0:
                    continue
                if more < 0:
                    least.clear()
            least.append(endpoint)
        return least
