"""Original destinations: where clients meant to go before they were diverted.

One endpoint, without an address of its own, stands for all of them in the books.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from proxy.core.counters import EndpointCounters
from proxy.core.endpoint import Endpoint
from proxy.core.upstream import Upstream

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.flow import CloseReason
    from proxy.core.sources import SourceKey
    from proxy.core.upstream import MulticastPath

ORIGINAL: Final = "original"
"""The name, and the metric label, of the one endpoint that stands for original destinations."""

NOWHERE: Final = ("0.0.0.0", 0)  # noqa: S104 - nobody connects to it


class OriginalCounters(EndpointCounters):
    """The counters of all original destinations together.

    That one of them cannot be reached says nothing about the others, so they are never down.
    """

    __slots__ = ()

    def attempt_failed(self, reason: CloseReason, now: float) -> None:
        """Count a connection attempt that ended without a connection."""
        self.failures[reason] += 1


class OriginalUpstream(Upstream):
    """An upstream whose flows go where their clients meant to go before they were diverted."""

    __slots__ = ()

    def __init__(self, name: str, counters: EndpointCounters | None = None) -> None:
        counters = counters or OriginalCounters(name, ORIGINAL)
        super().__init__(name, [Endpoint(name, ORIGINAL, NOWHERE, counters)])

    def towards(self, address: Address) -> SoleUpstream:
        """The upstream of one flow: its destination is the only endpoint."""
        endpoint = Endpoint(self.name, ORIGINAL, address, self.endpoints[0].counters)
        return SoleUpstream(endpoint, self.multicast)


class SoleUpstream:
    """What a flow asks of its upstream, where that has one endpoint, for this flow alone.

    It holds no reference to itself, as an upstream does by its picker: there is one for each flow,
    and cycles are not collected often.
    """

    __slots__ = ("multicast", "usable")

    by_source: Final = False
    queue: Final = None
    spares: Final = ()

    def __init__(self, endpoint: Endpoint, multicast: MulticastPath) -> None:
        self.usable = (endpoint,)
        self.multicast = multicast

    def pick(self, tried: Collection[Endpoint], source: SourceKey, now: float) -> Endpoint | None:
        """The endpoint, unless it has been tried."""
        return None if tried else self.usable[0]

    def stand_in(self, tried: Collection[Endpoint]) -> Endpoint | None:
        """There is nobody else."""

    def shunned(self, now: float) -> tuple[Endpoint, ...]:
        """Nobody: there is no other."""
        return ()

    def has_room_later(self, tried: Collection[Endpoint]) -> bool:
        """It is never full."""
        return False
