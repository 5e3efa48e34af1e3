"""The listeners of a worker: what the last change made of them; for upstreams see ``upstreams``.

A listener here is one socket. A name may have had another socket before: that one accepts no more,
and a datagram socket is still served until the last of its flows has ended, because their clients
send to it. What a flow needs of its listener it holds itself, so a stream listener can go at once.

Counters go by name and transport, for the life of the process; see ``core.ledger``.

``apply`` changes the books and awaits nothing; it returns what remains to be told to live flows.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import astuple, replace
from math import inf
from socket import SOCK_DGRAM, SOCK_STREAM
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.core.address import Transport, format_address
from proxy.core.admission import NOBODY
from proxy.core.condition import Administration
from proxy.core.counters import ListenerCounters
from proxy.core.flow import Refusal
from proxy.core.flow_state import ClientState
from proxy.core.ledger import Ledger
from proxy.core.route_counters import ELSE, RouteCounters
from proxy.core.server_names import ServerNames
from proxy.core.survive import Survive
from proxy.engine.accept import StreamListener
from proxy.engine.counted import flow_type_of
from proxy.engine.datagram_listener import DatagramListener
from proxy.engine.limited import LimitedFlow, Policing
from proxy.engine.outbound import Outbound
from proxy.engine.parts import BandwidthPart
from proxy.engine.preface import PrefaceRoom
from proxy.engine.routed import Routes, Way
from proxy.engine.sources import source_key_of
from proxy.engine.specs import OpenListener, cookie_of
from proxy.engine.tcp import reset_on_close
from proxy.engine.terms import Terms
from proxy.engine.throttle import Bandwidth
from proxy.engine.transparent import TransparentListener
from proxy.engine.unix_listeners import UnixgramFlow, UnixgramListener, UnixListener
from proxy.engine.upstreams import Upstreams
from proxy.engine.waiting import WaitingRoom

if TYPE_CHECKING:
    from socket import SocketType as Socket

    from proxy.core.admission import AdmissionLimits, Gate
    from proxy.core.flow import Flow
    from proxy.core.server_names import RoutePattern
    from proxy.core.sources import SourceKey
    from proxy.engine.datagram import DatagramFlow
    from proxy.engine.outbound import Connect
    from proxy.engine.port import ListenRow
    from proxy.engine.relay import Relay
    from proxy.engine.specs import (
        Change,
        DrainTarget,
        ListenerSpec,
    )

Listener: TypeAlias = StreamListener | DatagramListener
Held: TypeAlias = "tuple[ClientState, Socket]"
"""A client that waited to be admitted, and its socket."""
ListenerKey: TypeAlias = tuple[str, Transport]
EndpointKey: TypeAlias = tuple[str, str]
RouteKey: TypeAlias = tuple[str, str]

NO_ORDERS: Final[Mapping[str, Administration]] = MappingProxyType({})


class Roster:
    """Listeners and upstreams of one worker.

    Args:
        relay: where flows live.

    Attributes:
        upstreams: where flows go.

    """

    def __init__(self, relay: Relay) -> None:
        self.upstreams = Upstreams(relay)
        self._relay = relay
        self._listeners: dict[str, list[Listener]] = {}
        self._specs: dict[str, ListenerSpec] = {}
        self._terms: dict[str, Terms] = {}
        self._parts: list[BandwidthPart] = []
        self._retired: list[Listener] = []  # datagram sockets that serve their last flows
        self._ledger: Ledger[ListenerKey, ListenerCounters] = Ledger(
            lambda key: ListenerCounters(*key, upstream="")
        )
        self._route_ledger: Ledger[RouteKey, RouteCounters] = Ledger(
            lambda key: RouteCounters(*key)
        )

    @property
    def counters(self) -> list[ListenerCounters]:
        """Those of every listener, and of former ones that have flows."""
        return self._ledger.shown()

    @property
    def remembered(self) -> list[ListenerCounters]:
        """Those of every listener that is or was, and is not forgotten."""
        return list(self._ledger)

    @property
    def route_counters(self) -> list[RouteCounters]:
        """Those of every route that is counted."""
        return self._route_ledger.shown()

    @property
    def remembered_routes(self) -> list[RouteCounters]:
        """Those of every route that is or was counted, and is not forgotten."""
        return list(self._route_ledger)

    def listening(self) -> list[ListenRow]:
        """Every address that new flows may come by."""
        rows = (
            _listen_row(each, self._specs[name])
            for name, listeners in self._listeners.items()
            for each in listeners
            if each.is_open and not _is_draining(each)
        )
        return list({tuple(row.values()): row for row in rows}.values())

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

    def counted_drops(self) -> dict[int, int]:
        """Count what the kernel has dropped so far, and tell it by the sockets' cookies."""
        self.count_kernel_drops()
        return {
            cookie_of(each.socket): each.kernel_drops
            for each in self._accepting()
            if isinstance(each, DatagramListener)
        }

    def know_drops(self, counted: Mapping[int, int]) -> None:
        """Know what a predecessor has counted, by the cookies of sockets that are ours now."""
        for listener in self._accepting():
            if isinstance(listener, DatagramListener):
                known = counted.get(cookie_of(listener.socket))
                listener.kernel_drops = listener.kernel_drops if known is None else known

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
        self.upstreams.use(change.upstreams, now)
        specs = {name: spec for name, spec in self._specs.items() if name not in change.closed}
        specs |= {each.spec.name: each.spec for each in change.opened}
        specs |= {spec.name: spec for spec in change.changed}
        before, self._specs = self._specs, specs
        self._leave(before, specs)
        self._ledger.use((spec.name, spec.transport) for spec in specs.values())
        self._route_ledger.use(key for spec in specs.values() for key in _route_keys(spec))
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
        will = self._relay.will if spec.survive is Survive.CRASH else None
        terms = replace(terms, style=self.upstreams[spec.upstream].spec.style, will=will)
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
        ledger = self._route_ledger
        counters: dict[RoutePattern | None, RouteCounters] = {None: ledger[spec.name, ELSE]}
        for pattern, _ in spec.routes.upstreams:
            counters[pattern] = ledger[spec.name, str(pattern)]
        return counters

    def _route_to(self, spec: ListenerSpec, name: str) -> Way:
        route = self.upstreams[name]
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

    def terms_of_flow(self, flow: Flow) -> Terms:
        """What a live flow is held to, while its listener is there."""
        return self._terms[flow.counters.listener]

    def datagram_listener(self, name: str) -> DatagramListener | None:
        """The listener that opens this name's flows of datagrams, if it is open."""
        for listener in self._listeners.get(name, ()):
            if isinstance(listener, DatagramListener) and listener.is_open:
                return listener
        return None

    def counters_called(self, name: str, transport: Transport) -> ListenerCounters:
        """The counters of a listener, in use or not."""
        return self._ledger.of((name, transport))

    def stream_listener(self, name: str, transport: Transport) -> StreamListener | None:
        """The listener that takes this name's clients, if it is open."""
        for listener in self._listeners.get(name, ()):
            if isinstance(listener, StreamListener) and listener.is_open:
                return listener if listener.counters.transport is transport else None
        return None

    def take_waiting(self, names: Container[str]) -> list[Held]:
        """Have nobody wait at these listeners any more; the sockets are the caller's."""
        held: list[Held] = []
        for name, terms in self._terms.items():
            if name not in names:
                continue
            for preface in () if terms.prefaces is None else terms.prefaces.take_out():
                counters, (remote, local) = preface.listener.counters, preface.arrival
                state = ClientState(name, counters.transport, remote, local)
                held.append((state, preface.socket))
            for client in () if terms.waiting is None else terms.waiting.take_out():
                transport = client.listener.counters.transport
                ends = client.remote, client.local
                state = ClientState(name, transport, *ends, client.identity)
                held.append((state, client.socket))
        return held

    def refuse(self, held: Iterable[Held]) -> None:
        """Reset clients that waited, and can do so nowhere any more."""
        for state, socket in held:
            counters = self.counters_called(state.listener, state.transport)
            counters.refused[Refusal.DRAINING] += 1
            reset_on_close(socket)
            socket.close()

    def hold_full(self) -> None:
        """Have clients wait in the kernel where others, yet to come, may have taken all places."""
        for listener in self._accepting():
            if isinstance(listener, StreamListener) and self._is_limited(listener.counters):
                listener.pause()

    def let_in(self) -> None:
        """Take those clients too."""
        for listener in self._accepting():
            if isinstance(listener, StreamListener):
                listener.resume()

    def _is_limited(self, counters: ListenerCounters) -> bool:
        """Whether there is a ceiling for the flows of a listener, or of its endpoints."""
        spec = self._specs[counters.listener]
        admission = spec.admission
        if admission.flows is not None or admission.source_flows is not None:
            return True
        routed = () if spec.routes is None else (name for _, name in spec.routes.upstreams)
        return any(
            endpoint.ceiling < inf
            for name in (spec.upstream, *routed)
            for endpoint in self.upstreams[name].spec.endpoints
        )

    def pause(self) -> None:
        """Take neither clients nor datagrams, until ``resume``: they wait in the kernel."""
        for listener in self._accepting():
            listener.pause()

    def resume(self) -> None:
        """Take clients and datagrams again."""
        for listener in self._accepting():
            listener.resume()

    def part(self, now: float, served: Container[int] | None = None) -> None:
        """Leave the listening sockets to others, after a ``pause``.

        One of datagrams stays open for the answers of flows that stay; and they get what comes by
        it, if nobody else reads it.

        Args:
            now: monotonic seconds.
            served: the sockets that others have, by their cookies; None: all.

        """
        for listener in list(self._accepting()):
            if isinstance(listener, DatagramListener):
                if served is None or cookie_of(listener.socket) in served:
                    listener.is_counted = False
                else:
                    listener.resume()
                listener.retire(now)
            else:
                listener.close()

    def retire(self, name: str, now: float) -> None:
        """Accept no more for this name; it stays configured."""
        for listener in self._listeners[name]:
            if listener.is_open:
                listener.retire(now)

    def retire_all(self, now: float) -> None:
        """Accept no more."""
        for name in self._listeners:
            self.retire(name, now)

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
        return self.upstreams.knows(target.upstream or "", target.endpoint or "")

    def is_wanted(self, target: DrainTarget) -> bool:
        """Whether flows of a target may be opened: what drained it is over."""
        if target.listener is not None:
            return any(row["listener"] == target.listener for row in self.listening())
        return self.upstreams.is_wanted(target.upstream or "", target.endpoint or "")

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
        upstream, connect = self.upstreams[spec.upstream].upstream, self._way(spec, spec.upstream)
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
        counters, upstream = self.counters_of(spec), self.upstreams[spec.upstream].upstream
        counters.upstream = spec.upstream
        connect, terms = self._way(spec, spec.upstream), self._terms[spec.name]
        if isinstance(listener, StreamListener):
            listener.serve(counters, terms, upstream, connect)
            return
        kind = _kind_of(spec, terms)
        listener.serve(counters, terms, upstream, spec.datagrams, kind, connect)

    def _way(self, spec: ListenerSpec, upstream: str) -> Connect:
        route = self.upstreams[upstream]
        as_client = spec.transparent and route.pool is None
        marks = route.spec.marks._replace(transparent=as_client)
        outbound = Outbound(marks, route.pool, as_client, route.spec.copies_dscp)
        if spec.transport.is_datagram:
            return outbound.way(SOCK_DGRAM)
        return outbound.way(SOCK_STREAM, spec.options)


