"""PROXY protocol, version 2: sixteen bytes of head, addresses, then TLVs (type, length, value).

What a LOCAL header holds is not looked at, and neither is one whose family or transport is
unspecified: nothing of them is used, so nothing of them is checked. The addresses of TCP and UDP
are taken alike, for the transport is that between the client and the first proxy.

Source: the PROXY protocol, section 2.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from proxy.core.address import Address
from proxy.core.crc32c import crc32c
from proxy.core.proxy_header import (
    HEADER_MAX,
    MORE,
    SIGNATURE,
    Answer,
    BadHeader,
    Header,
    HeaderFault,
    Tlv,
    internet_address,
)
from proxy.core.unix import UnixAddress

HEAD: Final = struct.Struct("!12sBBH")

VERSION: Final = 2
LOCAL: Final = 0
PROXY: Final = 1

UNSPEC: Final = 0
INET: Final = 1
INET6: Final = 2
UNIX: Final = 3
STREAM: Final = 1
DGRAM: Final = 2

TLV_HEAD: Final = struct.Struct("!BH")

ALPN: Final = 0x01
AUTHORITY: Final = 0x02
CRC32C: Final = 0x03
NOOP: Final = 0x04
UNIQUE_ID: Final = 0x05

TLV_NAMES: Final = {
    ALPN: "alpn",
    AUTHORITY: "authority",
    CRC32C: "crc32c",
    NOOP: "noop",
    UNIQUE_ID: "unique_id",
    0x20: "ssl",
    0x30: "netns",
}

UNIQUE_ID_MAX: Final = 128
CHECKSUM: Final = struct.Struct("!I")

HOST_SIZES: Final = {INET: 4, INET6: 16}
PORTS: Final = struct.Struct("!HH")
UNIX_SIZE: Final = 108
"""Bytes of ``sun_path``: unix(7)."""

UNDECODABLE: Final = "surrogateescape"
"""How bytes of a name that are no text are kept, as everywhere: see ``unix``."""

SIZES: Final = {
    **{family: 2 * size + PORTS.size for family, size in HOST_SIZES.items()},
    UNIX: 2 * UNIX_SIZE,
}
"""Bytes of both addresses."""

LOCAL_BLOCK: Final = HEAD.pack(SIGNATURE, VERSION << 4 | LOCAL, UNSPEC, 0)
"""The header of who speaks for himself: a check of ours."""


def read_block(data: bytes) -> Answer:
    """Read a header of version 2; all that a datagram may begin with."""
    if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
        return BadHeader(HeaderFault.NO_HEADER)
    if len(data) < HEAD.size:
        return MORE
    _, version_command, family_transport, length = HEAD.unpack_from(data)
    family, transport = divmod(family_transport, 16)
    if version_command >> 4 != VERSION:
        return BadHeader(HeaderFault.VERSION)
    command = version_command & 15
    if command not in {LOCAL, PROXY}:
        return BadHeader(HeaderFault.COMMAND)
    size = HEAD.size + length
    if size > HEADER_MAX:
        return BadHeader(HeaderFault.TOO_LONG)
    if command == PROXY and (family > UNIX or transport > DGRAM):
        return BadHeader(HeaderFault.FAMILY)
    if len(data) < size:
        return MORE
    if command == LOCAL or UNSPEC in {family, transport}:
        return Header(size)
    return _read_proxied(data[:size], family)


def _read_proxied(block: bytes, family: int) -> Answer:
    start = HEAD.size + SIZES[family]
    if len(block) < start:
        return BadHeader(HeaderFault.TOO_SHORT)
    tlvs = _read_tlvs(block, start)
    if tlvs is None:
        return BadHeader(HeaderFault.TLV)
    if not all(_sums_up(block, at) for at, tlv in tlvs if tlv.type == CRC32C):
        return BadHeader(HeaderFault.CHECKSUM)
    read = _read_unix if family == UNIX else _read_internet
    source, destination = read(block[HEAD.size : start])
    return Header(len(block), source, destination, tuple(tlv for _, tlv in tlvs))


def _read_tlvs(block: bytes, start: int) -> list[tuple[int, Tlv]] | None:
    """The TLVs from ``start`` on, and where the value of each begins; None if any is wrong."""
    found: list[tuple[int, Tlv]] = []
    while start < len(block):
        if start + TLV_HEAD.size > len(block):
            return None
        kind, length = TLV_HEAD.unpack_from(block, start)
        start += TLV_HEAD.size
        value = block[start : start + length]
        if len(value) < length or not _fits(kind, length):
            return None
        found.append((start, Tlv(kind, value)))
        start += length
    return None if [tlv.type for _, tlv in found].count(CRC32C) > 1 else found


def _fits(kind: int, length: int) -> bool:
    if kind == CRC32C:
        return length == CHECKSUM.size
    return kind != UNIQUE_ID or length <= UNIQUE_ID_MAX


def _sums_up(block: bytes, at: int) -> bool:
    """Whether the checksum at this place is that of the header with zeros there."""
    (found,) = CHECKSUM.unpack_from(block, at)
    return bool(found == crc32c(block[:at] + bytes(CHECKSUM.size) + block[at + CHECKSUM.size :]))


def _read_internet(block: bytes) -> Iterator[Address]:
    size = (len(block) - PORTS.size) // 2
    ports = PORTS.unpack_from(block, 2 * size)
    hosts = block[:size], block[size : 2 * size]
    return (internet_address(host, port) for host, port in zip(hosts, ports, strict=True))


def _read_unix(block: bytes) -> Iterator[Address]:
    return (_unix_name(block[at : at + UNIX_SIZE]) for at in (0, UNIX_SIZE))


def _unix_name(name: bytes) -> UnixAddress:
    """A path ends with its NUL; an abstract name begins with one, and those at its end are none."""
    if name[:1] == b"\0":
        return UnixAddress(_text(name.rstrip(b"\0")))
    return UnixAddress(_text(name.partition(b"\0")[0]))


def _text(name: bytes) -> str:
    return name.decode(errors=UNDECODABLE)


def write_block(
    source: Address,
    destination: Address,
    *,
    datagrams: bool = False,
    tlvs: tuple[Tlv, ...] = (),
    checksum: bool = False,
) -> bytes:
    """Write a header of version 2.

    Args:
        source: the client.
        destination: what it connected to; with an IPv4 address beside an IPv6 one, that is mapped.
        datagrams: whether the client sends these, and not a stream.
        tlvs: what else to say; they fit into ``HEADER_MAX``.
        checksum: whether to add a CRC-32C.

    """
    family, addresses = _pack(source, destination)
    body = addresses + b"".join(TLV_HEAD.pack(kind, len(value)) + value for kind, value in tlvs)
    if checksum:
        body += TLV_HEAD.pack(CRC32C, CHECKSUM.size) + bytes(CHECKSUM.size)
    transport = UNSPEC if family == UNSPEC else DGRAM if datagrams else STREAM
    head = HEAD.pack(SIGNATURE, VERSION << 4 | PROXY, family << 4 | transport, len(body))
    block = head + body
    assert len(block) <= HEADER_MAX, len(block)
    return block[: -CHECKSUM.size] + CHECKSUM.pack(crc32c(block)) if checksum else block


def _pack(source: Address, destination: Address) -> tuple[int, bytes]:
    """The family of two addresses, and both of them; unspecified if they have none in common."""
    both = source, destination
    if all(isinstance(each, UnixAddress) for each in both):
        names = [each[0].encode(errors=UNDECODABLE) for each in both]
        if max(map(len, names)) > UNIX_SIZE:
            return UNSPEC, b""
        return UNIX, b"".join(name.ljust(UNIX_SIZE, b"\0") for name in names)
    if any(isinstance(each, UnixAddress) for each in both):
        return UNSPEC, b""
    hosts = [ip_address(each[0].partition("%")[0]).packed for each in both]
    if len(hosts[0]) != len(hosts[1]):
        hosts = [host.rjust(6, b"\xff").rjust(16, b"\0") for host in hosts]
    family = INET if len(hosts[0]) == HOST_SIZES[INET] else INET6
    return family, b"".join(hosts) + PORTS.pack(source[1], destination[1])
