"""The listeners and upstreams of a worker: what the last change made of them.

A listener here is one socket. A name may have had another socket before: that one accepts no more,
and a datagram socket is still served until the last of its flows has ended, because their clients
send to it. What a flow needs of its listener it holds itself, so a stream listener can go at once.

Counters go by name and transport, for the life of the process; see ``core.ledger``.

``apply`` changes the books and awaits nothing; it returns what remains to be told to live flows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from random import random
from socket import SOCK_DGRAM, SOCK_STREAM
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.core.address import Transport, format_address
from proxy.core.address_rows import address_row
from proxy.core.admission import NOBODY
from proxy.core.balance.maglev import size_for
from proxy.core.balance.ways import Balance, picker_of
from proxy.core.condition import Administration
from proxy.core.counters import EndpointCounters, ListenerCounters
from proxy.core.ledger import Ledger
from proxy.core.server_names import ServerNames
from proxy.core.source import SourcePool
from proxy.core.upstream import ORIGINAL, Endpoint, OriginalCounters, OriginalUpstream, Upstream
from proxy.engine.accept import StreamListener
from proxy.engine.counted import flow_type_of
from proxy.engine.datagram_listener import DatagramListener
from proxy.engine.downfall import Downfall
from proxy.engine.limited import LimitedFlow, Policing
from proxy.engine.outbound import Outbound
from proxy.engine.parts import BandwidthPart
from proxy.engine.preface import PrefaceRoom
from proxy.engine.queue import UpstreamQueue
from proxy.engine.routed import Routes, Way
from proxy.engine.sources import source_key_of
from proxy.engine.specs import OpenListener, cookie_of
from proxy.engine.terms import Terms
from proxy.engine.throttle import Bandwidth
from proxy.engine.transparent import TransparentListener
from proxy.engine.unix_listeners import UnixgramFlow, UnixgramListener, UnixListener
from proxy.engine.waiting import WaitingRoom

if TYPE_CHECKING:
    from socket import SocketType as Socket

    from proxy.core.admission import AdmissionLimits, Gate
    from proxy.core.balance.picker import Picker
    from proxy.core.counters import AddressSnapshot
    from proxy.core.flow import Flow
    from proxy.core.sources import SourceKey
    from proxy.engine.datagram import DatagramFlow
    from proxy.engine.outbound import Connect
    from proxy.engine.port import ListenRow
    from proxy.engine.relay import Relay
    from proxy.engine.specs import (
        Change,
        DrainTarget,
        EndpointOrder,
        EndpointSpec,
        HealthReport,
        ListenerSpec,
        UpstreamSpec,
    )

Listener: TypeAlias = StreamListener | DatagramListener
ListenerKey: TypeAlias = tuple[str, Transport]
EndpointKey: TypeAlias = tuple[str, str]

NO_ORDERS: Final[Mapping[str, Administration]] = MappingProxyType({})


@dataclass(slots=True)
class _Route:
    """An upstream, the spec it is made from, and the sources of its flows, taken in turn."""

    spec: UpstreamSpec
    upstream: Upstream
    pool: SourcePool | None


class Roster:
    """Listeners and upstreams of one worker.

    Args:
        relay: where flows live.

    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._listeners: dict[str, list[Listener]] = {}
        self._specs: dict[str, ListenerSpec] = {}
        self._terms: dict[str, Terms] = {}
        self._parts: list[BandwidthPart] = []
        self._retired: list[Listener] = []  # datagram sockets that serve their last flows
        self._routes: dict[str, _Route] = {}
        self._downfall = Downfall(relay)
        self._disabled = set[EndpointKey]()  # by order; bounded by what there was to disable
        self._ledger: Ledger[ListenerKey, ListenerCounters] = Ledger(
            lambda key: ListenerCounters(*key, upstream="")
        )
        self._endpoints: Ledger[EndpointKey, EndpointCounters] = Ledger(_endpoint_counters)

    @property
    def counters(self) -> list[ListenerCounters]:
        """Those of every listener, and of former ones that have flows."""
        return self._ledger.shown()

    @property
    def endpoint_counters(self) -> list[EndpointCounters]:
        """Those of every endpoint, and of former ones that have flows."""
        return self._endpoints.shown()

    @property
    def remembered(self) -> tuple[list[ListenerCounters], list[EndpointCounters]]:
        """Those of every listener and endpoint that is or was, and is not forgotten."""
        return list(self._ledger), list(self._endpoints)

    @property
    def upstreams(self) -> list[Upstream]:
        """Every upstream."""
        return [route.upstream for route in self._routes.values()]

    def listening(self) -> list[ListenRow]:
        """Every socket that new flows may come by."""
        return [_listen_row(each) for each in self._accepting() if not _is_draining(each)]

    def closed_listeners(self) -> list[str]:
        """The names that nothing listens for, since they were drained."""
        return [
            name
            for name, listeners in self._listeners.items()
            if not any(each.is_open and not _is_draining(each) for each in listeners)
        ]

    def count_kernel_drops(self) -> None:
        """Learn what the kernel has dropped on the datagram sockets."""
        self._retired = [each for each in self._retired if each.is_open]
        for listener in (*self._accepting(), *self._retired):
            if isinstance(listener, DatagramListener):
                listener.count_kernel_drops()

    def addresses(
        self, counters: EndpointCounters, now: float, offset: float
    ) -> list[AddressSnapshot]:
        """How the addresses are that an endpoint has now."""
        route = self._routes.get(counters.upstream)
        if route is None or route.spec.original:
            return []
        return [address_row(each, now, offset) for each in route.upstream.called(counters.endpoint)]

    def look_around(self, now: float) -> None:
        """Have the listeners that all workers limit together know what the others admit."""
        for spec in self._specs.values():
            if spec.slot is not None:
                self.counters_of(spec).gate.look(now)
                waiting = self._terms[spec.name].waiting
                if waiting is not None:
                    waiting.wake(now)
        for part in self._parts:
            part.look(now)

    def apply(self, change: Change, now: float) -> dict[ListenerCounters, Terms]:
        """Be what the change says; return the listeners whose flows are held to other terms.

        Sockets that go to another name are known before any listener retires, so that one that
        is wanted again is not closed in between.
        """
        self._use_upstreams(change.upstreams, now)
        specs = {name: spec for name, spec in self._specs.items() if name not in change.closed}
        specs |= {each.spec.name: each.spec for each in change.opened}
        specs |= {spec.name: spec for spec in change.changed}
        before, self._specs = self._specs, specs
        self._leave(before, specs)
        self._ledger.use((spec.name, spec.transport) for spec in specs.values())
        for spec in specs.values():
            counters = self.counters_of(spec)
            counters.gate.become(spec.admission, now, self._sources(counters, spec.admission))
            self._join(counters.gate, before.get(spec.name), spec)
        former = self._terms
        self._terms = {name: self._terms_of(spec, now) for name, spec in specs.items()}
        self._parts = list(self._divided(now))
        self._exchange(change.opened, change.closed, now)
        self.serve_again()
        self._let_wait(former, now)
        return {
            self.counters_of(spec): self._terms[name]
            for name, spec in specs.items()
            if name in before and _held_to(before[name]) != _held_to(spec)
        }

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

    def serve_again(self) -> None:
        """Have the listeners treat flows as if nothing had ever been ordered."""
        for name, listeners in self._listeners.items():
            for listener in listeners:
                if listener.is_open:
                    self._serve(listener, self._specs[name])

    def _divided(self, now: float) -> Iterator[BandwidthPart]:
        """The bandwidths that all workers keep to together."""
        commons = self._relay.commons
        for name, spec in self._specs.items():
            shared = self._terms[name].bandwidth or self._terms[name].policing
            if commons is None or spec.slot is None or shared is None:
                continue
            if spec.bandwidth.original.listener or spec.bandwidth.reply.listener:
                row = commons.row(spec.slot, self._relay.index)
                yield BandwidthPart(row, shared, spec.bandwidth, self.counters_of(spec), now)

    def _terms_of(self, spec: ListenerSpec, now: float) -> Terms:
        """What a listener's flows are held to; they go on sharing the bandwidth they shared."""
        known = self._terms.get(spec.name)
        terms = Terms(limits=spec.limits, access=spec.access, priority=spec.priority)
        terms = replace(terms, style=self._routes[spec.upstream].spec.style)
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
        return Routes(ServerNames(patterns), spec.routes.time)

    def _route_to(self, spec: ListenerSpec, name: str) -> Way:
        route = self._routes[name]
        return Way(name, route.upstream, self._way(spec, name), route.spec.style)

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
        counters = self.counters_of(spec)
        if known is not None and known.counters is counters:
            return known
        return WaitingRoom(self._relay, counters, spec.waiting)

    def _let_wait(self, former: dict[str, Terms], now: float) -> None:
        """Have those who wait do so by the limits in force, or no longer."""
        rooms = {name: terms.waiting for name, terms in self._terms.items()}
        for name, terms in former.items():
            if terms.waiting is not None and terms.waiting is not rooms.get(name):
                terms.waiting.dissolve(now)
        for name, room in rooms.items():
            limits = self._specs[name].waiting
            if room is not None and limits is not None:
                room.become(limits, now)

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

    def counters_of(self, spec: ListenerSpec) -> ListenerCounters:
        """The counters of a listener in use."""
        return self._ledger[spec.name, spec.transport]

    def spec_of(self, name: str, transport: Transport) -> ListenerSpec | None:
        """What a listener is, if it is there."""
        spec = self._specs.get(name)
        return spec if spec is not None and spec.transport is transport else None

    def terms_of(self, spec: ListenerSpec) -> Terms:
        """What the flows of a listener in use are held to."""
        return self._terms[spec.name]

    def upstream_called(self, name: str) -> tuple[Upstream, Balance]:
        """An upstream in use, and its way of choosing."""
        route = self._routes[name]
        return route.upstream, route.spec.balance

    def retire(self, name: str, now: float) -> None:
        """Accept no more for this name; it stays configured."""
        for listener in self._listeners[name]:
            if listener.is_open:
                listener.retire(now)

    def retire_all(self, now: float) -> None:
        """Accept no more."""
        for name in self._listeners:
            self.retire(name, now)

    def retire_endpoint(self, upstream: str, endpoint: str, now: float) -> None:
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

    def cookies(self) -> list[int]:
        """The listening sockets in use, by the numbers that the kernel gave them."""
        return [
            cookie_of(each.socket) for each in (*self._accepting(), *self._retired) if each.is_open
        ]

    def close(self) -> None:
        """Close every listening socket at once."""
        for listener in (*self._accepting(), *self._retired):
            listener.close()
        self._listeners.clear()
        self._retired.clear()

    def knows(self, target: DrainTarget) -> bool:
        """Whether there is such a listener or endpoint."""
        if target.listener is not None:
            return target.listener in self._listeners
        route = self._routes.get(target.upstream or "")
        return route is not None and target.endpoint in {each.name for each in route.spec.endpoints}

    def is_wanted(self, target: DrainTarget) -> bool:
        """Whether flows of a target may be opened: what drained it is over."""
        if target.listener is not None:
            return any(row["listener"] == target.listener for row in self.listening())
        route = self._routes.get(target.upstream or "")
        return route is not None and any(
            each.administration is not Administration.DRAINING
            for each in route.upstream.called(target.endpoint or "")
        )

    def _join(self, gate: Gate, before: ListenerSpec | None, spec: ListenerSpec) -> None:
        """Have a listener's ceilings hold over all workers, where there are others."""
        commons = self._relay.commons
        if spec.slot is None or commons is None:
            gate.join(NOBODY)
        elif before is None or before.slot != spec.slot:
            gate.join(commons.row(spec.slot, self._relay.index))

    def _leave(self, before: dict[str, ListenerSpec], specs: dict[str, ListenerSpec]) -> None:
        """Tell nobody any more of listeners that are no more; their slots may go to others."""
        for name, spec in before.items():
            if name not in specs or specs[name].transport is not spec.transport:
                self.counters_of(spec).gate.join(NOBODY)

    def _sources(
        self, counters: ListenerCounters, limits: AdmissionLimits
    ) -> Iterator[tuple[Flow, SourceKey]]:
        """The live flows of a listener, and the sources that these limits see them come from."""
        for flow in self._relay.table:
            if flow.counters is counters:
                yield flow, source_key_of(flow, limits)

    def _accepting(self) -> Iterator[Listener]:
        return (
            each for listeners in self._listeners.values() for each in listeners if each.is_open
        )

    def _use_upstreams(self, specs: Iterable[UpstreamSpec], now: float) -> None:
        specs = tuple(specs)
        self._endpoints.use(_endpoint_keys(specs))
        for counters in self._endpoints:  # also one whose first flow is still connecting
            counters.draining = True
        self._routes = {spec.name: self._route(spec, now) for spec in specs}

    def _route(
        self, spec: UpstreamSpec, now: float, orders: Mapping[str, Administration] = NO_ORDERS
    ) -> _Route:
        """The same upstream with other endpoints, where that can be, so that the turn goes on."""
        before = self._routes.get(spec.name)
        pool = before.pool if before and before.spec.source == spec.source else _pool(spec)
        if spec.original:
            counters = self._endpoints[spec.name, ORIGINAL]
            counters.draining = False
            return _Route(spec, OriginalUpstream(spec.name, counters), pool)
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
            return _Route(spec, upstream, pool)
        upstream = before.upstream
        self._set_up(upstream, spec, now)
        picker = None if _chooses(before.spec) == _chooses(spec) else _picker(spec)
        upstream.become(endpoints, spec.multicast, picker, spec.slow_start, now)
        return _Route(spec, upstream, pool)

    def _set_up(self, upstream: Upstream, spec: UpstreamSpec, now: float) -> None:
        """Have an upstream what is configured, but for its endpoints and the way of choosing."""
        upstream.judge_by(spec.ejection)
        upstream.closes_fallen = spec.closes_fallen
        upstream.on_change = self._downfall.look
        self._let_queue(upstream, spec, now)

    def refresh(self, now: float) -> None:
        """Have endpoints back whose ejection is over."""
        for route in self._routes.values():
            route.upstream.refresh(now)

    def _let_queue(self, upstream: Upstream, spec: UpstreamSpec, now: float) -> None:
        """Have flows wait for endpoints that are full as it is configured, or no longer."""
        queue = upstream.queue
        if spec.waiting is None:
            upstream.queue = None
            if isinstance(queue, UpstreamQueue):
                queue.dissolve(now)
        elif isinstance(queue, UpstreamQueue):
            queue.limits = spec.waiting
        else:
            upstream.queue = UpstreamQueue(self._relay, spec.name, spec.waiting)

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

    def _exchange(self, opened: Iterable[OpenListener], closed: Iterable[str], now: float) -> None:
        """Retire the sockets that no name has any more, and serve those that came."""
        opened = tuple(opened)
        leaving = {each.spec.name for each in opened} | set(closed)
        known = {
            cookie_of(listener.socket): listener
            for name in leaving
            for listener in self._listeners.pop(name, ())
            if listener.is_open
        }
        known |= {cookie_of(each.socket): each for each in self._retired if each.is_open}
        for spec, sockets in opened:
            self._listeners[spec.name] = [
                _again(known.pop(cookie_of(socket), None), socket) or self._open(spec, socket)
                for socket in sockets
            ]
        for listener in known.values():
            listener.retire(now)
        self._retired = [each for each in known.values() if each.is_open]

    def _open(self, spec: ListenerSpec, socket: Socket) -> Listener:
        relay, counters = self._relay, self.counters_of(spec)
        upstream, connect = self._routes[spec.upstream].upstream, self._way(spec, spec.upstream)
        terms, datagrams = self._terms[spec.name], spec.datagrams
        match spec.transport:
            case Transport.UNIX:
                return UnixListener(relay, socket, counters, terms, upstream, connect)
            case Transport.UNIXGRAM:
                return UnixgramListener(
                    relay, socket, counters, terms, upstream, datagrams, connect
                )
            case Transport.TCP:
                return StreamListener(relay, socket, counters, terms, upstream, connect)
        serve = TransparentListener if spec.transparent else DatagramListener
        kind = _kind_of(spec, terms)
        return serve(relay, socket, counters, terms, upstream, datagrams, kind, connect)

    def _serve(self, listener: Listener, spec: ListenerSpec) -> None:
        """Have a listener do what its spec says; one that drains goes on draining."""
        counters, upstream = self.counters_of(spec), self._routes[spec.upstream].upstream
        counters.upstream = spec.upstream
        connect, terms = self._way(spec, spec.upstream), self._terms[spec.name]
        if isinstance(listener, StreamListener):
            listener.serve(counters, terms, upstream, connect)
            return
        kind = _kind_of(spec, terms)
        listener.serve(counters, terms, upstream, spec.datagrams, kind, connect)

    def _way(self, spec: ListenerSpec, upstream: str) -> Connect:
        route = self._routes[upstream]
        as_client = spec.transparent and route.pool is None
        marks = route.spec.marks._replace(transparent=as_client)
        outbound = Outbound(marks, route.pool, as_client, route.spec.copies_dscp)
        if spec.transport.is_datagram:
            return outbound.way(SOCK_DGRAM)
        return outbound.way(SOCK_STREAM, spec.options)


def _kind_of(spec: ListenerSpec, terms: Terms) -> type[DatagramFlow]:
    """The class of a datagram listener's flows."""
    if spec.transport.is_unix:
        return UnixgramFlow
    return LimitedFlow if terms.policing is not None else flow_type_of(spec.datagrams)


def _held_to(spec: ListenerSpec) -> tuple[object, ...]:
    """What the live flows of a listener must be told of when it changes."""
    return astuple(spec.limits), spec.bandwidth, spec.admission.dry_run


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


def _again(listener: Listener | None, socket: Socket) -> Listener | None:
    """A listener that was known, open for flows whatever it was before; it has its socket."""
    if listener is not None and listener.socket is not socket:
        socket.close()
    if isinstance(listener, DatagramListener):
        listener.draining = False
    return listener


def _is_draining(listener: Listener) -> bool:
    return isinstance(listener, DatagramListener) and listener.draining


def _listen_row(listener: Listener) -> ListenRow:
    counters = listener.counters
    return {
        "listener": counters.listener,
        "transport": counters.transport.value,
        "local": format_address(listener.address),
        "upstream": counters.upstream,
    }
