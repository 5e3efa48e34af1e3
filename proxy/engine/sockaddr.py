"""Raw socket addresses and IP_PKTINFO, as the kernel writes them.

A datagram's address is used as it comes, as bytes: a key to look up the flow, and the name to
answer to. It is decoded once, when a flow is opened.

Source: ip(7), ipv6(7), cmsg(3); uapi/linux/in.h, in6.h.
"""

from __future__ import annotations

import errno
import struct
from socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    if_indextoname,
    if_nametoindex,
    inet_ntop,
)
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from proxy.core.address import Address

IP_PKTINFO: Final = 8
IPV6_PKTINFO: Final = 50
IPV6_RECVPKTINFO: Final = 49

SOCKADDR_IN: Final = struct.Struct("=H2s4s")
SOCKADDR_IN6: Final = struct.Struct("=H2s4s16sI")
CMSG: Final = struct.Struct("=Qii")  # length with this header, level, type

# Where the local address lies in the one control message we ask for.
LOCAL_V4: Final = slice(20, 28)  # in_pktinfo.ipi_spec_dst, then ipi_addr
LOCAL_V6: Final = slice(16, 32)  # in6_pktinfo.ipi6_addr
INDEX_V6: Final = slice(32, 36)  # in6_pktinfo.ipi6_ifindex

LINK_LOCAL: Final = (b"\xfe\x80", b"\xff\x02")
"""How an IPv6 address begins that means nothing without an interface; RFC 4291 2.5.6, 2.7."""

V4_IN_V6: Final = bytes(10) + b"\xff\xff"


class Hit(NamedTuple):
    """The address of ours that a datagram was sent to.

    Attributes:
        address: as it stands in the datagram: 4 or 16 bytes.
        answer: a unicast address of ours to answer from; empty leaves the choice to routing.
        interface: the number of the one it came in by; 0 where that does not matter.

    """

    address: bytes
    answer: bytes
    interface: int

    @property
    def is_unicast(self) -> bool:
        """Whether it was sent to this host alone."""
        return self.address == self.answer

    @property
    def is_multicast(self) -> bool:
        """Whether it was sent to a group."""
        return is_multicast(self.address)


def hit_of(control: memoryview) -> Hit:
    """Read the packet information that came with a datagram.

    For IPv4 the kernel itself names the address to answer from, also for a broadcast: ip(7).
    """
    _, level, _ = CMSG.unpack_from(control)
    if level == IPPROTO_IP:
        both = bytes(control[LOCAL_V4])
        return Hit(both[4:], both[:4], 0)
    address = bytes(control[LOCAL_V6])
    index = int.from_bytes(control[INDEX_V6], "little") if address[:2] in LINK_LOCAL else 0
    shared = is_multicast(address) or address == V4_IN_V6 + b"\xff\xff\xff\xff"
    return Hit(address, b"" if shared else address, index)


def is_multicast(address: bytes) -> bool:
    """Whether a raw address is that of a group, be it IPv4, IPv6 or IPv4 in IPv6."""
    if len(address) == 16 and address[:12] != V4_IN_V6:
        return address[0] == 0xFF
    return address[-4] >> 4 == 0xE


def decode(name: bytes) -> Address:
    """Turn a raw ``sockaddr_in`` or ``sockaddr_in6`` into an address."""
    family = int.from_bytes(name[:2], "little")
    if family == AF_INET:
        _, port, host = SOCKADDR_IN.unpack_from(name)
        return (inet_ntop(AF_INET, host), int.from_bytes(port, "big"))
    _, port, flow, host, scope = SOCKADDR_IN6.unpack_from(name)
    text = inet_ntop(AF_INET6, host)
    return zoned((text, int.from_bytes(port, "big"), int.from_bytes(flow, "big"), scope))


def local_of(control: memoryview) -> bytes:
    """What tells local addresses apart: the part of a flow's key that ``hit_of`` reads."""
    _, level, _ = CMSG.unpack_from(control)
    return bytes(control[LOCAL_V4 if level == IPPROTO_IP else LOCAL_V6])


def spare_local_address(socket: Socket) -> None:
    """Have datagrams tell no more where they were sent to: what is bound to one address knows."""
    if socket.family == AF_INET6:
        socket.setsockopt(IPPROTO_IPV6, IPV6_RECVPKTINFO, 0)
    else:
        socket.setsockopt(IPPROTO_IP, IP_PKTINFO, 0)


def local_address(hit: Hit, port: int) -> Address:
    """The socket address of ours that a client hit."""
    if len(hit.address) == 4:
        return (inet_ntop(AF_INET, hit.address), port)
    return zoned((inet_ntop(AF_INET6, hit.address), port, 0, hit.interface))


def answer_from(hit: Hit) -> bytes:
    """The control message that makes an answer leave from the local address that was hit.

    The interface is left to routing (index 0), but for IPv6 link-local addresses, which mean
    nothing without it.
    """
    local = hit.answer
    if not local:
        return b""
    if len(local) == 4:
        return CMSG.pack(28, IPPROTO_IP, IP_PKTINFO) + struct.pack("=i4s8x", 0, local)
    return CMSG.pack(36, IPPROTO_IPV6, IPV6_PKTINFO) + local + struct.pack("=I4x", hit.interface)


def zoned(address: Address) -> Address:
    """Write the scope of an IPv6 address as its zone too: ``fe80::1%eth0``."""
    if len(address) == 2 or not address[3] or "%" in address[0]:
        return address
    return (f"{address[0]}%{interface_name(address[3])}", *address[1:])


def scoped(host: str, port: int) -> Address:
    """A literal address as bind(2) and connect(2) want it: a zone as the number of its interface.

    Raises:
        OSError: ENODEV, there is no such interface.

    """
    zone = host.partition("%")[2]
    return (host, port, 0, interface_index(zone)) if zone else (host, port)


def interface_name(index: int) -> str:
    """The name of an interface; its number, when it is gone."""
    try:
        return if_indextoname(index)
    except OSError:
        return str(index)


def interface_index(name: str) -> int:
    """The number of an interface; a zone may be that number already (RFC 4007 section 11.2).

    Raises:
        OSError: ENODEV, there is no such interface.

    """
    try:
        return if_nametoindex(name)
    except OSError:
        if name.isdecimal():
            return int(name)
        raise OSError(errno.ENODEV, f'there is no interface "{name}"') from None


def family_of(address: Address) -> int:
    """The address family a socket needs to reach this address."""
    return AF_INET6 if ":" in address[0] else AF_INET


def unmapped(address: Address) -> Address:
    """Write an IPv4 client of a dual-stack socket as IPv4, which is what it is (RFC 4291 2.5.5)."""
    host = address[0]
    if host.startswith("::ffff:") and "." in host:
        return (host.removeprefix("::ffff:"), address[1])
    return address


def canonical(address: Address) -> Address:
    """An address as the table shows it: IPv4 as what it is, and a scope with its zone."""
    return address if len(address) == 2 else zoned(unmapped(address))
