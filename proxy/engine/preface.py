"""Clients that come through a proxy: they wait here until its header has said who they are.

Only then are they admitted, so that access lists, ceilings and the table know the client and not
the proxy. Meanwhile they are bounded by themselves: each has its time, holds one descriptor, and of
more than ``CROWD`` the one that has waited longest goes. A proxy sends its header with the first
segment, so who waits long will hardly send one.

A header is looked at and left in the kernel's queue (MSG_PEEK) until it is whole; then it is taken
out, and no byte more. What stands behind it is therefore received by the flow as ever, urgent data
and the end of the stream included, also when the client must wait to be admitted. Rejected: to
receive and keep what is too much, which every one of those would have to know of. A header that
comes byte by byte is looked at four thousand times at most.
"""

from __future__ import annotations

from select import EPOLLET, EPOLLIN, EPOLLRDHUP
from socket import MSG_DONTWAIT, MSG_PEEK
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from proxy.core.address import format_address
from proxy.core.flow import Refusal
from proxy.core.identity import Arrival, Identity, kept_tlvs
from proxy.core.proxy_header import HEADER_MAX, MORE, Answer, BadHeader, Header, HeaderFault
from proxy.core.proxy_protocol import read_header
from proxy.engine.tcp import reset_on_close

if TYPE_CHECKING:
    from proxy.core.access import AccessList
    from proxy.core.address import Address
    from proxy.core.wheel import Slot
    from proxy.engine.accept import StreamListener
    from proxy.engine.relay import Relay

CROWD: Final = 1024
"""Clients of a listener that wait at once: what a proxy can open within a round trip."""

QUIET: Final = 10.0
"""Seconds between two lines of the log about bad headers of a listener; all are counted."""

NEWS: Final = EPOLLIN | EPOLLRDHUP | EPOLLET

log = structlog.get_logger()


class ProxyTerms(NamedTuple):
    """Who must say in whose name it comes.

    Attributes:
        trusted: admits exactly those who must, and are believed.
        alone: whether nobody else may come.
        time: seconds that a header may take.

    """

    trusted: AccessList
    alone: bool
    time: float


class PrefaceRoom:
    """The clients of one listener whose headers are awaited.

    Args:
        relay: where flows live.
        terms: who must send a header; may be set anew.

    """

    def __init__(self, relay: Relay, terms: ProxyTerms) -> None:
        self.terms = terms
        self._relay = relay
        self._waiting: dict[Preface, None] = {}  # the oldest first
        self._told = -QUIET

    def __len__(self) -> int:
        return len(self._waiting)

    def arrive(
        self, listener: StreamListener, client: Socket, remote: Address, local: Address, now: float
    ) -> None:
        """Have a client that was accepted say who it is, if it must."""
        if not self.terms.trusted.admits(remote[0]):
            if self.terms.alone:
                listener.refuse(client, Refusal.ACCESS)
            else:
                listener.decide(client, remote, local, now)
            return
        refusal = self._refusal(listener, remote, local)
        if refusal is not None:
            listener.refuse(client, refusal)
            return
        arrival = Arrival(remote, local)
        answer = look(client)
        if isinstance(answer, Header) and take(client, answer):  # it has come with the connection
            introduce(listener, client, arrival, answer, now)
            return
        if isinstance(answer, BadHeader):  # nobody who waits goes for it
            self._tell(listener, remote, answer.fault, now)
            listener.refuse(client, Refusal.BAD_HEADER)
            return
        preface = Preface(self, listener, client, arrival)
        self._hold(preface, now)
        preface.ready(EPOLLIN, now)  # what has come since then

    def close(self, listener: StreamListener) -> None:
        """Refuse all that came by a socket which accepts no more."""
        for preface in [each for each in self._waiting if each.listener is listener]:
            self.refuse(preface, Refusal.DRAINING)

    def take_out(self) -> list[Preface]:
        """Await nothing any more; the sockets are the caller's, with all they have sent."""
        prefaces = list(self._waiting)
        for preface in prefaces:
            self.let_go(preface)
            self._relay.pump.release(preface.socket.fileno())
        return prefaces

    def let_go(self, preface: Preface) -> None:
        """Await no header any more; the socket is the caller's."""
        del self._waiting[preface]
        self._relay.files.used -= 1
        self._relay.wheel.cancel(preface)

    def admit(self, preface: Preface, header: Header, now: float) -> None:
        """Let in whom a header has declared, if the listener does; its bytes have been taken."""
        if not preface.listener.is_open:  # closed since a reload that expects no headers any more
            self.refuse(preface, Refusal.DRAINING)
            return
        self.let_go(preface)
        self._relay.pump.release(preface.socket.fileno())
        introduce(preface.listener, preface.socket, preface.arrival, header, now)

    def refuse_header(self, preface: Preface, fault: HeaderFault, now: float) -> None:
        """Refuse a client for its header, and say why, if nothing was said lately."""
        self._tell(preface.listener, preface.arrival.remote, fault, now)
        self.refuse(preface, Refusal.BAD_HEADER)

    def refuse(self, preface: Preface, refusal: Refusal) -> None:
        """Reset a client, and count why."""
        self.let_go(preface)
        preface.listener.counters.refused[refusal] += 1
        reset_on_close(preface.socket)
        self._relay.pump.bury(preface.socket)

    def _tell(
        self, listener: StreamListener, remote: Address, fault: HeaderFault, now: float
    ) -> None:
        """Log a bad header, if nothing was said lately."""
        if now >= self._told + QUIET:
            self._told = now
            name, peer = listener.counters.listener, format_address(remote)
            log.warning("bad_header", listener=name, peer=peer, reason=fault.value)

    def _refusal(self, listener: StreamListener, remote: Address, local: Address) -> Refusal | None:
        """Why no header is awaited of a peer: what is not to be asked of the declared client."""
        relay = self._relay
        if relay.table.comes_round(listener.counters, remote, local):
            return Refusal.LOOP
        return None if relay.files.has(1) else Refusal.FILE_DESCRIPTORS

    def _hold(self, preface: Preface, now: float) -> None:
        relay = self._relay
        if len(self._waiting) >= CROWD:
            next(iter(self._waiting)).expire(now)
        self._waiting[preface] = None
        relay.files.used += 1
        relay.wheel.schedule(preface, now + self.terms.time)
        relay.pump.register(preface.socket.fileno(), preface, NEWS)


