"""A stream flow: two legs, how it begins, and how it ends.

Ends. FIN is passed on when all bytes before it are written; the other direction lives on. RST is
passed on as RST, after what was received before it: the flow is then ``closing`` until the kernel
has delivered that. An ordinary end never resets, and an end of our own making (a timeout, an
order) always does, because FIN would tell a peer that the data is complete.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from socket import SHUT_WR
from socket import SocketType as Socket
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import structlog

from proxy.core.admission import Limit
from proxy.core.events import EventKind
from proxy.core.expiry import FlowLimits, deadline_of, next_look, next_look_connecting
from proxy.core.flow import CloseReason, CloseSide, Flow, State
from proxy.core.stalls import insight_of
from proxy.engine.connect import ConnectAttempt
from proxy.engine.leg import BLOCKED, WATCH, StreamLeg
from proxy.engine.passive import ended
from proxy.engine.tcp import CLOSED, has_data, reason_of, reset_on_close, take_error, unsent

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.counters import ListenerCounters
    from proxy.core.endpoint import Endpoint
    from proxy.core.sample import Insight
    from proxy.core.sources import SourceKey
    from proxy.core.unix import Credentials
    from proxy.core.upstream import Choice
    from proxy.core.wheel import Slot
    from proxy.engine.outbound import Connect
    from proxy.engine.relay import Relay
    from proxy.engine.terms import Terms
    from proxy.engine.throttle import Bandwidth

FILES_PER_FLOW: Final = 2

# Members that every flow needs: to ask an enum for one costs as much as a call.
CONNECTING: Final = State.CONNECTING
ESTABLISHED: Final = State.ESTABLISHED
CLIENT_CLOSED: Final = State.CLIENT_CLOSED
ENDPOINT_CLOSED: Final = State.ENDPOINT_CLOSED
FINISHED: Final = CloseReason.FINISHED
BY_CLIENT: Final = CloseSide.CLIENT
BY_ENDPOINT: Final = CloseSide.ENDPOINT

log = structlog.get_logger()


class Attempt(Protocol):
    """What a flow waits for while it is connecting."""

    until: float
    """When it is given up; infinite where something else sees to that."""

    def timed_out(self, now: float) -> None:
        """Its time to connect is up."""
        ...

    def client_left(self, now: float) -> None:
        """The client has ended its side without a word."""
        ...

    def cancel(self, now: float) -> None:
        """Give up: the flow has ended."""
        ...


class StreamFlow(Flow):
    """One TCP flow: a flow whose directions are legs.

    Owns both sockets; they are closed when it ends.

    Attributes:
        leg_type: what both its directions are.
        attempt: the connection attempt under way, while connecting.
        sample: what the kernel last told of both sockets, packed; see ``core.sample``.
        owed: bytes that the kernel has yet to deliver, while closing.
        broken: the leg whose socket has failed, while what it sent before is still passed on, and
        fault: its errno.
        verdict: why the flow is ending, while it is closing.

    """

    __slots__ = (
        "attempt",
        "broken",
        "endpoint_credentials",
        "fault",
        "half_closed",
        "limits",
        "owed",
        "relay",
        "sample",
        "slot",
        "verdict",
    )

    leg_type: ClassVar[type[StreamLeg]] = StreamLeg
    tells_more: ClassVar[bool] = False  # of its client or endpoint, than their addresses

    original: StreamLeg
    reply: StreamLeg
    fault: int | None

    def __init__(
        self,
        relay: Relay,
        counters: ListenerCounters,
        limits: FlowLimits,
        client: Socket,
        client_remote: Address,
        client_local: Address,
        now: float,
        source_key: SourceKey = "",
    ) -> None:
        leg_type = self.leg_type
        original = leg_type(client, counters.original)
        reply = leg_type(CLOSED, counters.reply)
        Flow.__init__(
            self,
            relay.table.take_id(),
            counters,
            client_remote,
            client_local,
            original,
            reply,
            CONNECTING,
            now,
            source_key,
        )
        original.flow = reply.flow = self
        original.other, reply.other = reply, original
        original.pending = BLOCKED
        self.relay = relay
        self.limits = limits
        self.attempt: Attempt | None = None
        self.broken: StreamLeg | None = None
        self.endpoint_credentials: Credentials | None = None
        self.half_closed: float | None = None
        self.sample: bytes | None = None
        self.owed = 0
        self.verdict: tuple[CloseReason, CloseSide] | None = None
        self.slot: Slot | None = None

    @property
    def unsent(self) -> tuple[int, int] | None:
        """Bytes of both directions that had not arrived when it ended."""
        if self.close_reason is None:
            return None
        return self.original.unsent, self.reply.unsent

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to tell but what there is of every stream."""
        told = self.tells_more or self.endpoint_credentials is not None
        return not (told or self.original.unsent or self.reply.unsent)

    @property
    def insight(self) -> Insight | None:
        """What held it up, and what the kernel told of it; None if there is nothing to tell."""
        original, reply = self.original.stalls, self.reply.stalls
        if self.sample is None and original is None and reply is None:  # as a rule, at the end
            return None
        closed = None if self.close_reason is None else self.closed
        return insight_of(self.sample, original, reply, self.active, closed)

    def start(
        self,
        upstream: Choice,
        connect: Connect,
        now: float,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        """Enter the table, watch the client and begin to connect."""
        relay = self.relay
        if relay.leaving is not None:
            relay.evict(now)
        relay.table.add(self)
        if bandwidth is not None:
            bandwidth.begin(self, now)
        elif self.limits.bytes < inf:
            self.original.limit()
            self.reply.limit()
        if relay.orders.are_there:
            relay.orders.hold(self, now)
        relay.files.used += FILES_PER_FLOW
        relay.pump.register(self.original.socket.fileno(), self.original, WATCH)
        relay.wheel.schedule(self, now + self.limits.stream_look)
        if relay.watch is not None:
            relay.watch.note(EventKind.OPENED, self)
        self.seek(upstream, connect, now)

    def seek(self, upstream: Choice, connect: Connect, now: float) -> None:
        """Begin to connect."""
        attempt = self.attempt = ConnectAttempt(self, upstream, connect)
        attempt.start(now)

    def connected(self, socket: Socket, endpoint: Endpoint, now: float) -> None:
        """Relay from now on: the endpoint has accepted."""
        self.counters.connect_duration.observe(now - self.active, self.id, now)
        self.attempt = None
        self.reply.socket = socket
        self.reply.writable_watched = True
        self.endpoint = endpoint
        endpoint.counters.flows += 1
        self.active = now
        self.enter(ESTABLISHED)
        relay = self.relay
        if relay.orders.are_there:  # of which some may be for its endpoint
            relay.orders.hold(self, now)
        if relay.watch is not None:
            relay.watch.note(EventKind.ESTABLISHED, self)
        relay.pump.hand_over(socket.fileno(), self.reply)
        self.original.begin(now)

    def leg_ended(self, leg: StreamLeg, now: float) -> None:
        """Pass on the end of one direction; all bytes before it have been written."""
        if self.broken is leg:
            self.failed(leg, self.fault, now)
            return
        self.active = now
        if leg.other.ended:
            first = BY_CLIENT if self.state is CLIENT_CLOSED else BY_ENDPOINT
            self._close(FINISHED, first, now)
            return
        self.half_closed = now
        self.enter(CLIENT_CLOSED if leg is self.original else ENDPOINT_CLOSED)
        self.relay.table.moved(self)
        if self.relay.watch is not None:
            self.relay.watch.note(EventKind.HALF_CLOSED, self)
        try:
            leg.other.socket.shutdown(SHUT_WR)
        except OSError as error:  # ENOTCONN: it has been reset meanwhile, and may have spoken
            leg.other_failed(error, now)

    def failed(self, leg: StreamLeg, error: int | None, now: float) -> None:
        """End the flow because one socket has failed; reset the other once it has sent all."""
        if self.verdict is not None:
            self._conclude(now)
            return
        self._judge(leg, error)
        leg.block()
        leg.other.block()
        leg.other.unsent += unsent(leg.socket)
        self.relay.pump.bury(leg.socket)
        leg.socket = CLOSED
        self.owed = unsent(leg.other.socket)
        if self.owed:
            self.enter(State.CLOSING)
            self.relay.table.moved(self)
            self.active = now
            self.relay.wheel.schedule(self, now)
        else:
            self._conclude(now)

    def failed_unread(self, leg: StreamLeg, now: float) -> None:
        """Act on the failure of a socket that is not being read.

        While the flow is relaying what the peer sent before is read when the way is free, and the
        end after it. Nothing can be sent to it any more.
        """
        if self.state is State.CONNECTING:
            self.abort(CloseReason.CLIENT_RESET, CloseSide.CLIENT, now)
        elif self.state is State.CLOSING:
            if leg.socket is not CLOSED:
                self._conclude(now)
        elif self.broken is None and (error := take_error(leg.socket)):
            self.break_off(leg, error, now)
            leg.other.block()

    def break_off(self, leg: StreamLeg, error: int | None, now: float) -> None:
        """Know that a socket has failed, and pass on what it sent before, as long as that moves.

        The kernel tells a failure once: the end of what was sent looks like any other after that.
        """
        if self.broken is None:  # the first cause wins
            self.broken, self.fault = leg, error
            self.active = now
            self.relay.wheel.schedule(self, self._next_look(now))

    def ended_unread(self, leg: StreamLeg, now: float) -> None:
        """Know that a peer has ended its side, while it is not being read."""
        if self.attempt is not None and leg is self.original and not has_data(leg.socket):
            self.attempt.client_left(now)

    def abort(self, reason: CloseReason, side: CloseSide, now: float) -> None:
        """End the flow now and reset both sides, so that neither takes it for an ordinary end."""
        if self.close_reason is not None:
            return
        for leg in (self.original, self.reply):
            leg.block()
            leg.other.unsent += unsent(leg.socket)
            reset_on_close(leg.socket)
        for leg in (self.original, self.reply):
            leg.counters.unsent += leg.unsent
        self._close(reason, side, now)

    def overdrawn(self, now: float) -> bool:
        """End the flow: it wants to move more bytes than it may; or, in a dry run, let it."""
        ordered = self.relay.orders.restraint_of(self).bytes
        is_ordered = self.bytes >= ordered
        limit = Limit.ORDERED_BYTES if is_ordered else Limit.BYTE_BUDGET
        ends = self.counters.strikes(limit)
        if ends:
            self.struck(limit)
            self.abort(CloseReason.BYTE_BUDGET, CloseSide.PROXY, now)
        else:
            self.limits = replace(self.limits, bytes=ordered)
        return ends

    def struck(self, limit: Limit) -> None:
        """Tell who watches that a limit holds the flow back, or ends it."""
        if self.relay.watch is not None:
            self.relay.watch.struck(self, limit)

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow because of a fault of ours: loud, and counted as ``internal``."""
        log.error("flow_crashed", flow=self.id, exc_info=error)
        self.abort(CloseReason.INTERNAL, CloseSide.PROXY, now)

    def expire(self, now: float) -> None:
        """Act on the deadline that has struck, or wait for the one it moved to."""
        if self.state is State.CLOSING:
            self._await_sent(now)
            return
        if self.attempt is not None:
            self._look_at(self.attempt, now)
            return
        if self.broken is not None:
            self._await_passed(self.broken, now)
            return
        when, reason = deadline_of(self, self.limits)
        if when > now:
            self.relay.wheel.schedule(self, next_look(self, self.limits, now))
        else:
            self.abort(reason, CloseSide.PROXY, now)

    def look_again(self, terms: Terms, now: float) -> None:
        """Have other limits from now on."""
        self.limits = terms.limits
        self._use(terms.bandwidth, now)
        if self.state is not State.CLOSING:  # which is looked at all the time
            self.relay.wheel.schedule(self, self._next_look(now))

    def _look_at(self, attempt: Attempt, now: float) -> None:
        """Act on the deadline that has struck while the flow is connecting."""
        if now >= self.opened + self.limits.duration:
            self.abort(CloseReason.MAX_DURATION, CloseSide.PROXY, now)
        elif now >= attempt.until:
            attempt.timed_out(now)
        if self.close_reason is None:
            self.relay.wheel.schedule(self, self._next_look(now))

    def _next_look(self, now: float) -> float:
        if self.broken is not None:
            return self.active + self.limits.linger
        if self.attempt is None:
            return next_look(self, self.limits, now)
        return next_look_connecting(self, self.limits, self.attempt.until, now)

    def _use(self, bandwidth: Bandwidth | None, now: float) -> None:
        """Have what limits bytes looked at, if anything does."""
        if bandwidth is not None:
            bandwidth.meter(self, now)
        elif self.limits.bytes < inf:
            self.original.limit()
            self.reply.limit()

    def _await_passed(self, broken: StreamLeg, now: float) -> None:
        """End the flow if what a failed socket sent before does not move any more."""
        until = min(self._next_look(now), deadline_of(self, self.limits)[0])
        if now < until:
            self.relay.wheel.schedule(self, until)
        else:
            self._judge(broken, self.fault)
            self._conclude(now)

    def _await_sent(self, now: float) -> None:
        survivor = self.reply if self.original.socket is CLOSED else self.original
        owed = unsent(survivor.socket)
        if owed < self.owed:
            self.owed, self.active = owed, now
        if owed and now < self.active + self.limits.linger:
            self.relay.wheel.schedule(self, now)
        else:
            self._conclude(now)

    def _judge(self, leg: StreamLeg, error: int | None) -> None:
        """Know why the flow ends: the socket of this leg has failed."""
        side = CloseSide.CLIENT if leg is self.original else CloseSide.ENDPOINT
        self.verdict = (reason_of(error, side), side)

    def _conclude(self, now: float) -> None:
        assert self.verdict is not None
        reason, side = self.verdict
        self.abort(reason, side, now)

    def _close(self, reason: CloseReason, side: CloseSide, now: float) -> None:
        relay = self.relay
        if not relay.end(self, reason, side, now):
            return
        if self.half_closed is not None:
            self.counters.half_closed += now - self.half_closed
        relay.wheel.cancel(self)
        relay.files.used -= FILES_PER_FLOW
        endpoint = self.endpoint
        if self.attempt is not None:
            self.attempt.cancel(now)
            self.attempt = None
        elif endpoint is not None:
            if endpoint.record is not None:
                ended(self, reason, now)
            endpoint.leave(now)
            endpoint.counters.flows -= 1
        bury = relay.pump.bury
        for leg in (self.original, self.reply):
            socket = leg.socket
            if socket is not CLOSED:
                bury(socket)
                leg.socket = CLOSED
            leg.part()
