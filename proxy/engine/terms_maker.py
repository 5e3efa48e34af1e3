"""Making what a listener holds its flows to, from what its spec says.

What flows share lives on from one change to the next: bandwidth, and the rooms of those who wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from socket import SOCK_DGRAM, SOCK_STREAM
from typing import TYPE_CHECKING, TypeAlias

from proxy.core.route_counters import ELSE, RouteCounters
from proxy.core.server_names import ServerNames
from proxy.core.survive import Survive
from proxy.engine.limited import Policing
from proxy.engine.options import IN_LINE
from proxy.engine.outbound import Outbound
from proxy.engine.preface import PrefaceRoom
from proxy.engine.routed import Routes, Way
from proxy.engine.terms import Terms
from proxy.engine.throttle import Bandwidth
from proxy.engine.waiting import WaitingRoom

if TYPE_CHECKING:
    from proxy.core.counters import ListenerCounters
    from proxy.core.ledger import Ledger
    from proxy.core.server_names import RoutePattern
    from proxy.engine.outbound import Connect
    from proxy.engine.relay import Relay
    from proxy.engine.specs import ListenerSpec
    from proxy.engine.upstreams import Upstreams

RouteKey: TypeAlias = tuple[str, str]
"""A listener, and a route of it."""


class TermsMaker:
    """Makes the terms of one worker's listeners.

    Args:
        relay: where flows live.
        upstreams: where they go.
        routes: the counters of routes, by listener and route.
        counters_of: the counters of a listener.

    """

    def __init__(
        self,
        relay: Relay,
        upstreams: Upstreams,
        routes: Ledger[RouteKey, RouteCounters],
        counters_of: Callable[[ListenerSpec], ListenerCounters],
    ) -> None:
        self._relay = relay
        self._upstreams = upstreams
        self._routes = routes
        self._counters_of = counters_of

    def terms(self, spec: ListenerSpec, known: Terms | None, now: float) -> Terms:
        """What a listener's flows are held to; they go on sharing the bandwidth they shared.

        Args:
            spec: of the listener.
            known: what they were held to until now; None if it is new.
            now: monotonic seconds.

        """
        terms = Terms(limits=spec.limits, access=spec.access, priority=spec.priority)
        will = self._relay.will if spec.survive is Survive.CRASH else None
        terms = replace(terms, style=self._upstreams[spec.upstream].spec.style, will=will)
        if spec.transport.is_datagram:
            policing = self._policing(known.policing if known else None, spec, now)
            return replace(terms, policing=policing, proxied=spec.proxied)
        bandwidth = self._bandwidth(known.bandwidth if known else None, spec, now)
        waiting = self._waiting(known.waiting if known else None, spec)
        prefaces = self._prefaces(known.prefaces if known else None, spec)
        routes = self._routes_of(spec)
        return replace(
            terms, bandwidth=bandwidth, waiting=waiting, prefaces=prefaces, routes=routes
        )

    def _routes_of(self, spec: ListenerSpec) -> Routes | None:
        if spec.routes is None:
            return None
        names = {name for _, name in spec.routes.upstreams}
        ways = {name: self._route_to(spec, name) for name in names}
        patterns = {pattern: ways[name] for pattern, name in spec.routes.upstreams}
        return Routes(ServerNames(patterns), spec.routes.time, self._route_counters(spec))

    def _route_counters(
        self, spec: ListenerSpec
    ) -> Mapping[RoutePattern | None, RouteCounters] | None:
        if spec.routes is None or not spec.routes.counted:
            return None
        ledger = self._routes
        counters: dict[RoutePattern | None, RouteCounters] = {None: ledger[spec.name, ELSE]}
        for pattern, _ in spec.routes.upstreams:
            counters[pattern] = ledger[spec.name, str(pattern)]
        return counters

    def _route_to(self, spec: ListenerSpec, name: str) -> Way:
        route = self._upstreams[name]
        return Way(name, route.upstream, self.way(spec, name), route.spec.style)

    def _prefaces(self, known: PrefaceRoom | None, spec: ListenerSpec) -> PrefaceRoom | None:
        """Who waits already goes on waiting, by the terms it came under."""
        if spec.proxied is None:
            return None
        if known is None:
            return PrefaceRoom(self._relay, spec.proxied)
        known.terms = spec.proxied
        return known

    def _waiting(self, known: WaitingRoom | None, spec: ListenerSpec) -> WaitingRoom | None:
        if spec.waiting is None or spec.admission.dry_run:
            return None
        counters = self._counters_of(spec)
        if known is not None and known.counters is counters:
            return known
        return WaitingRoom(self._relay, counters, spec.waiting)

    def _bandwidth(
        self, known: Bandwidth | None, spec: ListenerSpec, now: float
    ) -> Bandwidth | None:
        dry_run = spec.admission.dry_run
        if known is not None and known.dry_run is dry_run:
            known.become(spec.bandwidth)
            return known
        if known is None and not spec.bandwidth.restrict:
            return None
        return Bandwidth(self._relay.pump.alarms, spec.bandwidth, now, dry_run=dry_run)

    def _policing(self, known: Policing | None, spec: ListenerSpec, now: float) -> Policing | None:
        if known is not None:
            known.become(spec.bandwidth)
            return known
        restrict = spec.bandwidth.restrict or spec.limits.restrict_datagrams
        return Policing(spec.bandwidth, now) if restrict else None

    def way(self, spec: ListenerSpec, upstream: str) -> Connect:
        """How a listener's flows are connected to an upstream."""
        route = self._upstreams[upstream]
        as_client = spec.transparent and route.pool is None
        marks = route.spec.marks._replace(transparent=as_client)
        outbound = Outbound(marks, route.pool, as_client, route.spec.copies_dscp)
        if spec.transport.is_datagram:
            return outbound.way(SOCK_DGRAM)
        return outbound.way(SOCK_STREAM, IN_LINE + spec.options)


def route_keys(spec: ListenerSpec) -> Iterator[RouteKey]:
    """The routes of a listener that are counted."""
    if spec.routes is not None and spec.routes.counted:
        for pattern, _ in spec.routes.upstreams:
            yield spec.name, str(pattern)
        yield spec.name, ELSE
