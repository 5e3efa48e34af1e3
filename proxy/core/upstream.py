"""Upstreams and the choice of an endpoint.

An endpoint here is resolved: it has a socket address. Its name is what the configuration says,
and is the metric label.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from proxy.core.counters import EndpointCounters

if TYPE_CHECKING:
    from proxy.core.address import Address


class Endpoint:
    """One ``host:port`` of an upstream, with its counters."""

    __slots__ = ("address", "counters", "name")

    def __init__(self, upstream: str, name: str, address: Address) -> None:
        self.name = name
        self.address = address
        self.counters = EndpointCounters(upstream, name)


class Upstream:
    """A named set of endpoints, taken in turn.

    One cursor serves all listeners that share the upstream, so that the endpoints' shares are
    even over all of them.
    """

    __slots__ = ("_next", "endpoints", "name")

    def __init__(self, name: str, endpoints: Sequence[Endpoint]) -> None:
        self.name = name
        self.endpoints = tuple(endpoints)
        self._next = 0

    def pick(self, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """The endpoint whose turn it is, those already tried for this flow left out."""
        endpoints = self.endpoints
        for _ in endpoints:
            endpoint = endpoints[self._next % len(endpoints)]
            self._next = (self._next + 1) % len(endpoints)
            if endpoint not in tried:
                return endpoint
        return None
