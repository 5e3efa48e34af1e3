"""ICMP errors about datagrams that were sent, by kind, from the error queue of a socket.

With IP_RECVERR the kernel keeps each error with its ICMP type and code, soft ones included (a host
that cannot be reached, a hop limit that was reached), of which a connected socket would otherwise
hear nothing. The socket shows EPOLLERR as long as one is queued, so whoever is told must drain the
queue: ``take_errors``.

The kernel also fails the *next* call on the socket with the error, and does not carry it out. So a
send that fails while errors were queued says nothing about its own datagram, and is repeated.

Source: ip(7) IP_RECVERR, recv(2) MSG_ERRQUEUE, uapi/linux/errqueue.h; types and codes of RFC 792,
RFC 1812 5.2.7.1 and RFC 4443.
"""

from __future__ import annotations

import struct
from socket import AF_INET6, AF_UNIX, IPPROTO_IP, IPPROTO_IPV6, MSG_DONTWAIT, MSG_ERRQUEUE
from socket import SocketType as Socket
from typing import Final

from proxy.core.flow import Drop

IP_RECVERR: Final = 11
IPV6_RECVERR: Final = 25

ERROR: Final = struct.Struct("=IBBBxII")  # struct sock_extended_err
ORIGIN_ICMP: Final = 2
ORIGIN_ICMP6: Final = 3

ERRORS_PER_TURN: Final = 32
"""Errors read at once; what is left is told again in the next round."""

CONTROL_ROOM: Final = 512
"""Bytes of control messages of an error: itself, who sent it, and room for more."""

UNREACHABLE_V4: Final = 3
KINDS_V4: Final = {
    (UNREACHABLE_V4, 0): Drop.NET_UNREACHABLE,
    (UNREACHABLE_V4, 1): Drop.HOST_UNREACHABLE,
    (UNREACHABLE_V4, 3): Drop.REFUSED,
    (UNREACHABLE_V4, 4): Drop.TOO_BIG,
    (UNREACHABLE_V4, 6): Drop.NET_UNREACHABLE,
    (UNREACHABLE_V4, 7): Drop.HOST_UNREACHABLE,
    (UNREACHABLE_V4, 9): Drop.PROHIBITED,
    (UNREACHABLE_V4, 10): Drop.PROHIBITED,
    (UNREACHABLE_V4, 11): Drop.NET_UNREACHABLE,  # for this type of service
    (UNREACHABLE_V4, 12): Drop.HOST_UNREACHABLE,
    (UNREACHABLE_V4, 13): Drop.PROHIBITED,
    (11, 0): Drop.TTL_EXCEEDED,
}

UNREACHABLE_V6: Final = 1
KINDS_V6: Final = {
    (UNREACHABLE_V6, 0): Drop.NET_UNREACHABLE,
    (UNREACHABLE_V6, 1): Drop.PROHIBITED,
    (UNREACHABLE_V6, 3): Drop.HOST_UNREACHABLE,
    (UNREACHABLE_V6, 4): Drop.REFUSED,
    (UNREACHABLE_V6, 5): Drop.PROHIBITED,
    (UNREACHABLE_V6, 6): Drop.PROHIBITED,
    (2, 0): Drop.TOO_BIG,
    (3, 0): Drop.TTL_EXCEEDED,
}


def ask_for_errors(socket: Socket) -> None:
    """Have the kernel queue ICMP errors for this socket."""
    if socket.family == AF_INET6:
        socket.setsockopt(IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        socket.setsockopt(IPPROTO_IP, IP_RECVERR, 1)


def take_errors(socket: Socket) -> list[Drop]:
    """Take the ICMP errors that are queued, at most ``ERRORS_PER_TURN``, each as its kind.

    What the kernel itself refused to send is queued as well (EMSGSIZE); it is thrown away here,
    because the call that failed has told it already.
    """
    kinds: list[Drop] = []
    if socket.family == AF_UNIX:  # has no such queue, and would give a datagram instead
        return kinds
    for _ in range(ERRORS_PER_TURN):
        try:
            _, control, _, _ = socket.recvmsg(0, CONTROL_ROOM, MSG_ERRQUEUE | MSG_DONTWAIT)
        except OSError:  # EAGAIN: that was all
            break
        for level, kind, data in control:
            if (level, kind) in {(IPPROTO_IP, IP_RECVERR), (IPPROTO_IPV6, IPV6_RECVERR)}:
                _, origin, icmp_type, code, _, _ = ERROR.unpack_from(data)
                if origin in KINDS:
                    kinds.append(KINDS[origin].get((icmp_type, code), Drop.OTHER))
    return kinds


KINDS: Final = {ORIGIN_ICMP: KINDS_V4, ORIGIN_ICMP6: KINDS_V6}
