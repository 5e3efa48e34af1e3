"""Upstreams and the choice of an endpoint.

An endpoint here is resolved: it has a socket address. Its name is what the configuration says,
and is the metric label.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.counters import EndpointCounters

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.flow import CloseReason

ORIGINAL: Final = "original"
"""The name, and the metric label, of the one endpoint that stands for original destinations."""

NOWHERE: Final = ("0.0.0.0", 0)  # noqa: S104 - nobody connects to it


class Endpoint:
    """One ``host:port`` of an upstream, with its counters."""

    __slots__ = ("address", "counters", "name")

    def __init__(
        self, upstream: str, name: str, address: Address, counters: EndpointCounters | None = None
    ) -> None:
        self.name = name
        self.address = address
        self.counters = counters or EndpointCounters(upstream, name)


class MulticastPath(NamedTuple):
    """How datagrams go to endpoints that are multicast groups.

    Attributes:
        interface: the name of the one to send through; None leaves it to routing.
        ttl: routers they may pass, and one: 1 stays on the link.

    """

    interface: str | None = None
    ttl: int = 1


HOME: Final = MulticastPath()


class OriginalCounters(EndpointCounters):
    """The counters of all original destinations together.

    That one of them cannot be reached says nothing about the others, so they are never down.
    """

    __slots__ = ()

    def attempt_failed(self, reason: CloseReason, now: float) -> None:
        """Count a connection attempt that ended without a connection."""
        self.failures[reason] += 1


class Upstream:
    """A named set of endpoints, taken in turn.

    One cursor serves all listeners that share the upstream, so that the endpoints' shares are
    even over all of them. What drains is not among the endpoints, so that choosing one costs the
    same whether any drains or none.
    """

    __slots__ = ("_next", "endpoints", "multicast", "name")

    def __init__(
        self, name: str, endpoints: Sequence[Endpoint], multicast: MulticastPath = HOME
    ) -> None:
        self.name = name
        self.endpoints = tuple(endpoints)
        self.multicast = multicast
        self._next = 0

    def become(self, endpoints: Sequence[Endpoint], multicast: MulticastPath) -> None:
        """Have these endpoints from now on; the turn goes on where it is."""
        self.endpoints = tuple(endpoints)
        self.multicast = multicast

    def drain(self, name: str) -> None:
        """Choose an endpoint no more, until ``become`` brings it back."""
        self.endpoints = tuple(each for each in self.endpoints if each.name != name)

    def pick(self, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """The endpoint whose turn it is, those already tried for this flow left out."""
        endpoints = self.endpoints
        for _ in endpoints:
            endpoint = endpoints[self._next % len(endpoints)]
            self._next = (self._next + 1) % len(endpoints)
            if endpoint not in tried:
                return endpoint
        return None


class OriginalUpstream(Upstream):
    """An upstream whose flows go where their clients meant to go before they were diverted."""

    __slots__ = ()

    def __init__(self, name: str, counters: EndpointCounters | None = None) -> None:
        counters = counters or OriginalCounters(name, ORIGINAL)
        super().__init__(name, [Endpoint(name, ORIGINAL, NOWHERE, counters)])

    def towards(self, address: Address) -> Upstream:
        """The upstream of one flow: its destination is the only endpoint."""
        counters = self.endpoints[0].counters
        return Upstream(self.name, [Endpoint(self.name, ORIGINAL, address, counters)])
