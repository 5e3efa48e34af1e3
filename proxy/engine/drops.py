"""Datagrams that are lost at our own sockets: refused by the kernel, or dropped by it unread."""

from __future__ import annotations

import errno
import struct
from socket import SOL_SOCKET
from socket import SocketType as Socket
from typing import Final

from proxy.core.flow import Drop

SO_MEMINFO: Final = 55  # asm-generic/socket.h
DROPS_AT: Final = 8  # SK_MEMINFO_DROPS, uapi/linux/sock_diag.h

DROPS: Final = {
    errno.EMSGSIZE: Drop.TOO_BIG,
    errno.ECONNREFUSED: Drop.REFUSED,
    errno.EHOSTUNREACH: Drop.HOST_UNREACHABLE,
    errno.ENETUNREACH: Drop.NET_UNREACHABLE,
    errno.EACCES: Drop.PROHIBITED,
    errno.EPERM: Drop.PROHIBITED,
    errno.EAGAIN: Drop.BUFFER_FULL,
    errno.ENOBUFS: Drop.BUFFER_FULL,
    errno.ENOMEM: Drop.BUFFER_FULL,
}


def drop_of(error: OSError) -> Drop:
    """The word for a datagram that send(2) refused."""
    return DROPS.get(error.errno or 0, Drop.OTHER)


def kernel_drops(socket: Socket) -> int:
    """Datagrams that the kernel dropped since the socket was made, as they were not read in time.

    SO_MEMINFO reads the same counter that SO_RXQ_OVFL would attach to every datagram, and costs
    nothing until somebody asks.
    """
    info = socket.getsockopt(SOL_SOCKET, SO_MEMINFO, 4 * (DROPS_AT + 1))
    drops: int = struct.unpack_from("=I", info, 4 * DROPS_AT)[0]
    return drops
