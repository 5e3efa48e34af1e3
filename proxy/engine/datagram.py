"""A datagram flow: a client of a datagram listener, and a connected socket to the endpoint.

Original direction: the listener receives, and the flow sends through its connected socket. Reply
direction: the flow's socket receives into the round's reply batch, which goes out with one call.

Nothing is queued: a datagram is sent, or dropped and counted. An ICMP error is counted by its kind
and ends nothing, because a datagram endpoint may be back for the next one; see ``icmp``.

Only the client's datagrams keep a flow alive (RFC 4787 REQ-6): an endpoint that goes on sending to
a client who has left must not hold the flow for ever.
"""

from __future__ import annotations

import errno
from select import EPOLLERR, EPOLLIN
from socket import AF_UNIX, MSG_DONTWAIT
from socket import SocketType as Socket
from time import monotonic
from typing import TYPE_CHECKING, Final

import structlog

from proxy.core.events import EventKind
from proxy.core.expiry import FlowLimits, deadline_of, next_look
from proxy.core.flow import CloseReason, CloseSide, Direction, Drop, Flow, State
from proxy.core.proxy_protocol import write_header
from proxy.core.unix import UnixAddress
from proxy.engine.connect import count_failure, side_of, source_for
from proxy.engine.datagram_options import set_pmtu
from proxy.engine.drops import drop_of, kernel_drops
from proxy.engine.group import Answers, is_group, open_group
from proxy.engine.headed import unix_with_header, with_header
from proxy.engine.icmp import ask_for_errors, take_errors
from proxy.engine.passive import ended, missed
from proxy.engine.sockaddr import canonical
from proxy.engine.survival.will import ASSURED
from proxy.engine.tcp import CLOSED
from proxy.engine.trains import TrainReader
from proxy.engine.unix import UnixDatagramSocket

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.endpoint import Endpoint
    from proxy.core.proxy_protocol import HeaderStyle
    from proxy.core.responders import Responders
    from proxy.core.sources import SourceKey
    from proxy.core.upstream import Choice
    from proxy.core.wheel import Slot
    from proxy.engine.datagram_listener import DatagramListener
    from proxy.engine.limited import Allowance
    from proxy.engine.outbound import Connect
    from proxy.engine.terms import Terms

FILES_PER_FLOW: Final = 1

GONE: Final = frozenset({Drop.REFUSED, Drop.HOST_UNREACHABLE, Drop.NET_UNREACHABLE})
"""ICMP errors that say the endpoint is not there; the others are about single datagrams."""

UNREPLIED: Final = State.UNREPLIED

log = structlog.get_logger()


