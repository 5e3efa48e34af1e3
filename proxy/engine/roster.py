"""The listeners of a worker: what the last change made of them; for upstreams see ``upstreams``.

A listener here is one socket. A name may have had another socket before: that one accepts no more,
and a datagram socket is still served until the last of its flows has ended, because their clients
send to it. What a flow needs of its listener it holds itself, so a stream listener can go at once.

Counters go by name and transport, for the life of the process; see ``core.ledger``.

``apply`` changes the books and awaits nothing; it returns what remains to be told to live flows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple
from typing import TYPE_CHECKING, TypeAlias

from proxy.core.address import Transport, format_address
from proxy.core.admission import NOBODY
from proxy.core.counters import ListenerCounters
from proxy.core.ledger import Ledger
from proxy.core.route_counters import RouteCounters
from proxy.engine.accept import StreamListener
from proxy.engine.counted import flow_type_of
from proxy.engine.datagram_listener import DatagramListener
from proxy.engine.limited import LimitedFlow
from proxy.engine.parts import BandwidthPart
from proxy.engine.sources import source_key_of
from proxy.engine.specs import OpenListener, cookie_of
from proxy.engine.terms import Terms
from proxy.engine.terms_maker import RouteKey, TermsMaker, route_keys
from proxy.engine.transparent import TransparentListener
from proxy.engine.unix_listeners import UnixgramFlow, UnixgramListener, UnixListener
from proxy.engine.upstreams import Upstreams

if TYPE_CHECKING:
    from socket import SocketType as Socket

    from proxy.core.admission import AdmissionLimits, Gate
    from proxy.core.flow import Flow
    from proxy.core.sources import SourceKey
    from proxy.engine.datagram import DatagramFlow
    from proxy.engine.port import ListenRow
    from proxy.engine.relay import Relay
    from proxy.engine.specs import (
        Change,
        DrainTarget,
        ListenerSpec,
    )

Listener: TypeAlias = StreamListener | DatagramListener
ListenerKey: TypeAlias = tuple[str, Transport]


class Roster:
    """Listeners and upstreams of one worker.

    Args:
        relay: where flows live.

    Attributes:
        upstreams: where flows go.
        specs: what the listeners are, by name.
        terms: what their flows are held to, by name.

    """

    def __init__(self, relay: Relay) -> None:
        self.upstreams = Upstreams(relay)
        self._relay = relay
        self._listeners: dict[str, list[Listener]] = {}
        self.specs: dict[str, ListenerSpec] = {}
        self.terms: dict[str, Terms] = {}
        self._parts: list[BandwidthPart] = []
        self._retired: list[Listener] = []  # datagram sockets that serve their last flows
        self._ledger: Ledger[ListenerKey, ListenerCounters] = Ledger(
            lambda key: ListenerCounters(*key, upstream="")
        )
        self._route_ledger: Ledger[RouteKey, RouteCounters] = Ledger(
            lambda key: RouteCounters(*key)
        )
        self._maker = TermsMaker(relay, self.upstreams, self._route_ledger, self.counters_of)

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
            _listen_row(each, self.specs[name])
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
        for listener in (*self.accepting(), *self._retired):
            if isinstance(listener, DatagramListener):
                listener.count_kernel_drops()

    def look_around(self, now: float) -> None:
        """Have the listeners that all workers limit together know what the others admit."""
        for spec in self.specs.values():
            if spec.slot is not None:
                self.counters_of(spec).gate.look(now)
                waiting = self.terms[spec.name].waiting
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
        specs = {name: spec for name, spec in self.specs.items() if name not in change.closed}
        specs |= {each.spec.name: each.spec for each in change.opened}
        specs |= {spec.name: spec for spec in change.changed}
        before, self.specs = self.specs, specs
        self._leave(before, specs)
        self._ledger.use((spec.name, spec.transport) for spec in specs.values())
        self._route_ledger.use(key for spec in specs.values() for key in route_keys(spec))
        for spec in specs.values():
            counters = self.counters_of(spec)
            counters.gate.become(spec.admission, now, self._sources(counters, spec.admission))
            self._join(counters.gate, before.get(spec.name), spec)
        former = self.terms
        self.terms = {
            name: self._maker.terms(spec, self.terms.get(name), now) for name, spec in specs.items()
        }
        self._parts = list(self._divided(now))
        self._exchange(change.opened, change.closed, now)
        self.serve_again()
        self._let_wait(former, now)
        return {
            self.counters_of(spec): self.terms[name]
            for name, spec in specs.items()
            if name in before and _held_to(before[name]) != _held_to(spec)
        }

    def serve_again(self) -> None:
        """Have the listeners treat flows as if nothing had ever been ordered."""
        for name, listeners in self._listeners.items():
            for listener in listeners:
                if listener.is_open:
                    self._serve(listener, self.specs[name])

    def _divided(self, now: float) -> Iterator[BandwidthPart]:
        """The bandwidths that all workers keep to together."""
        commons = self._relay.commons
        for name, spec in self.specs.items():
            shared = self.terms[name].bandwidth or self.terms[name].policing
            if commons is None or spec.slot is None or shared is None:
                continue
            if spec.bandwidth.original.listener or spec.bandwidth.reply.listener:
                row = commons.row(spec.slot, self._relay.index)
                yield BandwidthPart(row, shared, spec.bandwidth, self.counters_of(spec), now)

    def _let_wait(self, former: dict[str, Terms], now: float) -> None:
        """Have those who wait do so by the limits in force, or no longer."""
        rooms = {name: terms.waiting for name, terms in self.terms.items()}
        for name, terms in former.items():
            if terms.waiting is not None and terms.waiting is not rooms.get(name):
                terms.waiting.dissolve(now)
        for name, room in rooms.items():
            limits = self.specs[name].waiting
            if room is not None and limits is not None:
                room.become(limits, now)

    def counters_of(self, spec: ListenerSpec) -> ListenerCounters:
        """The counters of a listener in use."""
        return self._ledger[spec.name, spec.transport]

    def spec_of(self, name: str, transport: Transport) -> ListenerSpec | None:
        """What a listener is, if it is there."""
        spec = self.specs.get(name)
        return spec if spec is not None and spec.transport is transport else None

    def terms_of(self, spec: ListenerSpec) -> Terms:
        """What the flows of a listener in use are held to."""
        return self.terms[spec.name]

    def terms_of_flow(self, flow: Flow) -> Terms:
        """What a live flow is held to, while its listener is there."""
        return self.terms[flow.counters.listener]

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
            cookie_of(each.socket) for each in (*self.accepting(), *self._retired) if each.is_open
        ]

    def close(self) -> None:
        """Close every listening socket at once."""
        for listener in (*self.accepting(), *self._retired):
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

    def accepting(self) -> Iterator[Listener]:
        """The listeners that are open for new flows, those that only drain among them."""
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
        upstream, connect = (
            self.upstreams[spec.upstream].upstream,
            self._maker.way(spec, spec.upstream),
        )
        terms, datagrams = self.terms[spec.name], spec.datagrams
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
        connect, terms = self._maker.way(spec, spec.upstream), self.terms[spec.name]
        if isinstance(listener, StreamListener):
            listener.serve(counters, terms, upstream, connect)
            return
        kind = _kind_of(spec, terms)
        listener.serve(counters, terms, upstream, spec.datagrams, kind, connect)


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
