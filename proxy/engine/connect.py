"""Connecting to an endpoint, without waiting: one attempt after the other until one succeeds.

The pump serves the socket while it connects; when it has connected, the flow's leg takes its
place. An endpoint that fails is left out for the rest of the flow, and the next one is tried at
once; backups when all others have failed. When nobody is left, or the time is up, the flow ends
with the reason of the last.

All attempts together have the ``connect`` time of the flow, because that is what the client waits.
So one that is not answered must leave some of it: it has half of what is left, unless nobody else
is left to try, but at least ``ATTEMPT_MIN``, or a quarter of ``connect`` where that is less. Of 5 s
the first has 2.5, the second 1.25, and the third the rest. A part of the time for each endpoint
alike was rejected: with ten of them, no attempt would live to see its first SYN sent again.

A name may have addresses of both IP versions, one of which leads nowhere. If an attempt at one has
not succeeded within ``STAGGER``, another is begun beside it, to an address of the same name of the
other version, and whichever connects first is taken (RFC 8305; see ``rival``).

If nobody is left to try but endpoints that are full, the flow may wait for one; see ``queue``. That
takes nothing from its time to connect.

A client that resets while we connect ends the flow. One that only ends its side may wait for an
answer; but if it has not said a word it has probably left, so it gets ``LEAVING`` more and no
further attempt. To end the flow at once was rejected: who asks a service that speaks first by a
bare connection and FIN would never get an answer, for the FIN is here before the endpoint accepts.
"""

from __future__ import annotations

import errno
from functools import partial
from math import inf
from select import EPOLLERR, EPOLLHUP
from typing import TYPE_CHECKING, Final

from proxy.core.flow import CloseReason, CloseSide
from proxy.core.unix import UNNAMED, UnixAddress
from proxy.engine.leg import NEWS, WATCH_BOTH
from proxy.engine.outbound import NO_SOURCE
from proxy.engine.passive import missed
from proxy.engine.rival import Rival
from proxy.engine.sockaddr import canonical
from proxy.engine.tcp import CLOSED, RESET_SINCE, UNREACHABLE, take_error
from proxy.engine.unix import RETRY, BacklogWait, credentials_of, serve_unix_leg, stream_socket

if TYPE_CHECKING:
    from socket import SocketType as Socket

    from proxy.core.address import Address
    from proxy.core.endpoint import Endpoint
    from proxy.core.flow import Flow
    from proxy.core.sources import SourceKey
    from proxy.core.upstream import Choice, Queue
    from proxy.core.wheel import Slot
    from proxy.engine.outbound import Connect
    from proxy.engine.stream import StreamFlow

UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS})

OUR_FAULTS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, NO_SOURCE}
)
"""This host has run out of something; the endpoint knows nothing of it."""

ATTEMPT_MIN: Final = 1.2
"""Seconds: a SYN is sent again after one (RFC 6298), and its answer takes a while."""

STAGGER: Final = 0.25
"""Seconds; the connection attempt delay of RFC 8305, section 5."""

LEAVING: Final = 1.0
"""Seconds that an endpoint has to accept whose client may have left."""

NO_ENDPOINT: Final = CloseReason.NO_ENDPOINT  # to ask an enum for it costs as much as a call

NO_KEY: Final[SourceKey] = ""
"""Of a source that nobody asks for."""

SOURCE_LOST: Final = frozenset({NO_SOURCE, errno.EADDRNOTAVAIL})
"""Nothing is left to connect from: our sources, or all ports of this host towards the endpoint."""