class DatagramFlow(Flow):
    """One UDP flow. Owns its connected socket.

    Attributes:
        fd: the socket that answers leave by: the listener's, as a rule.
        key: what its client's datagrams are looked up by.
        name: the client's raw address.
        control: makes answers leave from the address the client hit; empty on a specific bind.
        answers: what hears them where the endpoint is many hosts; else None.
        allowance: what it may still do, if it is limited; see ``limited``.

    """

    __slots__ = (
        "allowance",
        "answers",
        "control",
        "fd",
        "key",
        "listener",
        "name",
        "slot",
        "socket",
    )

    def __init__(
        self,
        listener: DatagramListener,
        key: bytes,
        name: bytes,
        control: bytes,
        client_remote: Address,
        client_local: Address,
        now: float,
        source_key: SourceKey = "",
    ) -> None:
        super().__init__(
            listener.relay.table.take_id(),
            listener.counters,
            client_remote,
            client_local,
            Direction(),
            Direction(),
            State.UNREPLIED,
            now,
            source_key,
        )
        self.listener = listener
        self.fd = listener.fd
        self.key = key
        self.name = name
        self.control = control
        self.socket = CLOSED
        self.answers: Answers | None = None
        self.allowance: Allowance | None = None
        self.slot: Slot | None = None

    @property
    def limits(self) -> FlowLimits:
        """The clocks in force."""
        return self.listener.terms.limits

    @property
    def responders(self) -> Responders | None:
        """Who answered, where the endpoint is many hosts."""
        return None if self.answers is None else self.answers.responders

    def ready(self, mask: int, now: float) -> None:
        """Receive one reply; what else waits is told again in the next round."""
        try:
            size = self.listener.replies.receive(self, now)
        except OSError as error:
            self.receive_failed(mask, error)
            return
        self.count_reply(size)

    def receive_failed(self, mask: int, error: OSError) -> None:
        """Count what the socket reported in place of a reply."""
        if isinstance(error, BlockingIOError):
            if mask & EPOLLERR:
                self._count_errors()
        elif not self._count_errors():
            self.counters.dropped[drop_of(error)] += 1

    def read_trains(self) -> None:
        """Receive many replies a call from now on: they come faster than one a round."""
        pump, fd = self.listener.relay.pump, self.socket.fileno()
        if self.listener.trains and self.socket.family != AF_UNIX and pump.serves(fd, self):
            pump.hand_over(fd, TrainReader(self))

    def take_reply(self, size: int, now: float) -> None:
        """Pass on a reply that somebody else has received into the batch for this flow."""
        self.count_reply(size)
        self.listener.replies.put(self, size)

    def count_reply(self, size: int, packets: int = 1) -> None:
        """Count a reply, or a train of them, that has been received."""
        reply = self.reply
        reply.bytes += size
        reply.packets += packets
        counters = self.counters.reply
        counters.received += size
        counters.packets += packets
        if self.state is UNREPLIED:
            self._assure()

    def send(self, data: memoryview, now: float) -> None:
        """Pass a client's datagram on to the endpoint."""
        size = len(data)
        self.active = now
        original = self.original
        original.bytes += size
        original.packets += 1
        counters = self.counters.original
        counters.received += size
        counters.packets += 1
        try:
            self.socket.send(data, MSG_DONTWAIT)
        except OSError as error:
            self._send_again(data, error)

    def count_request(self, size: int, now: float) -> None:
        """Count a client's datagram that is not sent on; ``send`` counts those that are."""
        self.active = now
        self.original.bytes += size
        self.original.packets += 1
        self.counters.original.received += size
        self.counters.original.packets += 1

    def request_dropped(self, size: int, drop: Drop) -> None:
        """Count a client's datagram that did not reach the endpoint's network."""
        self.counters.dropped[drop] += 1
        self.counters.original.discarded += size
        self.counters.original.packets_discarded += 1

    def reply_dropped(self, size: int, drop: Drop) -> None:
        """Count a reply that did not reach the client's network."""
        self.counters.dropped[drop] += 1
        self.counters.reply.discarded += size
        self.counters.reply.packets_discarded += 1

    def start(self, upstream: Choice, connect: Connect, now: float) -> bool:
        """Enter the table and connect; false if no endpoint could be reached."""
        relay = self.listener.relay
        if relay.leaving is not None:
            relay.evict(now)
        relay.table.add(self)
        relay.files.used += FILES_PER_FLOW
        relay.wheel.schedule(self, now + self.listener.terms.limits.datagram_look)
        self.listener.flows[self.key] = self
        self.listener.live += 1
        if relay.watch is not None:
            relay.watch.note(EventKind.OPENED, self)
        failure = self._connect(upstream, connect, now)
        if failure is not None:
            self.abort(failure, side_of(failure), now)
        return failure is None

    def expire(self, now: float) -> None:
        """End the flow, or wait for the deadline it has moved to."""
        limits = self.limits
        when, reason = deadline_of(self, limits)
        if when > now:
            self.listener.relay.wheel.schedule(self, next_look(self, limits, now))
        else:
            self.abort(reason, CloseSide.PROXY, now)

    def abort(self, reason: CloseReason, side: CloseSide, now: float) -> None:
        """End the flow; datagram sockets say nothing when they are closed."""
        relay = self.listener.relay
        if not relay.end(self, reason, side, now):
            return
        relay.wheel.cancel(self)
        self.give_back()
        if self.endpoint is not None:
            if self.endpoint.record is not None:
                ended(self, reason, now)
            self.endpoint.leave(now)
            self.endpoint.counters.flows -= 1
        if self.answers is not None:
            self.answers.close()
        if self.socket is not CLOSED:
            self.counters.dropped[Drop.KERNEL] += kernel_drops(self.socket)
            relay.pump.bury(self.socket)
            self.socket = CLOSED
        self.listener.close_if_done()

    def give_back(self) -> None:
        """Have nothing of the worker and the listener any more, and be in no book of theirs."""
        relay = self.listener.relay
        relay.files.used -= FILES_PER_FLOW
        if relay.will is not None:
            relay.will.forget(self.id)
        self.leave_index()
        if self.fd != self.listener.fd:
            relay.exits.give_back(self.fd)
        self.listener.live -= 1

    def look_again(self, terms: Terms, now: float) -> None:
        """Have other limits from now on, as all flows of its listener, which has them already.

        A former socket of the listener is told nothing else.
        """
        if self.listener.draining:
            self.listener.terms = terms
        self.listener.relay.wheel.schedule(self, next_look(self, self.limits, now))

    def leave_index(self) -> None:
        """Take no more datagrams; the client's next one opens another flow."""
        flows = self.listener.flows
        if flows.get(self.key) is self:
            del flows[self.key]

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow because of a fault of ours: loud, and counted as ``internal``."""
        log.error("flow_crashed", flow=self.id, exc_info=error)
        self.abort(CloseReason.INTERNAL, CloseSide.PROXY, now)

    def _assure(self) -> None:
        self.enter(State.ASSURED)
        relay = self.listener.relay
        relay.table.moved(self)
        if relay.will is not None:
            relay.will.become(self.id, ASSURED)
        assert self.endpoint is not None
        self.endpoint.counters.answered()
        if self.endpoint.record is not None:
            self.endpoint.record.reached(self.active)
        if relay.watch is not None:
            relay.watch.note(EventKind.ASSURED, self)

    def _send_again(self, data: memoryview, error: OSError) -> None:
        """Repeat a send that may have failed for what befell an earlier datagram."""
        if self._count_errors():
            try:
                self.socket.send(data, MSG_DONTWAIT)
                return
            except OSError as second:
                error = second
        self.request_dropped(len(data), drop_of(error))

    def _count_errors(self) -> bool:
        """Count the ICMP errors that are queued; false if there was none."""
        kinds = take_errors(self.socket)
        for kind in kinds:
            self.counters.dropped[kind] += 1
        if self.endpoint is not None and not GONE.isdisjoint(kinds):
            now = monotonic()
            missed(self.endpoint, now)
            if self.endpoint.is_shunned(now):
                self.leave_index()
        return bool(kinds)

    def _connect(self, upstream: Choice, connect: Connect, now: float) -> CloseReason | None:
        """Connect to the first endpoint that the kernel has a route to; return why none did."""
        failure = CloseReason.NO_ENDPOINT
        tried: tuple[Endpoint, ...] = ()
        source = source_for(upstream, self)
        for shunned in (upstream.shunned(now), ()):  # at last those, too
            while endpoint := _next(upstream, (*shunned, *tried), source, now):
                tried += (endpoint,)
                endpoint.counters.attempts += 1
                endpoint.take()
                error = self._open(endpoint, upstream, connect)
                if not error:
                    return None
                endpoint.leave(now)
                failure = count_failure(endpoint, error, now)
        return failure

    def _open(self, endpoint: Endpoint, upstream: Choice, connect: Connect) -> int:
        """Open the socket, or two, towards an endpoint; return 0, or the errno."""
        address = endpoint.address
        if isinstance(address, UnixAddress):
            return self._open_unix(endpoint, address)
        if is_group(address[0]):
            return self._open_group(endpoint, upstream)
        try:
            socket, error = connect(address, self.client_remote)
        except OSError as failure:  # EMFILE in spite of the reserve
            return failure.errno or errno.EMFILE
        if not error:
            self._use(socket, endpoint)
            return 0
        if socket is not CLOSED:
            socket.close()
        # connect(2): EACCES, the address is that of a directed broadcast
        return self._open_group(endpoint, upstream) if error == errno.EACCES else error

    def _open_group(self, endpoint: Endpoint, upstream: Choice) -> int:
        try:
            sender, hearer = open_group(endpoint.address, upstream.multicast)
        except OSError as error:
            return error.errno or errno.EINVAL
        self.answers = Answers(self, hearer)
        self.answers.hear()
        self._use(sender, endpoint)
        return 0

    def _open_unix(self, endpoint: Endpoint, address: UnixAddress) -> int:
        style = self.listener.terms.style
        if style is None:
            socket = UnixDatagramSocket(address)
        else:
            socket = unix_with_header(address, self._header(style))
        error = socket.reach()
        if error:
            socket.close()
        else:
            self._take(socket, endpoint)
        return error

    def _use(self, socket: Socket, endpoint: Endpoint) -> None:
        ask_for_errors(socket)
        set_pmtu(socket, self.listener.options.pmtu)
        style = self.listener.terms.style
        if style is not None:
            socket = with_header(socket, self._header(style))
        self._take(socket, endpoint)

    def _header(self, style: HeaderStyle) -> bytes:
        client, local = self.client_remote, self.client_local
        return write_header(style, client, local, self.id, datagrams=True)

    def _take(self, socket: Socket, endpoint: Endpoint) -> None:
        relay = self.listener.relay
        self.socket = socket
        self.endpoint = endpoint
        endpoint.counters.flows += 1
        relay.table.set_endpoint(self, canonical(socket.getsockname()), endpoint.address)
        relay.pump.register(socket.fileno(), self, EPOLLIN)


def _next(
    upstream: Choice, passed: tuple[Endpoint, ...], source: SourceKey, now: float
) -> Endpoint | None:
    """Whom to try next; a backup when there is nobody else."""
    return upstream.pick(passed, source, now) or upstream.stand_in(passed)
