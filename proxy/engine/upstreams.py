"""The upstreams of a worker: their endpoints, what is ordered and known of them, their counters.

An upstream, and an endpoint of it, stays the same object from one change to the next where it can:
the turn goes on, and attempts under way know what they have tried. Counters go by the names of
upstream and endpoint, for the life of the process; see ``core.ledger``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import random
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.core.address_rows import address_row
from proxy.core.balance.maglev import size_for
from proxy.core.balance.ways import Balance, picker_of
from proxy.core.condition import Administration
from proxy.core.counters import EndpointCounters
from proxy.core.endpoint import Endpoint
from proxy.core.ledger import Ledger
from proxy.core.original import ORIGINAL, OriginalCounters, OriginalUpstream
from proxy.core.queue_counters import QueueCounters
from proxy.core.source import SourcePool
from proxy.core.upstream import Upstream
from proxy.engine.comeback import Comeback
from proxy.engine.downfall import Downfall
from proxy.engine.passive import returned
from proxy.engine.queue import UpstreamQueue

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.balance.picker import Picker
    from proxy.core.counters import AddressSnapshot
    from proxy.engine.relay import Relay
    from proxy.engine.specs import EndpointOrder, EndpointSpec, HealthReport, UpstreamSpec

EndpointKey: TypeAlias = tuple[str, str]

NO_ORDERS: Final[Mapping[str, Administration]] = MappingProxyType({})


@dataclass(slots=True)
class Route:
    """An upstream, the spec it is made from, and the sources of its flows, taken in turn."""

    spec: UpstreamSpec
    upstream: Upstream
    pool: SourcePool | None


class Upstreams:
    """Upstreams of one worker, by name.

    Args:
        relay: where flows live.

    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._routes: dict[str, Route] = {}
        self._downfall = Downfall(relay)
        self._comeback = Comeback(relay.wheel, lambda: self)
        self._disabled = set[EndpointKey]()  # by order; bounded by what there was to disable
        self._endpoints: Ledger[EndpointKey, EndpointCounters] = Ledger(_endpoint_counters)
        self._queues: Ledger[str, QueueCounters] = Ledger(QueueCounters)

    def __iter__(self) -> Iterator[Upstream]:
        return (route.upstream for route in self._routes.values())

    def __getitem__(self, name: str) -> Route:
        return self._routes[name]

    @property
    def counters(self) -> list[EndpointCounters]:
        """Those of every endpoint, and of former ones that have flows."""
        return self._endpoints.shown()

    @property
    def remembered(self) -> list[EndpointCounters]:
        """Those of every endpoint that is or was, and is not forgotten."""
        return list(self._endpoints)

    @property
    def queues(self) -> list[QueueCounters]:
        """Those of every upstream in which flows may wait."""
        return self._queues.shown()

    @property
    def remembered_queues(self) -> list[QueueCounters]:
        """The same, and those in which flows could wait once."""
        return list(self._queues)

    def endpoint_of(self, upstream: str, name: str, address: Address) -> Endpoint:
        """The endpoint that a flow from another process has; one of its own if it is no more."""
        route = self._routes.get(upstream)
        for each in route.upstream.called(name) if route and not route.spec.original else ():
            if each.address == address:
                return each
        counters = self._endpoints.of((upstream, name))
        if not self._endpoints.is_used((upstream, name)):
            counters.draining = True
        return Endpoint(upstream, name, address, counters)

    def addresses(
        self, counters: EndpointCounters, now: float, offset: float
    ) -> list[AddressSnapshot]:
        """How the addresses are that an endpoint has now."""
        route = self._routes.get(counters.upstream)
        if route is None or route.spec.original:
            return []
        return [address_row(each, now, offset) for each in route.upstream.called(counters.endpoint)]

    def use(self, specs: Iterable[UpstreamSpec], now: float) -> None:
        """Be these upstreams from now on."""
        specs = tuple(specs)
        self._endpoints.use(_endpoint_keys(specs))
        self._queues.use(spec.name for spec in specs if spec.waiting is not None)
        for counters in self._endpoints:  # also one whose first flow is still connecting
            counters.draining = True
        self._routes = {spec.name: self._route(spec, now) for spec in specs}

    def readdress(self, specs: Iterable[UpstreamSpec], now: float) -> None:
        """Have upstreams the endpoints that these say, and leave all else as it is.

        What was ordered for an endpoint holds for its new addresses, too. An upstream that is no
        more, as a reload came between, is passed over.
        """
        new = {spec.name: spec for spec in specs if spec.name in self._routes}
        self._endpoints.use(
            _endpoint_keys(new.get(name, route.spec) for name, route in self._routes.items())
        )
        for name, spec in new.items():
            former = self._routes[name].upstream.endpoints
            orders = {each.name: each.administration for each in former}
            self._routes[name] = self._route(spec, now, orders)

    def refresh(self, now: float) -> None:
        """Have endpoints back whose ejection is over."""
        for route in self._routes.values():
            route.upstream.refresh(now)

    def knows(self, upstream: str, endpoint: str) -> bool:
        """Whether there is such an endpoint."""
        route = self._routes.get(upstream)
        return route is not None and endpoint in {each.name for each in route.spec.endpoints}

    def is_wanted(self, upstream: str, endpoint: str) -> bool:
        """Whether flows may go to an endpoint: what drained it is over."""
        route = self._routes.get(upstream)
        return route is not None and any(
            each.administration is not Administration.DRAINING
            for each in route.upstream.called(endpoint)
        )

    def retire(self, upstream: str, endpoint: str, now: float) -> None:
        """Choose an endpoint for no further flow."""
        for each in self._routes[upstream].upstream.called(endpoint):
            each.administer(Administration.DRAINING, now)
        self._endpoints[upstream, endpoint].draining = True

    def administer(self, order: EndpointOrder, now: float) -> bool:
        """Disable or enable an endpoint, over reloads too; false if there is none of this name."""
        route = self._routes.get(order.upstream)
        found = route.upstream.called(order.endpoint) if route and not route.spec.original else ()
        for each in found:
            each.administer(order.administration, now)
        key = order.upstream, order.endpoint
        self._disabled.discard(key)
        if found:
            self._endpoints[key].draining = False
            if order.administration is Administration.DISABLED:
                self._disabled.add(key)
        return bool(found)

    def set_health(self, reports: Iterable[HealthReport], now: float) -> None:
        """Know what active checks say of endpoints."""
        for report in reports:
            route = self._routes.get(report.upstream)
            for each in route.upstream.called(report.endpoint) if route else ():
                if each.address == report.address:
                    each.set_health(report.health, report.reason, now)

    def _route(
        self, spec: UpstreamSpec, now: float, orders: Mapping[str, Administration] = NO_ORDERS
    ) -> Route:
        """The same upstream with other endpoints, where that can be, so that the turn goes on."""
        before = self._routes.get(spec.name)
        pool = before.pool if before and before.spec.source == spec.source else _pool(spec)
        if spec.original:
            counters = self._endpoints[spec.name, ORIGINAL]
            counters.draining = False
            return Route(spec, OriginalUpstream(spec.name, counters), pool)
        former = before.upstream.endpoints if before else ()
        known = {(each.name, each.address): each for each in former}
        endpoints = [
            self._endpoint(
                spec.name,
                each,
                known.get((each.name, each.address)),
                orders.get(each.name, Administration.ENABLED),
                now,
            )
            for each in spec.endpoints
        ]
        if before is None or before.spec.original:
            upstream = Upstream(spec.name, endpoints, spec.multicast, _picker(spec))
            self._set_up(upstream, spec, now)
            upstream.become(endpoints, spec.multicast, None, spec.slow_start)
            return Route(spec, upstream, pool)
        upstream = before.upstream
        self._set_up(upstream, spec, now)
        picker = None if _chooses(before.spec) == _chooses(spec) else _picker(spec)
        upstream.become(endpoints, spec.multicast, picker, spec.slow_start, now)
        return Route(spec, upstream, pool)

    def _set_up(self, upstream: Upstream, spec: UpstreamSpec, now: float) -> None:
        """Have an upstream what is configured, but for its endpoints and the way of choosing."""
        upstream.judge_by(spec.ejection)
        upstream.closes_fallen = spec.closes_fallen
        upstream.on_change = self._look
        upstream.on_return = returned
        self._let_queue(upstream, spec, now)

    def _look(self, upstream: Upstream) -> None:
        """See to what follows from the condition of an upstream's endpoints."""
        self._downfall.look(upstream)
        self._comeback.look(upstream)

    def _let_queue(self, upstream: Upstream, spec: UpstreamSpec, now: float) -> None:
        """Have flows wait for endpoints that are full as it is configured, or no longer."""
        queue = upstream.queue
        if spec.waiting is None:
            upstream.queue = None
            if isinstance(queue, UpstreamQueue):
                queue.dissolve(now)
        elif isinstance(queue, UpstreamQueue):
            queue.become(spec.waiting)
        else:
            counters = self._queues[spec.name]
            upstream.queue = UpstreamQueue(self._relay, spec.waiting, counters)

    def _endpoint(
        self,
        upstream: str,
        spec: EndpointSpec,
        before: Endpoint | None,
        order: Administration,
        now: float,
    ) -> Endpoint:
        """The same object where it is the same: attempts under way know what they have tried."""
        counters = self._endpoints[upstream, spec.name]
        counters.draining = order is Administration.DRAINING
        endpoint = before or Endpoint(upstream, spec.name, spec.address, counters)
        endpoint.become(spec.weight, backup=spec.backup, ceiling=spec.ceiling)
        if order is Administration.ENABLED and (upstream, spec.name) in self._disabled:
            order = Administration.DISABLED
        endpoint.administer(order, now)
        return endpoint


def _endpoint_keys(specs: Iterable[UpstreamSpec]) -> Iterator[EndpointKey]:
    """The endpoints of upstreams; several of one name are one."""
    for spec in specs:
        for name in [ORIGINAL] if spec.original else [each.name for each in spec.endpoints]:
            yield spec.name, name


def _endpoint_counters(key: EndpointKey) -> EndpointCounters:
    make = OriginalCounters if key[1] == ORIGINAL else EndpointCounters
    return make(*key)


def _picker(spec: UpstreamSpec) -> Picker:
    return picker_of(spec.balance, len(spec.endpoints), random)


def _chooses(spec: UpstreamSpec) -> tuple[Balance, int]:
    """What a picker is made for: it is kept while that is the same."""
    is_table = spec.balance is Balance.MAGLEV
    return spec.balance, size_for(len(spec.endpoints)) if is_table else 0


def _pool(spec: UpstreamSpec) -> SourcePool | None:
    return None if spec.source is None else SourcePool(*spec.source)