class ConnectAttempt:
    """Attempts of one flow to reach any endpoint of its upstream; ``Timed``, for a rival.

    Owns the connecting sockets until ``StreamFlow.connected`` takes one.

    Attributes:
        until: when the present attempt is given up, monotonic seconds; never while it waits.

    """

    __slots__ = (
        "_connect",
        "_deadline",
        "_endpoint",
        "_flow",
        "_is_last",
        "_queue",
        "_rival",
        "_socket",
        "_tried",
        "_upstream",
        "slot",
        "until",
    )

    def __init__(self, flow: StreamFlow, upstream: Choice, connect: Connect) -> None:
        self._flow = flow
        self._upstream = upstream
        self._connect = connect
        self._endpoint: Endpoint | None = None
        self._socket = CLOSED
        self._tried: tuple[Endpoint, ...] = ()
        self._rival: Rival | None = None
        self._is_last = False
        self._queue: Queue | None = None  # where it waits; its upstream may have another by then
        self._deadline = 0.0
        self.until = inf
        self.slot: Slot | None = None

    @property
    def has_tried(self) -> bool:
        """Whether some endpoint is out of the question, which others may wait for."""
        return bool(self._tried)

    def start(self, now: float) -> None:
        """Connect to an endpoint, behind those who wait for one."""
        queue = self._upstream.queue
        if queue:
            joined = self._join(queue, now)
            queue.room()
            if not joined:
                self.give_up(now)
            return
        self._deadline = now + self._flow.limits.connect
        self._go_on(now, NO_ENDPOINT)

    def resume(self, now: float) -> bool:
        """Go on after a wait, if some endpoint has room; false if none has."""
        source = source_for(self._upstream, self._flow)
        endpoint = self._upstream.pick(self._tried, source, now)
        if endpoint is None and self._upstream.has_room_later(self._tried):
            return False
        self._end_wait()
        self._deadline = now + self._flow.limits.connect
        self._go_on(now, CloseReason.NO_ENDPOINT, endpoint)
        if self._flow.attempt is self and self._queue is None:  # it may wait once more
            self._flow.relay.wheel.schedule(self._flow, self.until)
        return True

    def give_up(self, now: float) -> None:
        """No endpoint had room in time."""
        self._flow.abort(CloseReason.NO_ENDPOINT, CloseSide.PROXY, now)

    def ready(self, mask: int, now: float) -> None:
        """The kernel has an answer: hand the socket over, or go on to the next endpoint."""
        error = take_error(self._socket) if mask & (EPOLLERR | EPOLLHUP) else 0
        if error and error not in RESET_SINCE:
            self._failed(error, now)
        else:
            self._succeeded(error, mask, now)

    def timed_out(self, now: float) -> None:
        """The attempt's time is up."""
        if self._is_last:
            self._flow.abort(CloseReason.CLIENT_RESET, CloseSide.CLIENT, now)
        else:
            self._failed(errno.ETIMEDOUT, now)

    def client_left(self, now: float) -> None:
        """The client has ended its side without a word: it has probably left."""
        if self._queue is not None:
            self._flow.abort(CloseReason.CLIENT_RESET, CloseSide.CLIENT, now)
        elif not self._is_last:
            self._is_last = True
            self.until = min(self.until, now + LEAVING)
            self._flow.relay.wheel.schedule(self._flow, self.until)

    def cancel(self, now: float) -> None:
        """Give up: the flow has ended."""
        self._end_wait()
        self._leave(now)
        self._drop_rival(now)

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow: a fault of ours."""
        self._flow.crashed(error, now)

    def expire(self, now: float) -> None:
        """There is no answer after ``STAGGER``: try the other IP version beside it."""
        if self._endpoint is None or self._rival is not None or self._is_last:
            return
        for endpoint in self._endpoint.kin:
            if endpoint not in self._tried and not endpoint.is_full:
                self._begin_rival(endpoint, now)
                return

    def rival_succeeded(self, error: int, mask: int, now: float) -> None:
        """The other IP version was faster."""
        self._leave(now)
        self._promote()
        self._succeeded(error, mask, now)

    def rival_failed(self, error: int, now: float) -> None:
        """The other IP version has failed; the first goes on."""
        assert self._rival is not None
        count_failure(self._rival.endpoint, error, now)
        self._drop_rival(now)

    def _go_on(self, now: float, failure: CloseReason, endpoint: Endpoint | None = None) -> None:
        """Try the next endpoint, or this one first; if none is left, end the flow."""
        upstream, flow = self._upstream, self._flow
        source = source_for(upstream, flow) if upstream.by_source else NO_KEY
        while now < self._deadline and not self._is_last:
            endpoint = endpoint or upstream.pick(self._tried, source, now)
            endpoint = endpoint or upstream.stand_in(self._tried)
            if endpoint is None:
                break
            self._tried += (endpoint,)
            self._endpoint = endpoint
            endpoint.counters.attempts += 1
            endpoint.take()
            is_last = len(self._tried) >= len(upstream.usable) + len(upstream.spares)
            self.until = self._deadline if is_last else self._time_of(now)
            error = self._begin(endpoint, now)
            if error in UNDER_WAY:
                if endpoint.kin and flow.attempt is self:
                    flow.relay.wheel.schedule(self, now + STAGGER)
                return
            failure = count_failure(endpoint, error, now)
            self._leave(now)
            endpoint = None
        if not self._wait(now):
            flow.abort(failure, side_of(failure), now)

    def _time_of(self, now: float) -> float:
        """When to give an attempt up that begins now, and leaves some of the time to others."""
        left = self._deadline - now
        part, least = left / 2, self._flow.limits.connect / 4
        least = least if least < ATTEMPT_MIN else ATTEMPT_MIN  # noqa: FURB136 - slow calls
        part = part if part > least else least  # noqa: FURB136
        return now + (part if part < left else left)  # noqa: FURB136

    def _wait(self, now: float) -> bool:
        """Wait for an endpoint that is full; false if there is none, or no room to wait."""
        upstream = self._upstream
        if upstream.queue is None or self._is_last or not upstream.has_room_later(self._tried):
            return False
        self.until = inf
        return self._join(upstream.queue, now)

    def _join(self, queue: Queue, now: float) -> bool:
        if not queue.join(self, now):
            return False
        self._queue = queue
        return True

    def _end_wait(self) -> None:
        if self._queue is not None:
            self._queue.leave(self)
            self._queue = None

    def _succeeded(self, error: int, mask: int, now: float) -> None:
        endpoint, socket = self._endpoint, self._socket
        assert endpoint is not None
        endpoint.counters.answered()
        if endpoint.record is not None:
            endpoint.record.reached(now)
        if self._rival is not None or self.slot is not None:
            self._drop_rival(now)
        self._socket = CLOSED
        flow = self._flow
        if error:  # it accepted, perhaps spoke, and then reset; what it said comes first
            flow.break_off(flow.reply, error, now)
        flow.connected(socket, endpoint, now)
        if mask & NEWS:  # the endpoint may have spoken already: the edge is here
            flow.reply.ready(mask, now)

    def _begin_rival(self, endpoint: Endpoint, now: float) -> None:
        relay = self._flow.relay
        if not relay.files.has(1):
            return
        self._tried += (endpoint,)
        endpoint.counters.attempts += 1
        try:
            socket, error = self._connect(endpoint.address, self._flow.client_remote)
        except OSError as failure:  # EMFILE in spite of the reserve
            count_failure(endpoint, failure.errno or errno.EMFILE, now)
            return
        if error not in UNDER_WAY:
            count_failure(endpoint, error, now)
            relay.pump.bury(socket)
            return
        endpoint.take()
        relay.files.used += 1
        self._rival = Rival(self, endpoint, socket)
        relay.pump.register(socket.fileno(), self._rival, WATCH_BOTH)

    def _promote(self) -> None:
        """Have the rival be the attempt; the former one is over."""
        rival, self._rival = self._rival, None
        assert rival is not None
        relay = self._flow.relay
        relay.files.used -= 1
        self._endpoint, self._socket = rival.endpoint, rival.socket
        local = canonical(rival.socket.getsockname())
        relay.table.set_endpoint(self._flow, local, rival.endpoint.address)
        relay.pump.hand_over(rival.socket.fileno(), self)

    def _drop_rival(self, now: float) -> None:
        if self.slot is not None:
            self._flow.relay.wheel.cancel(self)
        rival, self._rival = self._rival, None
        if rival is not None:
            rival.endpoint.leave(now)
            self._flow.relay.files.used -= 1
            self._flow.relay.pump.bury(rival.socket)

    def _begin(self, endpoint: Endpoint, now: float) -> int:
        """Start to connect; return 0, or the errno."""
        if isinstance(endpoint.address, UnixAddress):
            return self._begin_unix(endpoint.address, now)
        flow = self._flow
        try:
            socket, error_number = self._connect(endpoint.address, flow.client_remote)
        except OSError as error:  # EMFILE in spite of the reserve
            return error.errno or errno.EMFILE
        self._socket = socket
        if error_number in UNDER_WAY:
            flow.active = now
            local: Address = socket.getsockname()
            if len(local) > 2:
                local = canonical(local)
            flow.relay.table.set_endpoint(flow, local, endpoint.address)
            flow.relay.pump.register(socket.fileno(), self, WATCH_BOTH)
        return error_number

    def _begin_unix(self, address: UnixAddress, now: float) -> int:
        """Connect to a Unix socket, which needs no event; return 0, or the errno."""
        try:
            self._socket = stream_socket()
        except OSError as error:
            return error.errno or errno.EMFILE
        self._flow.active = now
        self._flow.relay.table.set_endpoint(self._flow, UNNAMED, address)
        return self._try_unix(now)

    def _try_unix(self, now: float) -> int:
        """Try to connect to a Unix socket; wait if its backlog is full."""
        assert self._endpoint is not None
        error = self._socket.connect_ex(self._endpoint.address)
        if error == errno.EAGAIN:
            retry = BacklogWait(partial(self._retry_unix, self._socket), self.crashed)
            self._flow.relay.wheel.schedule(retry, now + RETRY)
            return errno.EINPROGRESS
        if not error:
            self._connected_unix(self._endpoint, now)
        return error

    def _retry_unix(self, socket: Socket, now: float) -> None:
        if self._socket is not socket:  # its time was up, or the flow has ended
            return
        error = self._try_unix(now)
        if error not in UNDER_WAY:
            self._failed(error, now)

    def _connected_unix(self, endpoint: Endpoint, now: float) -> None:
        flow, socket = self._flow, self._socket
        self._socket = CLOSED
        endpoint.counters.answered()
        if endpoint.record is not None:
            endpoint.record.reached(now)
        flow.endpoint_credentials = credentials_of(socket)
        flow.relay.pump.register(socket.fileno(), flow.reply, WATCH_BOTH)
        flow.connected(socket, endpoint, now)
        if flow.reply.socket is socket:
            serve_unix_leg(flow.relay.pump, flow.reply)

    def _failed(self, error: int, now: float) -> None:
        assert self._endpoint is not None
        failure = count_failure(self._endpoint, error, now)
        self._leave(now)
        if self._rival is not None:
            self._promote()
            self.until = self._deadline
        else:
            self._go_on(now, failure)

    def _leave(self, now: float) -> None:
        """Have nothing to do any more with the endpoint that was tried."""
        if self._endpoint is not None:
            self._endpoint.leave(now)
            self._endpoint = None
        if self._socket is not CLOSED:
            self._flow.relay.pump.bury(self._socket)
            self._socket = CLOSED


def source_for(upstream: Choice, flow: Flow) -> SourceKey:
    """The key of a flow's source, where its upstream asks for it."""
    if not upstream.by_source:
        return NO_KEY
    return flow.counters.gate.limits.key(flow.client_remote[0])


def side_of(failure: CloseReason) -> CloseSide:
    """Who is to blame for a flow that could not be connected."""
    ours = failure in {CloseReason.NO_ENDPOINT, CloseReason.NO_SOURCE}
    return CloseSide.PROXY if ours else CloseSide.ENDPOINT


def count_failure(endpoint: Endpoint, error: int, now: float) -> CloseReason:
    """Count a failed attempt, against the endpoint unless the fault is ours; return its word."""
    failure = failure_of(error)
    if error not in OUR_FAULTS:
        endpoint.counters.attempt_failed(failure, now)
        missed(endpoint, now)
    return failure


def failure_of(error: int) -> CloseReason:
    """The word for a failed connect(2)."""
    if error == errno.ETIMEDOUT:
        return CloseReason.CONNECT_TIMEOUT
    if error in SOURCE_LOST:
        return CloseReason.NO_SOURCE
    if error in UNREACHABLE or error in OUR_FAULTS:
        return CloseReason.UNREACHABLE
    return CloseReason.CONNECT_REFUSED
