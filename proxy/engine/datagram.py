"""Datagram flows: a listening socket that all clients share, and a connected socket per flow.

Original direction: up to 64 datagrams are received with one call; each is looked up by its raw
source address (and, on a wildcard bind, the local address it was sent to) and sent through its
flow's connected socket. Reply direction: the flow's socket receives into the round's reply batch,
which goes out with one call.

Nothing is queued: a datagram is sent, or dropped and counted. An ICMP error shows as ECONNREFUSED
on the connected socket; it is counted and ends nothing, because a datagram endpoint may be back
for the next one.

Only the client's datagrams keep a flow alive (RFC 4787 REQ-6): an endpoint that goes on sending to
a client who has left must not hold the flow for ever.
"""

from __future__ import annotations

import struct
from select import EPOLLIN
from socket import AF_INET6, MSG_DONTWAIT, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

import structlog

from proxy.core.address import same_address
from proxy.core.expiry import FlowLimits, deadline_of, next_look
from proxy.core.flow import CloseReason, CloseSide, Direction, Drop, Flow, Refusal, State
from proxy.engine.connect import failure_of
from proxy.engine.replies import drop_of
from proxy.engine.sockaddr import answer_from, decode, family_of, local_address, local_of, unmapped
from proxy.engine.tcp import CLOSED

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.counters import ListenerCounters
    from proxy.core.upstream import Endpoint, Upstream
    from proxy.core.wheel import Slot
    from proxy.engine.relay import Relay

FILES_PER_FLOW: Final = 1
SO_MEMINFO: Final = 55  # asm-generic/socket.h
DROPS_AT: Final = 8  # SK_MEMINFO_DROPS, uapi/linux/sock_diag.h
WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to

log = structlog.get_logger()


