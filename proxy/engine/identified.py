"""Stream flows whose client is known by more than its address, or made known to the endpoint.

The header to an endpoint goes out as soon as that has accepted, before any byte of the client's is
read: an endpoint that speaks first waits for it. The send buffer of a new connection has room for
it, unless the kernel is short of memory; then the flow goes on connecting until the rest is sent.

An endpoint that has gone already shows when the flow is read; it may have said something before.
"""

from __future__ import annotations

from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI
from socket import MSG_DONTWAIT
from socket import SocketType as Socket
from typing import TYPE_CHECKING

from proxy.core.flow import CloseReason, CloseSide
from proxy.core.proxy_protocol import HeaderStyle, write_header
from proxy.engine.leg import BLOCKED
from proxy.engine.stream import StreamFlow
from proxy.engine.unix_flow import UnixFlow

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.identity import Identity


class Identified(StreamFlow):
    """What such flows have in common, without the room for it."""

    __slots__ = ()

    tells_more = True

    identity: Identity | None
    style: HeaderStyle | None

    def connected(self, socket: Socket, endpoint: Endpoint, now: float) -> None:
        """Send the header, if the upstream wants one, and relay from then on."""
        rest = b"" if self.style is None else self._header(self.style)
        rest = send(socket, rest)
        if rest:
            self.attempt = HeaderSend(self, socket, endpoint, rest)
            self.reply.pending = BLOCKED
            self.relay.pump.hand_over(socket.fileno(), self.attempt)
        else:
            super().connected(socket, endpoint, now)

    def go_on(self, socket: Socket, endpoint: Endpoint, now: float) -> None:
        """Relay from now on: the header is sent."""
        reply = self.reply
        reply.pending, reply.unserved = None, 0
        super().connected(socket, endpoint, now)
        reply.ready(EPOLLIN | EPOLLPRI | EPOLLHUP, now)  # whose edges may have come meanwhile

    def _header(self, style: HeaderStyle) -> bytes:
        hello = None if self.identity is None else self.identity.hello
        return write_header(style, self.client_remote, self.client_local, self.id, hello=hello)


class IdentifiedFlow(Identified):
    """A TCP flow with an identity, or with a header for its endpoint."""

    __slots__ = ("identity", "style")


class IdentifiedUnixFlow(Identified, UnixFlow):
    """The same of a Unix client."""

    __slots__ = ("identity", "style")


class HeaderSend:
    """The rest of a header that an endpoint has not taken yet. Owns the socket meanwhile."""

    __slots__ = ("_endpoint", "_flow", "_rest", "_socket", "until")

    def __init__(self, flow: Identified, socket: Socket, endpoint: Endpoint, rest: bytes) -> None:
        self._flow = flow
        self._socket = socket
        self._endpoint = endpoint
        self._rest = rest
        self.until = flow.active + flow.limits.connect

    def ready(self, mask: int, now: float) -> None:
        """Send on, if the endpoint takes bytes."""
        if not mask & (EPOLLOUT | EPOLLERR | EPOLLHUP):
            return
        self._rest = send(self._socket, self._rest)
        if not self._rest:
            self._flow.go_on(self._socket, self._endpoint, now)

    def timed_out(self, now: float) -> None:
        """The endpoint has not taken it in the time it had to accept."""
        self._flow.abort(CloseReason.CONNECT_TIMEOUT, CloseSide.ENDPOINT, now)

    def client_left(self, now: float) -> None:
        """Go on: the endpoint has accepted."""

    def cancel(self, now: float) -> None:
        """Give up: the flow has ended."""
        self._endpoint.leave(now)
        self._flow.relay.pump.bury(self._socket)

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow: a fault of ours."""
        self._flow.crashed(error, now)


def send(socket: Socket, data: bytes) -> bytes:
    """Send; return what was not taken, which is nothing if the connection has failed."""
    if not data:
        return b""
    try:
        return data[socket.send(data, MSG_DONTWAIT) :]
    except BlockingIOError:
        return data
    except OSError:
        return b""
