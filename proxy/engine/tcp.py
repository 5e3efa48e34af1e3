"""Facts about TCP sockets on Linux that the engine stands on, each with its source."""

from __future__ import annotations

import errno
import struct
from array import array
from contextlib import suppress
from fcntl import ioctl
from socket import (
    AF_UNIX,
    MSG_DONTWAIT,
    MSG_OOB,
    MSG_PEEK,
    SO_ERROR,
    SO_LINGER,
    SO_OOBINLINE,
    SOL_SOCKET,
)
from socket import SocketType as Socket
from termios import FIONREAD, TIOCOUTQ
from typing import Final

from proxy.core.flow import CloseReason, CloseSide

SIOCATMARK: Final = 0x8905  # asm-generic/sockios.h

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""struct linger: on, for no time; close then sends RST and forgets what is unsent (socket(7))."""

CLOSE_IN_ORDER: Final = struct.pack("ii", 0, 0)
"""The default: close sends what is unsent, and FIN."""

CLOSED: Final = Socket()
"""Stands for the socket of a flow that has ended; any call on it fails with EBADF."""
CLOSED.close()

UNREACHABLE: Final = frozenset(
    {
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENETDOWN,
        errno.ETIMEDOUT,  # keep-alive or TCP_USER_TIMEOUT: the path is silent (tcp(7))
        errno.EADDRNOTAVAIL,  # no local port is left towards it (ip(7))
        errno.EACCES,  # a firewall rule, or a broadcast address (connect(2))
        errno.EPERM,
        errno.EINVAL,  # a scope or family that this host cannot route
    }
)


RESET_SINCE: Final = frozenset({errno.ECONNRESET, errno.EPIPE})
"""Errors of a connection that was made; a SYN that is refused gives ECONNREFUSED."""


def reset_on_close(socket: Socket) -> None:
    """Have the coming close send RST in place of FIN."""
    if socket is not CLOSED:
        socket.setsockopt(SOL_SOCKET, SO_LINGER, RESET_ON_CLOSE)


def unsent(socket: Socket) -> int:
    """Bytes that the peer has not acknowledged yet (SIOCOUTQ, tcp(7)); 0 when closed."""
    if socket is CLOSED:
        return 0
    count = array("i", [0])
    ioctl(socket.fileno(), TIOCOUTQ, count)  # the same number as SIOCOUTQ
    return count[0]


def bytes_to_read(fd: int) -> int:
    """Bytes that lie in a socket or a pipe, to be read (FIONREAD, the same number as SIOCINQ).

    Raises:
        OSError: it is neither.

    """
    count = array("i", [0])
    ioctl(fd, FIONREAD, count)
    return count[0]


def has_data(socket: Socket) -> bool:
    """Whether a socket holds bytes to read, or there is no news of it; false at its end."""
    try:
        return bool(socket.recv(1, MSG_PEEK | MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False


def at_urgent_mark(socket: Socket) -> bool:
    """Whether the next byte is the urgent one (SIOCATMARK, tcp(7))."""
    mark = array("i", [0])
    try:
        ioctl(socket.fileno(), SIOCATMARK, mark)
    except OSError:  # a Unix socket before Linux 5.15, which has no urgent data
        return False
    return bool(mark[0])


def is_in_line(socket: Socket) -> bool:
    """Whether urgent bytes are read with the others, and not apart (SO_OOBINLINE, socket(7))."""
    return bool(socket.getsockopt(SOL_SOCKET, SO_OOBINLINE))


def is_urgent_taken(socket: Socket) -> bool:
    """Whether the urgent byte of a TCP socket out of line was read apart, and is still to skip."""
    if not at_urgent_mark(socket):
        return False
    try:
        socket.recv(1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT)
    except OSError as error:  # EAGAIN: it is announced, and not there yet
        return error.errno == errno.EINVAL
    return False


def read_in_line(socket: Socket) -> None:
    """Have urgent bytes read with the others, on a socket that was read by another process.

    A byte that it has read apart would be read again.
    """
    if is_in_line(socket):
        return
    is_taken = socket.family != AF_UNIX and is_urgent_taken(socket)
    with suppress(OSError):  # EOPNOTSUPP: Multipath TCP, which has no urgent data
        socket.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
        if is_taken:
            socket.recv(1, MSG_DONTWAIT)


def skip_urgent(socket: Socket) -> None:
    """Take the urgent byte that is next out of a TCP socket."""
    socket.recv(1, MSG_DONTWAIT if is_in_line(socket) else MSG_OOB | MSG_DONTWAIT)


def send_urgent(socket: Socket, byte: bytes) -> None:
    """Send a byte as urgent data; as ordinary data where there is none, on older Unix sockets.

    Raises:
        OSError: it could not be sent; EAGAIN too.

    """
    try:
        socket.send(byte, MSG_OOB | MSG_DONTWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        socket.send(byte, MSG_DONTWAIT)


def take_error(socket: Socket) -> int:
    """The socket's pending error, which is thereby cleared; 0 if there is none."""
    return socket.getsockopt(SOL_SOCKET, SO_ERROR)


def reason_of(error: int | None, side: CloseSide) -> CloseReason:
    """Why a flow ends whose socket on this side failed with this errno."""
    if error in UNREACHABLE:
        return CloseReason.UNREACHABLE
    return CloseReason.CLIENT_RESET if side is CloseSide.CLIENT else CloseReason.ENDPOINT_RESET