class DatagramFlow(Flow):
    """One UDP flow. Owns its connected socket.

    Attributes:
        key: what its client's datagrams are looked up by.
        name: the client's raw address.
        control: makes answers leave from the address the client hit; empty on a specific bind.

    """

    __slots__ = ("control", "key", "listener", "name", "slot", "socket")

    def __init__(
        self,
        listener: DatagramListener,
        key: bytes,
        name: bytes,
        control: bytes,
        client_remote: Address,
        client_local: Address,
        now: float,
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
        )
        self.listener = listener
        self.key = key
        self.name = name
        self.control = control
        self.socket = CLOSED
        self.slot: Slot | None = None

    def ready(self, mask: int, now: float) -> None:
        """Receive one reply; what else waits is told again in the next round."""
        listener = self.listener
        replies = listener.relay.replies
        room = replies.room(listener.fd, now)
        try:
            size = self.socket.recv_into(room)
        except BlockingIOError:
            return
        except OSError as error:
            self.counters.dropped[drop_of(error)] += 1
            return
        self.reply.bytes += size
        self.reply.packets += 1
        counters = self.counters.reply
        counters.received += size
        counters.packets += 1
        if self.state is State.UNREPLIED:
            self._assure()
        replies.put(self, size)

    def send(self, data: memoryview, now: float) -> None:
        """Pass a client's datagram on to the endpoint."""
        size = len(data)
        self.active = now
        self.original.bytes += size
        self.original.packets += 1
        counters = self.counters.original
        counters.received += size
        counters.packets += 1
        try:
            self.socket.send(data, MSG_DONTWAIT)
        except OSError as error:
            self._original_dropped(size, drop_of(error))

    def reply_dropped(self, size: int, drop: Drop) -> None:
        """Count a reply that did not reach the client's network."""
        self.counters.dropped[drop] += 1
        self.counters.reply.discarded += size
        self.counters.reply.packets_discarded += 1

    def start(self, upstream: Upstream, now: float) -> bool:
        """Enter the table and connect; false if no endpoint could be reached."""
        relay = self.listener.relay
        relay.table.add(self)
        relay.files.used += FILES_PER_FLOW
        relay.wheel.schedule(self, now + self.listener.limits.datagram_look)
        self.listener.flows[self.key] = self
        failure = self._connect(upstream, now)
        if failure is not None:
            self.abort(failure, CloseSide.ENDPOINT, now)
        return failure is None

    def expire(self, now: float) -> None:
        """End the flow, or wait for the deadline it has moved to."""
        when, reason = deadline_of(self, self.listener.limits)
        if when > now:
            self.listener.relay.wheel.schedule(self, next_look(self, self.listener.limits, now))
        else:
            self.abort(reason, CloseSide.PROXY, now)

    def abort(self, reason: CloseReason, side: CloseSide, now: float) -> None:
        """End the flow; datagram sockets say nothing when they are closed."""
        relay = self.listener.relay
        if not relay.end(self, reason, side, now):
            return
        relay.wheel.cancel(self)
        relay.files.used -= FILES_PER_FLOW
        del self.listener.flows[self.key]
        if self.endpoint is not None:
            self.endpoint.counters.flows -= 1
        if self.socket is not CLOSED:
            relay.pump.bury(self.socket)
            self.socket = CLOSED

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow because of a fault of ours: loud, and counted as ``internal``."""
        log.error("flow_crashed", flow=self.id, exc_info=error)
        self.abort(CloseReason.INTERNAL, CloseSide.PROXY, now)

    def _assure(self) -> None:
        self.enter(State.ASSURED)
        assert self.endpoint is not None
        self.endpoint.counters.answered()

    def _original_dropped(self, size: int, drop: Drop) -> None:
        self.counters.dropped[drop] += 1
        self.counters.original.discarded += size
        self.counters.original.packets_discarded += 1

    def _connect(self, upstream: Upstream, now: float) -> CloseReason | None:
        """Connect to the first endpoint that the kernel has a route to; return why none did."""
        failure = CloseReason.NO_ENDPOINT
        tried: tuple[Endpoint, ...] = ()
        while (endpoint := upstream.pick(tried)) is not None:
            tried += (endpoint,)
            endpoint.counters.attempts += 1
            socket = Socket(family_of(endpoint.address), SOCK_DGRAM | SOCK_NONBLOCK)
            error = socket.connect_ex(endpoint.address)
            if not error:
                self._use(socket, endpoint)
                return None
            socket.close()
            failure = failure_of(error)
            endpoint.counters.attempt_failed(failure, now)
        return failure

    def _use(self, socket: Socket, endpoint: Endpoint) -> None:
        relay = self.listener.relay
        self.socket = socket
        self.endpoint = endpoint
        endpoint.counters.flows += 1
        relay.table.set_endpoint(self, socket.getsockname(), endpoint.address)
        relay.pump.register(socket.fileno(), self, EPOLLIN)


class DatagramListener:
    """A bound UDP socket of ours, and the flows of its clients. Owns the socket.

    Args:
        relay: where its flows live.
        socket: bound, non-blocking; with packet information on if bound to a wildcard.
        counters: the counters of its listener.
        limits: the clocks of its flows.
        upstream: where its flows go.

    """

    def __init__(
        self,
        relay: Relay,
        socket: Socket,
        counters: ListenerCounters,
        limits: FlowLimits,
        upstream: Upstream,
    ) -> None:
        self.relay = relay
        self.socket = socket
        self.fd = socket.fileno()
        self.counters = counters
        self.limits = limits
        self.upstream = upstream
        self.flows: dict[bytes, DatagramFlow] = {}
        self._local: Address = socket.getsockname()
        self._wildcard = self._local[0] in WILDCARDS
        self._mapped = socket.family == AF_INET6
        relay.pump.register(self.fd, self, EPOLLIN)

    def ready(self, mask: int, now: float) -> None:
        """Receive a batch and pass it on; what else waits is told again in the next round."""
        batch = self.relay.requests
        count = batch.receive(self.fd)
        flows = self.flows
        wildcard = self._wildcard
        data = batch.data
        for index in range(count):
            key = batch.name(index)
            if wildcard:
                key += local_of(batch.control(index))
            flow = flows.get(key)
            if flow is None:
                flow = self._admit(key, index, now)
                if flow is None:
                    continue
            if batch.truncated(index):
                self.counters.dropped[Drop.TRUNCATED] += 1
                continue
            flow.send(data[index][: batch.length(index)], now)

    def count_kernel_drops(self) -> None:
        """Learn how many datagrams the kernel dropped because we did not read in time.

        SO_MEMINFO reads the same counter that SO_RXQ_OVFL would attach to every datagram, and
        costs nothing until somebody asks.
        """
        info = self.socket.getsockopt(SOL_SOCKET, SO_MEMINFO, 4 * (DROPS_AT + 1))
        self.counters.dropped[Drop.KERNEL] = struct.unpack_from("=I", info, 4 * DROPS_AT)[0]

    def close(self) -> None:
        """Receive no more."""
        self.relay.pump.bury(self.socket)

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours; the listener lives on."""
        log.error("receive_crashed", listener=self.counters.listener, exc_info=error)

    def _admit(self, key: bytes, index: int, now: float) -> DatagramFlow | None:
        """Open a flow for an unknown client, or refuse it and return None."""
        batch = self.relay.requests
        name = batch.name(index)
        remote = decode(name)
        local, control = self._local, b""
        if self._wildcard:
            scope = remote[3] if len(remote) == 4 else 0
            hit = local_of(batch.control(index))
            local = local_address(hit, self._local[1], scope)
            control = answer_from(hit, scope)
        if self._mapped:
            remote, local = unmapped(remote), unmapped(local)
        refusal = self._refusal(remote, local)
        if refusal is not None:
            self.counters.refused[refusal] += 1
            return None
        flow = DatagramFlow(self, key, name, control, remote, local, now)
        return flow if flow.start(self.upstream, now) else None

    def _refusal(self, remote: Address, local: Address) -> Refusal | None:
        if remote[1] == 0 or same_address(remote, local) or self.relay.is_own(remote):
            return Refusal.LOOP
        return self.relay.refusal(FILES_PER_FLOW)
