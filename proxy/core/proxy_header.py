"""What a header of the PROXY protocol says, and what can be wrong with it.

Strategy of its readers: each is given all that has come so far and says what it is: a header with
its size, a fault, or that more must come. It keeps nothing between two calls, so the bytes can stay
where they are (in the kernel's queue) until the header is whole. A fault is told as soon as it is
certain: what does not begin as a header begins is none after its first byte.

Invariant: a header is at most ``HEADER_MAX`` bytes, and the same bytes give the same answer
however they are cut; what comes after the header is not looked at.

Version 1 is a line of text (``proxy_line``), version 2 is a block of bytes (``proxy_block``).

Source: "The PROXY protocol, versions 1 & 2", section 2, as it comes with HAProxy.
"""

from __future__ import annotations

import ipaddress
from enum import Enum, StrEnum
from typing import Final, NamedTuple, TypeAlias

from proxy.core.address import Address

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""How version 2 begins."""

LINE_START: Final = b"PROXY "
"""How version 1 begins."""

HEADER_MAX: Final = 4096
"""Bytes. Addresses and the TLVs that are defined come to some 1,200, a certificate's name
included; version 2 could announce 65,551, which nobody should have to hold for a stranger."""


class HeaderFault(StrEnum):
    """What is wrong with a header: the word that the log gives as the reason."""

    NO_HEADER = "no_header"  # it begins otherwise
    LINE_TOO_LONG = "line_too_long"  # no CRLF within 107 bytes
    LINE_END = "line_end"  # CR or LF alone
    LINE_FORM = "line_form"  # not the fields there must be, or not one space between them
    PROTOCOL = "protocol"  # of version 1: neither TCP4, TCP6 nor UNKNOWN
    ADDRESS = "address"  # not one of the family that is announced
    PORT = "port"
    VERSION = "version"  # neither 1 nor 2
    COMMAND = "command"  # neither LOCAL nor PROXY
    FAMILY = "family"  # an address family or transport that is not defined
    TOO_LONG = "too_long"  # more than ``HEADER_MAX``
    TOO_SHORT = "too_short"  # the addresses do not fit into the length
    TLV = "tlv"  # one that goes beyond the end, or is not as long as its kind must be
    CHECKSUM = "checksum"
    INCOMPLETE = "incomplete"  # the peer ended, or its time was up


class Tlv(NamedTuple):
    """One of the further things that a header may say; see ``TLV_NAMES``."""

    type: int
    value: bytes


class Header(NamedTuple):
    """A whole header.

    Attributes:
        size: its bytes; what follows them is payload.
        source: the client; None where the peer speaks for itself, or says nothing we know.
        destination: what the client connected to; None likewise.
        tlvs: the rest, in its order.

    """

    size: int
    source: Address | None = None
    destination: Address | None = None
    tlvs: tuple[Tlv, ...] = ()


class BadHeader(NamedTuple):
    """It is no header, or a wrong one."""

    fault: HeaderFault


class More(Enum):
    """Not enough yet."""

    MORE = "more"


MORE: Final = More.MORE

Answer: TypeAlias = Header | BadHeader | More


def internet_address(packed: bytes, port: int) -> Address:
    """The address of a host; IPv4 in IPv6 is IPv4, or it would pass by the rules for that."""
    return _plain(ipaddress.ip_address(packed), port)


def parse_internet_address(text: str, version: int, port: int) -> Address | None:
    """Read an address of this IP version; None if it is none, or has a zone."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return _plain(parsed, port) if parsed.version == version and "%" not in text else None


def _plain(parsed: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Address:
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(parsed), port, 0, 0
        parsed = parsed.ipv4_mapped
    return str(parsed), port
