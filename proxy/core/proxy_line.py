r"""PROXY protocol, version 1: a line of text, ``PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n``.

Source: the PROXY protocol, section 2.1.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.address import PORT_MAX, Address
from proxy.core.proxy_header import (
    LINE_START,
    MORE,
    Answer,
    BadHeader,
    Header,
    HeaderFault,
    parse_internet_address,
)

LINE_MAX: Final = 107
"""Bytes with CRLF: ``UNKNOWN`` before two IPv6 addresses of full length."""

FIELDS: Final = 6

UNKNOWN_LINE: Final = b"PROXY UNKNOWN\r\n"
"""What says nothing of who the client is."""

VERSIONS: Final = {"TCP4": 4, "TCP6": 6}
"""Of IP, by protocol."""

_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")


def read_line(data: bytes) -> Answer:
    """Read a header of version 1, which begins with ``LINE_START`` as far as it has come."""
    end = data.find(b"\r\n", 0, LINE_MAX)
    line = data[:LINE_MAX].removesuffix(b"\r") if end < 0 else data[:end]
    if b"\n" in line or b"\r" in line:
        return BadHeader(HeaderFault.LINE_END)
    if end >= 0:
        return _read(line, end + 2)
    return BadHeader(HeaderFault.LINE_TOO_LONG) if len(data) >= LINE_MAX else MORE


def _read(line: bytes, size: int) -> Answer:
    text = line[len(LINE_START) :].decode("latin-1")
    protocol, _, rest = text.partition(" ")
    if protocol == "UNKNOWN":  # whatever follows is not to be looked at
        return Header(size)
    if protocol not in VERSIONS:
        return BadHeader(HeaderFault.PROTOCOL)
    fields = rest.split(" ")
    if len(fields) != FIELDS - 2:
        return BadHeader(HeaderFault.LINE_FORM)
    ports = [_port(field) for field in fields[2:]]
    if None in ports:
        return BadHeader(HeaderFault.PORT)
    version = VERSIONS[protocol]
    source, destination = (
        parse_internet_address(host, version, port or 0)
        for host, port in zip(fields[:2], ports, strict=True)
    )
    if source is None or destination is None:
        return BadHeader(HeaderFault.ADDRESS)
    return Header(size, source, destination)


def _port(text: str) -> int | None:
    port = int(text) if _PORT.fullmatch(text) else PORT_MAX + 1
    return port if port <= PORT_MAX else None


def write_line(source: Address, destination: Address) -> bytes:
    """Write a header of version 1; ``UNKNOWN`` where the addresses are not of one IP version."""
    for protocol, length in (("TCP4", 2), ("TCP6", 4)):
        if _length(source) == _length(destination) == length:
            hosts = f"{_host(source)} {_host(destination)}"
            return f"PROXY {protocol} {hosts} {source[1]} {destination[1]}\r\n".encode()
    return UNKNOWN_LINE


def _length(address: Address) -> int:
    """Of the tuple, which tells the IP version; 0 for the address of a Unix socket."""
    return len(address) if type(address) is tuple else 0


def _host(address: Address) -> str:
    return address[0].partition("%")[0]
