"""Accepting stream flows: admit or refuse, and never wait.

Sockets of flows are of the C type that ``socket.socket`` is derived from: it is smaller, and made
without asking the kernel what we know already.

The listening socket is level-triggered: what is not accepted in this round is told again in the
next, so a burst of connections cannot hold up the flows that exist.
"""

from __future__ import annotations

import errno
from select import EPOLLIN, POLLIN, poll
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, SOCK_STREAM
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

import structlog

from proxy.core.address import WILDCARDS, Transport
from proxy.core.flow import Refusal
from proxy.core.original import OriginalUpstream
from proxy.engine.connect import NO_KEY
from proxy.engine.copied import CopiedWay, dscp_of_stream, keep_syn
from proxy.engine.identified import IdentifiedFlow
from proxy.engine.marks import IP_TRANSPARENT, IPV6_TRANSPARENT, prioritize
from proxy.engine.original import is_circle, original_destination
from proxy.engine.routed import RoutedFlow
from proxy.engine.sockaddr import canonical
from proxy.engine.stream import FILES_PER_FLOW, StreamFlow
from proxy.engine.survival.surviving import SURVIVING, Surviving
from proxy.engine.tcp import read_in_line, reset_on_close
from proxy.engine.waiting import WaitingClient

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.counters import ListenerCounters
    from proxy.core.identity import Identity
    from proxy.core.sources import SourceKey
    from proxy.core.upstream import Choice, Upstream
    from proxy.core.wheel import Slot
    from proxy.engine.outbound import Connect
    from proxy.engine.relay import Relay
    from proxy.engine.terms import Terms

ACCEPTS_PER_TURN: Final = 16
"""Rejected: to accept as many as were there in the last turn, which spares the call that finds
nothing. The round that tells of the others costs more than that."""

LAST_TURNS: Final = 4096
"""Turns in which a listener that closes accepts who has connected already: any backlog."""

PAUSE: Final = 0.1
"""Seconds without accepting when a resource has run out; clients wait in the backlog."""

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# accept(2): errors of one connection, already pending on the new socket; the next may be fine.
ONE_CONNECTION: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EPERM,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)

DIVERTED: Final[dict[int, tuple[int, int]]] = {
    AF_INET: (IPPROTO_IP, IP_TRANSPARENT),
    AF_INET6: (IPPROTO_IPV6, IPV6_TRANSPARENT),
}
"""The option, level and name, by which a socket takes clients who meant another address."""

log = structlog.get_logger()