class Preface:
    """A client whose header is awaited; a ``Handler``, and ``Timed``. Owns its socket.

    Attributes:
        arrival: both ends of its socket.

    """

    __slots__ = ("arrival", "listener", "room", "slot", "socket")

    def __init__(
        self, room: PrefaceRoom, listener: StreamListener, socket: Socket, arrival: Arrival
    ) -> None:
        self.room = room
        self.listener = listener
        self.socket = socket
        self.arrival = arrival
        self.slot: Slot | None = None

    def ready(self, mask: int, now: float) -> None:
        """Look at what has come."""
        answer = look(self.socket)
        if isinstance(answer, BadHeader):
            self.room.refuse_header(self, answer.fault, now)
        elif answer is MORE:
            if mask & EPOLLRDHUP:
                self.room.refuse_header(self, HeaderFault.INCOMPLETE, now)
        elif take(self.socket, answer):
            self.room.admit(self, answer, now)
        else:
            self.room.refuse_header(self, HeaderFault.INCOMPLETE, now)

    def expire(self, now: float) -> None:
        """Its time is over."""
        self.room.refuse_header(self, HeaderFault.INCOMPLETE, now)

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours, and let it go."""
        log.error("preface_crashed", listener=self.listener.counters.listener, exc_info=error)
        self.room.refuse(self, Refusal.BAD_HEADER)


def look(socket: Socket) -> Answer:
    """What has come so far, and stays where it is; an end or a failure is no header."""
    try:
        data = socket.recv(HEADER_MAX, MSG_PEEK | MSG_DONTWAIT)
    except BlockingIOError:
        return MORE
    except OSError:  # it was reset
        return BadHeader(HeaderFault.INCOMPLETE)
    return read_header(data) if data else BadHeader(HeaderFault.INCOMPLETE)


def take(socket: Socket, header: Header) -> bool:
    """Take the header that was looked at out of the queue; false if it was reset in between."""
    try:
        return len(socket.recv(header.size, MSG_DONTWAIT)) == header.size
    except OSError:
        return False


def introduce(
    listener: StreamListener, client: Socket, arrival: Arrival, header: Header, now: float
) -> None:
    """Have a listener decide about whom a header declares, or about who sent it."""
    remote, local = arrival
    if type(header.source) is tuple and type(header.destination) is tuple:
        remote, local = header.source, header.destination
    listener.decide(client, remote, local, now, Identity(arrival, kept_tlvs(header.tlvs)))
