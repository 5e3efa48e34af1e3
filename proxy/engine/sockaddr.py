"""Raw socket addresses and IP_PKTINFO, as the kernel writes them.

A datagram's address is used as it comes, as bytes: a key to look up the flow, and the name to
answer to. It is decoded once, when a flow is opened.

Source: ip(7), ipv6(7), cmsg(3); uapi/linux/in.h, in6.h.
"""

from __future__ import annotations

import struct
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, inet_ntop
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.core.address import Address

IP_PKTINFO: Final = 8
IPV6_PKTINFO: Final = 50
IPV6_RECVPKTINFO: Final = 49

SOCKADDR_IN: Final = struct.Struct("=H2s4s")
SOCKADDR_IN6: Final = struct.Struct("=H2s4s16sI")
CMSG: Final = struct.Struct("=Qii")  # length with this header, level, type

# Where the local address lies in the one control message we ask for.
LOCAL_V4: Final = slice(20, 24)  # in_pktinfo.ipi_spec_dst
LOCAL_V6: Final = slice(16, 32)  # in6_pktinfo.ipi6_addr


def decode(name: bytes) -> Address:
    """Turn a raw ``sockaddr_in`` or ``sockaddr_in6`` into what the socket module gives."""
    family = int.from_bytes(name[:2], "little")
    if family == AF_INET:
        _, port, host = SOCKADDR_IN.unpack_from(name)
        return (inet_ntop(AF_INET, host), int.from_bytes(port, "big"))
    _, port, flow, host, scope = SOCKADDR_IN6.unpack_from(name)
    text = inet_ntop(AF_INET6, host)
    return (text, int.from_bytes(port, "big"), int.from_bytes(flow, "big"), scope)


def local_of(control: memoryview) -> bytes:
    """The local address (4 or 16 bytes) a datagram was sent to, from its packet information."""
    _, level, _ = CMSG.unpack_from(control)
    return bytes(control[LOCAL_V4 if level == IPPROTO_IP else LOCAL_V6])


def local_address(local: bytes, port: int, scope: int) -> Address:
    """The socket address of ours that a client hit."""
    if len(local) == 4:
        return (inet_ntop(AF_INET, local), port)
    return (inet_ntop(AF_INET6, local), port, 0, scope)


def answer_from(local: bytes, scope: int) -> bytes:
    """The control message that makes an answer leave from this local address.

    The interface is left to routing (index 0), but for IPv6 link-local addresses, which mean
    nothing without it: ``scope`` is the client's.
    """
    if len(local) == 4:
        return CMSG.pack(28, IPPROTO_IP, IP_PKTINFO) + struct.pack("=i4s4s4x", 0, local, bytes(4))
    index = scope if local[:2] == b"\xfe\x80" else 0
    return CMSG.pack(36, IPPROTO_IPV6, IPV6_PKTINFO) + local + struct.pack("=I4x", index)


def family_of(address: Address) -> int:
    """The address family a socket needs to reach this address."""
    return AF_INET6 if ":" in address[0] else AF_INET


def unmapped(address: Address) -> Address:
    """Write an IPv4 client of a dual-stack socket as IPv4, which is what it is (RFC 4291 2.5.5)."""
    host = address[0]
    if host.startswith("::ffff:") and "." in host:
        return (host.removeprefix("::ffff:"), address[1])
    return address
