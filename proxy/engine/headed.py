"""PROXY protocol over UDP, out: sockets to endpoints that send a header before each datagram.

A flow's header is always the same, so its socket has it. Header and payload are joined, which
copies the payload once more; flows without a header do not pay for that.
"""

from __future__ import annotations

import errno
import os
from socket import SOCK_DGRAM, SOCK_NONBLOCK
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Any, NoReturn

from proxy.engine.unix import UnixDatagramSocket

if TYPE_CHECKING:
    from proxy.core.unix import UnixAddress


class HeadedSocket(Socket):
    """A socket to an endpoint that sends a header before each datagram."""

    __slots__ = ("header",)

    header: bytes

    def send(self, data: Any, flags: int = 0) -> int:
        """Send a datagram; EMSGSIZE if there is no room for both."""
        return super().send(b"".join((self.header, data)), flags)

    def sendmsg(self, *run: object) -> NoReturn:
        """Send no run as one piece, which would have no headers; whoever tries sends one by one.

        It is tried where the flows that begin now have none.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


class HeadedUnixSocket(UnixDatagramSocket):
    """The same of a Unix socket."""

    __slots__ = ("header",)

    header: bytes

    def send(self, data: Any, flags: int = 0) -> int:
        """Send a datagram; EMSGSIZE if there is no room for both."""
        return super().send(b"".join((self.header, data)), flags)


def with_header(socket: Socket, header: bytes) -> HeadedSocket:
    """The same UDP socket, which sends a header from now on; the former object is closed."""
    kind = SOCK_DGRAM | SOCK_NONBLOCK
    headed = HeadedSocket(socket.family, kind, 0, socket.detach())
    headed.header = header
    return headed


def unix_with_header(endpoint: UnixAddress, header: bytes) -> HeadedUnixSocket:
    """A socket to a Unix endpoint that sends a header."""
    headed = HeadedUnixSocket(endpoint)
    headed.header = header
    return headed
