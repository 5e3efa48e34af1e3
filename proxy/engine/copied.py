"""DSCP as the client sent it, on the way to the endpoint.

The DSCP of a flow is that of the packet which opened it: of TCP the SYN, which the kernel keeps
when it is asked to (TCP_SAVE_SYN), and gives once; of UDP the first datagram, which tells it in a
control message. So the socket to the endpoint has it before it sends anything, its own SYN
included. What a client changes later is not followed: TCP tells of no further packet.

A SYN that was answered by a cookie is not kept (tcp(7), tcp_syncookies); such a flow has DSCP 0.

IPv4 and IPv6 have the same code points at different places, so they are copied as numbers, from one
to the other too. ECN, the two bits beside them, belongs to each connection by itself (RFC 3168).

A way to endpoints is chosen by a number of six bits, and worked out when it is first needed; so a
flow pays for finding out, and no more than any other for being marked.

Source: tcp(7); net/ipv4/tcp.c, do_tcp_getsockopt; ip(7) IP_RECVTOS; ipv6(7) IPV6_RECVTCLASS.
"""

from __future__ import annotations

from contextlib import suppress
from socket import (
    AF_INET6,
    IP_RECVTOS,
    IP_TOS,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_RECVTCLASS,
    IPV6_TCLASS,
)
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

from proxy.engine.marks import ECN_BITS
from proxy.engine.sockaddr import CMSG

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.engine.options import SocketOptions
    from proxy.engine.outbound import Connect, Outbound

TCP_SAVE_SYN: Final = 27  # uapi/linux/tcp.h; Linux 4.2
TCP_SAVED_SYN: Final = 28

IP_HEADER: Final = 2
"""Bytes of a SYN that are looked at: version and traffic class are in the first two."""

SYN_ROOM: Final = 256
"""Bytes; the kernel gives headers as a whole, or not at all: 40 of IPv6, its options, 60 of TCP."""

CLASS_SPACE: Final = 24
"""Bytes of control messages that tell a datagram's traffic class: a head, and an int or less."""


class CopiedWay:
    """The way to endpoints for each DSCP that a client may have; as a ``Connect``, that for none.

    Args:
        outbound: how flows leave otherwise; of its marks, ``dscp`` is not used.
        kind: of the sockets.
        options: further ones of theirs.

    """

    __slots__ = ("_kind", "_options", "_outbound", "_ways")

    def __init__(self, outbound: Outbound, kind: int, options: SocketOptions) -> None:
        self._outbound = outbound
        self._kind = kind
        self._options = options
        self._ways: dict[int, Connect] = {}  # 64 at most, since DSCP has six bits

    def __call__(self, address: Address, client: Address) -> tuple[Socket, int]:
        """Connect without a DSCP."""
        return self.with_dscp(0)(address, client)

    def with_dscp(self, dscp: int) -> Connect:
        """The way of a client that has sent with this DSCP."""
        way = self._ways.get(dscp)
        if way is None:
            outbound = self._outbound
            marked = outbound._replace(marks=outbound.marks._replace(dscp=dscp))
            way = self._ways[dscp] = marked.way(self._kind, self._options)
        return way


def keep_syn(socket: Socket, *, wanted: bool) -> None:
    """Have a listening TCP socket keep the SYN of whom it accepts, or no more."""
    with suppress(OSError):  # ENOPROTOOPT: Multipath TCP, for which the configuration forbids it
        socket.setsockopt(IPPROTO_TCP, TCP_SAVE_SYN, wanted)


def dscp_of_stream(client: Socket) -> int:
    """The DSCP with which an accepted client sent its SYN; the kernel forgets it thereby."""
    try:
        syn = client.getsockopt(IPPROTO_TCP, TCP_SAVED_SYN, SYN_ROOM)
    except OSError:  # EINVAL: longer headers than there are
        return 0
    return dscp_of_packet(syn)


def dscp_of_packet(packet: bytes) -> int:
    """The DSCP in the header of an IP packet; 0 if there is none."""
    if len(packet) < IP_HEADER:
        return 0
    version, start = packet[0] >> 4, int.from_bytes(packet[:IP_HEADER], "big")
    traffic_class = start >> 4 if version == 6 else start
    return (traffic_class & 0xFF) >> ECN_BITS


def tell_class(socket: Socket, *, wanted: bool) -> None:
    """Have each datagram tell its traffic class, or no more; an IPv6 socket may get IPv4 too."""
    socket.setsockopt(IPPROTO_IP, IP_RECVTOS, wanted)
    if socket.family == AF_INET6:
        socket.setsockopt(IPPROTO_IPV6, IPV6_RECVTCLASS, wanted)


def dscp_of_datagram(control: memoryview) -> int:
    """The DSCP in the control messages that came with a datagram; 0 if they do not tell it."""
    at = 0
    while at + CMSG.size < len(control):
        size, level, kind = CMSG.unpack_from(control, at)
        if (level, kind) in {(IPPROTO_IP, IP_TOS), (IPPROTO_IPV6, IPV6_TCLASS)}:
            return int(control[at + CMSG.size]) >> ECN_BITS
        at += (size + 7) // 8 * 8
    return 0
