"""Reading what the kernel tells of a socket, for ``core.crossing``.

It costs some six system calls, and is done once a socket, when a worker has been killed.

Nobody else here uses the socket meanwhile, but its peer does: a byte or an acknowledgement that
comes between two calls is in one number and not in the other. So what was read counts only if the
kernel had received and acknowledged the same before and after it.
"""

from __future__ import annotations

import struct
from select import POLLERR, POLLPRI, poll
from socket import (
    AF_INET6,
    IPPROTO_TCP,
    SO_OOBINLINE,
    SO_PROTOCOL,
    SOL_SOCKET,
    TCP_INFO,
)
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

from proxy.core.crossing import Reading, TcpState, Urgent
from proxy.engine.sockaddr import canonical, decode
from proxy.engine.tcp import at_urgent_mark, bytes_to_read, is_in_line, is_urgent_taken, unsent

if TYPE_CHECKING:
    from proxy.core.address import Address

INFO_SIZE: Final = 136
"""Bytes of struct tcp_info to ask for: up to tcpi_bytes_received (linux/tcp.h; Linux 4.1)."""

COUNTS: Final = struct.Struct("=QQ")
"""tcpi_bytes_acked and tcpi_bytes_received, at ``COUNTS_AT``."""

COUNTS_AT: Final = 120

SO_PEERNAME: Final = 28  # asm-generic/socket.h

SIZE_OF_NAME_V4: Final = 16
SIZE_OF_NAME_V6: Final = 28
"""Of struct sockaddr_in and sockaddr_in6; to ask for more is an error."""

TIMES_MOST: Final = 1000
"""A peer that sends is quiet when the socket holds what it may; some readings later, as a rule."""


def read_socket(socket: Socket, *, is_ours: bool) -> Reading | None:
    """Read the counters of a socket; None if it has failed, or has none: it is no TCP socket.

    Args:
        socket: from which nobody reads meanwhile.
        is_ours: whether we connected it.

    """
    try:
        if socket.getsockopt(SOL_SOCKET, SO_PROTOCOL) != IPPROTO_TCP:  # Multipath TCP, Unix
            return None
        for _ in range(TIMES_MOST):
            counts = _counts(socket)
            reading = _read_once(socket, counts, is_ours=is_ours)
            if _counts(socket) == counts:
                return reading
    except (OSError, ValueError, struct.error):  # it failed meanwhile, or an older kernel
        pass
    return None


def has_failed(socket: Socket) -> bool:
    """Whether a socket was reset, or has failed otherwise; its error stays pending."""
    events = poll()
    events.register(socket.fileno(), 0)
    return any(mask & POLLERR for _, mask in events.poll(0))


def peer_of(socket: Socket) -> Address:
    """The address of a socket's peer, as the table shows it, also when both sides have ended.

    getpeername(2) tells it no more then, and SO_PEERNAME does (inet_getname, net/ipv4/af_inet.c).

    Raises:
        OSError: it was never connected.

    """
    size = SIZE_OF_NAME_V6 if socket.family == AF_INET6 else SIZE_OF_NAME_V4
    return canonical(decode(socket.getsockopt(SOL_SOCKET, SO_PEERNAME, size)))


def _counts(socket: Socket) -> tuple[TcpState, int, int]:
    """The state of a socket, and how many bytes were acknowledged and received."""
    info = socket.getsockopt(IPPROTO_TCP, TCP_INFO, INFO_SIZE)
    acked, received = COUNTS.unpack_from(info, COUNTS_AT)
    return TcpState(info[0]), acked, received


def _read_once(socket: Socket, counts: tuple[TcpState, int, int], *, is_ours: bool) -> Reading:
    state, acked, received = counts
    urgent, is_near = _look_for_urgent(socket)
    unread = _unread_inline(socket) if is_near else bytes_to_read(socket.fileno())
    return Reading(state, received, unread, acked, unsent(socket), is_ours, urgent)


def _look_for_urgent(socket: Socket) -> tuple[Urgent, bool]:
    """What is urgent where it is read, and whether urgent data is about at all."""
    events = poll()
    events.register(socket.fileno(), POLLPRI)
    is_announced = any(mask & POLLPRI for _, mask in events.poll(0))
    if not at_urgent_mark(socket):
        return Urgent.NONE, is_announced
    if not is_in_line(socket) and is_urgent_taken(socket):
        return Urgent.TAKEN, True
    is_there = _unread_inline(socket) > 0
    return (Urgent.NEXT if is_there else Urgent.NONE), True


def _unread_inline(socket: Socket) -> int:
    """SIOCINQ beyond the urgent mark."""
    if is_in_line(socket):
        return bytes_to_read(socket.fileno())
    socket.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
    try:
        return bytes_to_read(socket.fileno())
    finally:
        socket.setsockopt(SOL_SOCKET, SO_OOBINLINE, 0)