def _route_keys(spec: ListenerSpec) -> Iterator[RouteKey]:
    """The routes of a listener that are counted."""
    if spec.routes is not None and spec.routes.counted:
        for pattern, _ in spec.routes.upstreams:
            yield spec.name, str(pattern)
        yield spec.name, ELSE


def _kind_of(spec: ListenerSpec, terms: Terms) -> type[DatagramFlow]:
    """The class of a datagram listener's flows."""
    if spec.transport.is_unix:
        return UnixgramFlow
    return LimitedFlow if terms.policing is not None else flow_type_of(spec.datagrams)


def _held_to(spec: ListenerSpec) -> tuple[object, ...]:
    """What the live flows of a listener must be told of when it changes."""
    return astuple(spec.limits), spec.bandwidth, spec.admission.dry_run


def _again(listener: Listener | None, socket: Socket) -> Listener | None:
    """A listener that was known, open for flows whatever it was before; it has its socket."""
    if listener is not None and listener.socket is not socket:
        socket.close()
    if isinstance(listener, DatagramListener):
        listener.draining = False
    return listener


def _is_draining(listener: Listener) -> bool:
    return isinstance(listener, DatagramListener) and listener.draining


def _listen_row(listener: Listener, spec: ListenerSpec) -> ListenRow:
    counters = listener.counters
    return {
        "listener": counters.listener,
        "transport": counters.transport.value,
        "local": format_address(listener.address),
        "upstream": counters.upstream,
        "survive": spec.survive.value,
    }
