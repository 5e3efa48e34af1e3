"""Connecting to an endpoint, without waiting: one attempt after the other until one succeeds.

The pump serves the socket while it connects; when it has connected, the flow's leg takes its
place. An endpoint that fails is left out for the rest of the flow, and the next one is tried at
once. Each attempt has the whole connect timeout. When all have failed, the flow ends with the
reason of the last.
"""

from __future__ import annotations

import errno
from functools import partial
from select import EPOLLERR, EPOLLHUP
from typing import TYPE_CHECKING, Final

from proxy.core.flow import CloseReason, CloseSide
from proxy.core.unix import UNNAMED, UnixAddress
from proxy.engine.leg import WATCH_BOTH
from proxy.engine.outbound import NO_SOURCE
from proxy.engine.sockaddr import canonical
from proxy.engine.tcp import CLOSED, UNREACHABLE, take_error
from proxy.engine.unix import RETRY, BacklogWait, serve_unix_leg, stream_socket

if TYPE_CHECKING:
    from socket import SocketType as Socket

    from proxy.core.address import Address
    from proxy.core.flow import Flow
    from proxy.core.sources import SourceKey
    from proxy.core.upstream import Choice, Endpoint
    from proxy.engine.outbound import Connect
    from proxy.engine.stream import StreamFlow

UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS})

RESET_SINCE: Final = frozenset({errno.ECONNRESET, errno.EPIPE})
"""Errors of a connection that was made; a SYN that is refused gives ECONNREFUSED."""

OUR_FAULTS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, NO_SOURCE}
)
"""This host has run out of something; the endpoint knows nothing of it."""

NO_KEY: Final[SourceKey] = ""
"""Of a source that nobody asks for."""

SOURCE_LOST: Final = frozenset({NO_SOURCE, errno.EADDRNOTAVAIL})
"""Nothing is left to connect from: our sources, or all ports of this host towards the endpoint."""


class ConnectAttempt:
    """Attempts of one flow to reach any endpoint of its upstream.

    Owns the connecting socket until ``StreamFlow.connected`` takes it.
    """

    __slots__ = ("_connect", "_endpoint", "_flow", "_socket", "_tried", "_upstream")

    def __init__(self, flow: StreamFlow, upstream: Choice, connect: Connect) -> None:
        self._flow = flow
        self._upstream = upstream
        self._connect = connect
        self._endpoint: Endpoint | None = None
        self._socket = CLOSED
        self._tried: tuple[Endpoint, ...] = ()

    def start(self, now: float, failure: CloseReason = CloseReason.NO_ENDPOINT) -> None:
        """Connect to the next endpoint; if none is left, end the flow with ``failure``."""
        source = source_for(self._upstream, self._flow)
        while (endpoint := self._upstream.pick(self._tried, source, now)) is not None:
            self._tried += (endpoint,)
            self._endpoint = endpoint
            endpoint.counters.attempts += 1
            endpoint.take()
            error = self._begin(endpoint, now)
            if error in UNDER_WAY:
                return
            failure = count_failure(endpoint, error, now)
            self._leave(now)
        self._flow.abort(failure, side_of(failure), now)

    def ready(self, mask: int, now: float) -> None:
        """The kernel has an answer: hand the socket over, or go on to the next endpoint."""
        error = take_error(self._socket) if mask & (EPOLLERR | EPOLLHUP) else 0
        if error and error not in RESET_SINCE:
            self._failed(error, now)
            return
        endpoint, socket = self._endpoint, self._socket
        assert endpoint is not None
        endpoint.counters.answered()
        self._socket = CLOSED
        flow = self._flow
        if error:  # it accepted, perhaps spoke, and then reset; what it said comes first
            flow.broken = flow.reply
        flow.connected(socket, endpoint, now)
        flow.reply.ready(mask, now)  # the endpoint may have spoken already: the edge is here

    def timed_out(self, now: float) -> None:
        """The attempt's time is up."""
        self._failed(errno.ETIMEDOUT, now)

    def cancel(self, now: float) -> None:
        """Give up: the flow has ended."""
        self._leave(now)

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow: a fault of ours."""
        self._flow.crashed(error, now)

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
        flow.relay.pump.register(socket.fileno(), flow.reply, WATCH_BOTH)
        flow.connected(socket, endpoint, now)
        if flow.reply.socket is socket:
            serve_unix_leg(flow.relay.pump, flow.reply)

    def _failed(self, error: int, now: float) -> None:
        assert self._endpoint is not None
        failure = count_failure(self._endpoint, error, now)
        self._leave(now)
        self.start(now, failure)

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
