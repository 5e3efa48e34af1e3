"""Connecting to an endpoint, without waiting: one attempt after the other until one succeeds.

The pump serves the socket while it connects; when it has connected, the flow's leg takes its
place. An endpoint that fails is left out for the rest of the flow, and the next one is tried at
once. Each attempt has the whole connect timeout. When all have failed, the flow ends with the
reason of the last.
"""

from __future__ import annotations

import errno
from select import EPOLLERR, EPOLLHUP
from socket import SOCK_NONBLOCK, SOCK_STREAM
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

from proxy.core.flow import CloseReason, CloseSide
from proxy.engine.leg import WATCH_BOTH
from proxy.engine.options import SocketOptions, set_options
from proxy.engine.sockaddr import family_of
from proxy.engine.tcp import CLOSED, UNREACHABLE, take_error

if TYPE_CHECKING:
    from proxy.core.upstream import Endpoint, Upstream
    from proxy.engine.stream import StreamFlow

UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS})

RESET_SINCE: Final = frozenset({errno.ECONNRESET, errno.EPIPE})
"""Errors of a connection that was made; a SYN that is refused gives ECONNREFUSED."""

OUR_FAULTS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)
"""This host has run out of something; the endpoint knows nothing of it."""


class ConnectAttempt:
    """Attempts of one flow to reach any endpoint of its upstream.

    Owns the connecting socket until ``StreamFlow.connected`` takes it.
    """

    __slots__ = ("_endpoint", "_flow", "_options", "_socket", "_tried", "_upstream")

    def __init__(self, flow: StreamFlow, upstream: Upstream, options: SocketOptions) -> None:
        self._flow = flow
        self._upstream = upstream
        self._options = options
        self._endpoint: Endpoint | None = None
        self._socket = CLOSED
        self._tried: tuple[Endpoint, ...] = ()

    def start(self, now: float, failure: CloseReason = CloseReason.NO_ENDPOINT) -> None:
        """Connect to the next endpoint; if none is left, end the flow with ``failure``."""
        while (endpoint := self._upstream.pick(self._tried)) is not None:
            self._tried += (endpoint,)
            self._endpoint = endpoint
            endpoint.counters.attempts += 1
            error = self._begin(endpoint, now)
            if error in UNDER_WAY:
                return
            failure = count_failure(endpoint, error, now)
            self._forget_socket()
        side = CloseSide.PROXY if failure is CloseReason.NO_ENDPOINT else CloseSide.ENDPOINT
        self._flow.abort(failure, side, now)

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

    def cancel(self) -> None:
        """Give up: the flow has ended."""
        self._forget_socket()

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow: a fault of ours."""
        self._flow.crashed(error, now)

    def _begin(self, endpoint: Endpoint, now: float) -> int:
        """Start to connect; return 0, or the errno."""
        flow = self._flow
        try:
            socket = Socket(family_of(endpoint.address), SOCK_STREAM | SOCK_NONBLOCK)
        except OSError as error:  # EMFILE in spite of the reserve
            return error.errno or errno.EMFILE
        self._socket = socket
        set_options(socket, self._options)
        error_number = socket.connect_ex(endpoint.address)
        if error_number in UNDER_WAY:
            flow.active = now
            flow.relay.table.set_endpoint(flow, socket.getsockname(), endpoint.address)
            flow.relay.pump.register(socket.fileno(), self, WATCH_BOTH)
        return error_number

    def _failed(self, error: int, now: float) -> None:
        assert self._endpoint is not None
        failure = count_failure(self._endpoint, error, now)
        self._forget_socket()
        self.start(now, failure)

    def _forget_socket(self) -> None:
        if self._socket is not CLOSED:
            self._flow.relay.pump.bury(self._socket)
            self._socket = CLOSED


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
    if error in UNREACHABLE or error in OUR_FAULTS:
        return CloseReason.UNREACHABLE
    return CloseReason.CONNECT_REFUSED
