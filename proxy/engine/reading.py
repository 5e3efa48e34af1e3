"""Reading what the kernel tells of a socket, for ``core.crossing``.

It costs some four system calls, and is done once a socket, when a worker has been killed.
"""

from __future__ import annotations

import errno
import struct
from select import POLLERR, POLLPRI, poll
from socket import (
    IPPROTO_TCP,
    MSG_DONTWAIT,
    MSG_OOB,
    MSG_PEEK,
    SO_OOBINLINE,
    SO_PROTOCOL,
    SOL_SOCKET,
    TCP_INFO,
)
from socket import SocketType as Socket
from typing import Final

from proxy.core.crossing import Reading, TcpState, Urgent
from proxy.engine.tcp import at_urgent_mark, bytes_to_read, unsent

INFO_SIZE: Final = 136
"""Bytes of struct tcp_info to ask for: up to tcpi_bytes_received (linux/tcp.h; Linux 4.1)."""

COUNTS: Final = struct.Struct("=QQ")
"""tcpi_bytes_acked and tcpi_bytes_received, at ``COUNTS_AT``."""

COUNTS_AT: Final = 120


def read_socket(socket: Socket, *, is_ours: bool) -> Reading | None:
    """Read the counters of a socket; None if it has failed, or has none: it is no TCP socket.

    Args:
        socket: from which nobody reads meanwhile.
        is_ours: whether we connected it.

    """
    try:
        if socket.getsockopt(SOL_SOCKET, SO_PROTOCOL) != IPPROTO_TCP:  # Multipath TCP, Unix
            return None
        urgent, is_near = _look_for_urgent(socket)
        info = socket.getsockopt(IPPROTO_TCP, TCP_INFO, INFO_SIZE)
        acked, received = COUNTS.unpack_from(info, COUNTS_AT)
        unread = _unread_inline(socket) if is_near else bytes_to_read(socket.fileno())
        return Reading(TcpState(info[0]), received, unread, acked, unsent(socket), is_ours, urgent)
    except (OSError, ValueError, struct.error):  # it failed meanwhile, or an older kernel
        return None


def has_failed(socket: Socket) -> bool:
    """Whether a socket was reset, or has failed otherwise; its error stays pending."""
    events = poll()
    events.register(socket.fileno(), 0)
    return any(mask & POLLERR for _, mask in events.poll(0))


def _look_for_urgent(socket: Socket) -> tuple[Urgent, bool]:
    """What is urgent where it is read, and whether urgent data is about at all."""
    events = poll()
    events.register(socket.fileno(), POLLPRI)
    is_announced = any(mask & POLLPRI for _, mask in events.poll(0))
    if not at_urgent_mark(socket):
        return Urgent.NONE, is_announced
    try:
        socket.recv(1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT)
    except OSError as error:  # EINVAL: it has been taken; EAGAIN: it is not there yet
        return (Urgent.TAKEN if error.errno == errno.EINVAL else Urgent.NONE), True
    return Urgent.NEXT, True


def _unread_inline(socket: Socket) -> int:
    """SIOCINQ beyond the urgent mark."""
    socket.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
    try:
        return bytes_to_read(socket.fileno())
    finally:
        socket.setsockopt(SOL_SOCKET, SO_OOBINLINE, 0)