class StreamListener:
    """A listening TCP socket of ours. Owns it.

    Args:
        relay: where its flows live.
        socket: bound, listening, non-blocking.
        counters: the counters of its listener.
        terms: what its flows are held to.
        upstream: where its flows go.
        connect: makes the sockets to endpoints.

    """

    def __init__(
        self,
        relay: Relay,
        socket: Socket,
        counters: ListenerCounters,
        terms: Terms,
        upstream: Upstream,
        connect: Connect,
    ) -> None:
        self.relay = relay
        self.socket = socket
        self.address: Address = canonical(socket.getsockname())
        self.is_open = True
        self.terms = terms
        self.serve(counters, terms, upstream, connect)
        self.slot: Slot | None = None
        self._fd = socket.fileno()
        self._family = int(socket.family)
        self._mapped = self._family == AF_INET6
        self._local = _only_address(socket)
        relay.own(self.address)
        relay.files.set_aside(1)
        relay.pump.register(self._fd, self, EPOLLIN)

    def serve(
        self,
        counters: ListenerCounters,
        terms: Terms,
        upstream: Upstream,
        connect: Connect,
    ) -> None:
        """Treat flows like this from the next one on."""
        self._leave_room(counters)
        self.counters = counters
        self.terms = terms
        self.upstream = upstream
        self.connect = connect
        self._original = upstream if isinstance(upstream, OriginalUpstream) else None
        self._copied = connect if isinstance(connect, CopiedWay) else None
        self._is_plain = self._original is None and self._copied is None
        if self.socket.family in DIVERTED:  # not of a Unix socket
            copies = self._copied is not None or (terms.routes and terms.routes.copies_dscp)
            keep_syn(self.socket, wanted=bool(copies))

    def ready(self, mask: int, now: float) -> None:
        """Accept what waits, within a turn."""
        # What socket.accept() calls too; it then asks the kernel for what we know.
        accept = self.socket._accept  # type: ignore[attr-defined]
        for _ in range(ACCEPTS_PER_TURN):
            try:
                fd, address = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._pause(error, now)
                elif error.errno not in ONE_CONNECTION:
                    raise
                return
            self._admit(Socket(self._family, SOCK_STREAM, 0, fd), address, now)

    def pause(self) -> None:
        """Accept nobody, until ``resume``."""
        self.relay.wheel.cancel(self)  # of a pause for want of something
        if self.relay.pump.serves(self._fd, self):
            self.relay.pump.release(self._fd)

    def resume(self) -> None:
        """Accept again."""
        if self.is_open and not self.relay.pump.serves(self._fd, self):
            self.relay.pump.register(self._fd, self, EPOLLIN)

    def receive(
        self,
        client: Socket,
        remote: Address,
        local: Address,
        now: float,
        identity: Identity | None,
    ) -> None:
        """Take in a client that a predecessor had accepted."""
        read_in_line(client)
        if identity is not None or self.terms.prefaces is None:
            self.decide(client, remote, local, now, identity)
        else:
            self.terms.prefaces.arrive(self, client, remote, local, now)

    def retire(self, now: float) -> None:
        """Accept who has connected already, and then no more.

        The kernel resets what waits in the queue of a socket that is closed.
        """
        waiting = poll()
        waiting.register(self._fd, POLLIN)
        for _ in range(LAST_TURNS):
            if self.slot is not None or not waiting.poll(0):
                break
            try:
                self.ready(EPOLLIN, now)
            except Exception as error:  # whoever retires us must not fail for it
                self.crashed(error, now)
                break
        self.close()

    def close(self) -> None:
        """Accept no more."""
        if self.is_open:
            self.is_open = False
            self._leave_room()
            if self.terms.prefaces is not None:
                self.terms.prefaces.close(self)
            self.relay.wheel.cancel(self)
            self.relay.disown(self.address)
            self.relay.files.set_aside(-1)
            self.relay.pump.bury(self.socket)

    def expire(self, now: float) -> None:
        """The pause is over."""
        self.relay.pump.modify(self._fd, EPOLLIN)

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours; the listener lives on."""
        log.error("accept_crashed", listener=self.counters.listener, exc_info=error)

    def _admit(self, client: Socket, address: Address, now: float) -> None:
        local: Address = self._local or client.getsockname()
        if self._mapped:
            address, local = canonical(address), canonical(local)
        if self.terms.prefaces is None:
            self.decide(client, address, local, now)
        else:
            self.terms.prefaces.arrive(self, client, address, local, now)

    def decide(
        self,
        client: Socket,
        remote: Address,
        local: Address,
        now: float,
        identity: Identity | None = None,
    ) -> None:
        """Admit a client, have it wait, or refuse it."""
        waiting = self.terms.waiting
        if waiting is not None:
            waiting.arrive(WaitingClient(self, client, remote, local, now, identity), now)
            return
        refusal = self.refusal(client, remote, local, now)
        source = NO_KEY
        if not self.counters.gate.is_free:
            source = self.source_of(client, remote)
            refusal = refusal or self.counters.ceiling(source, now)
        if refusal is None:
            self.open(client, remote, local, source, now, identity)
        else:
            self.refuse(client, refusal)

    def source_of(self, client: Socket, remote: Address) -> SourceKey:
        """The key of the source that a client belongs to."""
        return self.counters.gate.key(remote[0])

    def refusal(
        self, client: Socket, remote: Address, local: Address, now: float
    ) -> Refusal | None:
        """Why a client is not let in, whatever the gate says; or None."""
        access, relay = self.terms.access, self.relay
        if not (access.everybody or access.admits(remote[0])):
            return Refusal.ACCESS
        if relay.table.comes_round(self.counters, remote, local):
            return Refusal.LOOP
        return self.room(client, remote, now)

    def room(self, client: Socket, remote: Address, now: float) -> Refusal | None:
        """Why there is no room for a client here or by an order; or None."""
        relay = self.relay
        refusal = relay.refusal(FILES_PER_FLOW)
        if refusal is None and not relay.orders.are_there:  # nearly always
            return None
        if refusal is Refusal.TABLE_FULL:
            refusal = relay.press(FILES_PER_FLOW, self.holder(client, remote), now)
        return refusal or relay.orders.refusal(self.counters, remote)

    def holder(self, client: Socket, remote: Address) -> SourceKey:
        """The source that holds a client's flow in a full table, though nobody else asks for it."""
        return self.counters.gate.limits.key(remote[0])

    def open(
        self,
        client: Socket,
        remote: Address,
        local: Address,
        source: SourceKey,
        now: float,
        identity: Identity | None = None,
    ) -> None:
        """Open the flow of a client that the gate has admitted."""
        terms = self.terms
        if terms.is_plain and self._is_plain and identity is None:
            counters, limits = self.counters, terms.limits
            kind = StreamFlow if terms.will is None else Surviving
            flow = kind(self.relay, counters, limits, client, remote, local, now, source)
            flow.start(self.upstream, self.connect, now, terms.bandwidth)
        else:
            self._open_special(client, remote, local, source, now, identity)

    def _open_special(
        self,
        client: Socket,
        remote: Address,
        local: Address,
        source: SourceKey,
        now: float,
        identity: Identity | None,
    ) -> None:
        """Do so where there is more to a flow than its addresses."""
        upstream: Choice = self.upstream
        terms, connect = self.terms, self.connect
        if self._original is not None:
            destination = original_destination(client, local)
            if is_circle(self.relay, Transport.TCP, remote, destination):
                self.counters.gate.tell()
                self.refuse(client, Refusal.LOOP)
                return
            upstream = self._original.towards(destination)
        if self._copied is not None and terms.routes is None:
            connect = self._copied.with_dscp(dscp_of_stream(client))
        if terms.priority is not None:
            prioritize(client, terms.priority)
        kind: type[StreamFlow] = StreamFlow
        if terms.routes is not None:
            kind = RoutedFlow
        elif identity is not None or terms.style is not None:
            kind = IdentifiedFlow
        if terms.will is not None:
            kind = SURVIVING[kind]
        flow = kind(self.relay, self.counters, terms.limits, client, remote, local, now, source)
        if isinstance(flow, IdentifiedFlow):
            flow.identity, flow.style = identity, terms.style
        if isinstance(flow, RoutedFlow) and terms.routes is not None:
            flow.routes = terms.routes
        flow.start(upstream, connect, now, terms.bandwidth)

    def refuse(self, client: Socket, refusal: Refusal) -> None:
        """Reset a client, and count why."""
        self.counters.refused[refusal] += 1
        reset_on_close(client)
        client.close()

    def _leave_room(self, counters: ListenerCounters | None = None) -> None:
        """Refuse who waits here, unless the listener goes on under the same name."""
        waiting = self.terms.waiting
        if waiting is not None and waiting.counters is not counters:
            waiting.close(self)

    def _pause(self, error: OSError, now: float) -> None:
        self.counters.refused[Refusal.FILE_DESCRIPTORS] += 1
        log.warning("accept_paused", listener=self.counters.listener, error=error.strerror)
        self.relay.pump.modify(self._fd, 0)
        self.relay.wheel.schedule(self, now + PAUSE)


def _only_address(socket: Socket) -> Address | None:
    """The local address that every client of a listening socket hits; None if it may vary.

    It varies on a wildcard, and where TPROXY brings clients who meant somebody else.
    """
    if socket.family not in DIVERTED:
        return None
    address: Address = socket.getsockname()
    varies = address[0] in WILDCARDS or socket.getsockopt(*DIVERTED[socket.family])
    return None if varies else address
