"""Connecting to an endpoint, without waiting: one attempt after the other until one succeeds.

The pump serves the socket while it connects; when it has connected, the flow's leg takes its
place. An endpoint that fails is left out for the rest of the flow, and the next one is tried at
once. Each attempt has the whole connect timeout. When all have failed, the flow ends with the
reason of the last.
"""

from __future__ import annotations

import errno
from select import EPOLLERR, EPOLLHUP
from socket import IPPROTO_TCP, SOCK_NONBLOCK, SOCK_STREAM, TCP_NODELAY
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

from proxy.core.flow import CloseReason, CloseSide
from proxy.engine.leg import WATCH_BOTH
from proxy.engine.sockaddr import family_of
from proxy.engine.tcp import CLOSED, UNREACHABLE, take_error

if TYPE_CHECKING:
    from proxy.core.upstream import Endpoint, Upstream
    from proxy.engine.stream import StreamFlow

UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS})


class ConnectAttempt:
    """Attempts of one flow to reach any endpoint of its upstream.

    Owns the connecting socket until ``StreamFlow.connected`` takes it.
    """

    __slots__ = ("_endpoint", "_flow", "_socket", "_tried", "_upstream")

    def __init__(self, flow: StreamFlow, upstream: Upstream) -> None:
        self._flow = flow
        self._upstream = upstream
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
            failure = failure_of(error)
            endpoint.counters.attempt_failed(failure, now)
            self._forget_socket()
        side = CloseSide.PROXY if failure is CloseReason.NO_ENDPOINT else CloseSide.ENDPOINT
        self._flow.abort(failure, side, now)

    def ready(self, mask: int, now: float) -> None:
        """The kernel has an answer: hand the socket over, or go on to the next endpoint."""
        error = take_error(self._socket) if mask & (EPOLLERR | EPOLLHUP) else 0
        if error:
            self._failed(failure_of(error), now)
            return
        endpoint, socket = self._endpoint, self._socket
        assert endpoint is not None
        endpoint.counters.answered()
        self._socket = CLOSED
        self._flow.connected(socket, endpoint, now)
        self._flow.reply.ready(mask, now)  # the endpoint may have spoken already: the edge is here

    def timed_out(self, now: float) -> None:
        """The attempt's time is up."""
        self._failed(CloseReason.CONNECT_TIMEOUT, now)

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
        socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        error_number = socket.connect_ex(endpoint.address)
        if error_number in UNDER_WAY:
            flow.active = now
            flow.relay.table.set_endpoint(flow, socket.getsockname(), endpoint.address)
            flow.relay.pump.register(socket.fileno(), self, WATCH_BOTH)
        return error_number

    def _failed(self, reason: CloseReason, now: float) -> None:
        assert self._endpoint is not None
        self._endpoint.counters.attempt_failed(reason, now)
        self._forget_socket()
        self.start(now, reason)

    def _forget_socket(self) -> None:
        if self._socket is not CLOSED:
            self._flow.relay.pump.bury(self._socket)
            self._socket = CLOSED


def failure_of(error: int) -> CloseReason:
    """The word for a failed connect(2)."""
    if error == errno.ETIMEDOUT:
        return CloseReason.CONNECT_TIMEOUT
    if error in UNREACHABLE:
        return CloseReason.UNREACHABLE
    return CloseReason.CONNECT_REFUSED
