"""PROXY protocol: who the client is, said by one proxy to the next in front of its bytes.

Which version comes is told by how it begins; which one goes is configured, as a ``HeaderStyle``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.proxy_block import ALPN, AUTHORITY, UNIQUE_ID, read_block, write_block
from proxy.core.proxy_header import LINE_START, Answer, BadHeader, HeaderFault, Tlv
from proxy.core.proxy_line import read_line, write_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.core.address import Address
    from proxy.core.client_hello import Hello

TEXT_VERSION: Final = 1

ESCAPE: Final = "\\"
"""In what a client said that is no text, and so not what it said any more."""


class HeaderStyle(NamedTuple):
    """How the headers are that we send.

    Attributes:
        version: 1 or 2.
        checksum: of version 2, whether they have a CRC-32C.

    """

    version: int
    checksum: bool = False


def read_header(data: bytes) -> Answer:
    """Read a header of either version at the beginning of all that has come so far."""
    if data[:1] == LINE_START[:1]:
        begins = LINE_START.startswith(data[: len(LINE_START)])
        return read_line(data) if begins else BadHeader(HeaderFault.NO_HEADER)
    return read_block(data)


def write_header(
    style: HeaderStyle,
    source: Address,
    destination: Address,
    id: int,
    *,
    datagrams: bool = False,
    hello: Hello | None = None,
) -> bytes:
    """Write the header of a flow.

    Args:
        style: see there.
        source: the client.
        destination: what it connected to.
        id: of the flow; version 2 tells it, as text.
        datagrams: whether the client sends these, and not a stream.
        hello: what the client asked for in TLS, if that is known; version 2 tells it.

    """
    if style.version == TEXT_VERSION:
        return write_line(source, destination)
    tlvs = (*_hello_tlvs(hello), Tlv(UNIQUE_ID, b"%d" % id))
    return write_block(source, destination, datagrams=datagrams, tlvs=tlvs, checksum=style.checksum)


def _hello_tlvs(hello: Hello | None) -> Iterator[Tlv]:
    """The TLVs of what a client asked for in TLS.

    The protocol is that *in use*, of which receivers know one. Among several the endpoint chooses
    after it has read this, so it is told only where the client has no other.
    """
    if hello is None:
        return
    if len(hello.alpn) == 1 and ESCAPE not in hello.alpn[0]:
        yield Tlv(ALPN, hello.alpn[0].encode())
    if hello.server_name and ESCAPE not in hello.server_name:
        yield Tlv(AUTHORITY, hello.server_name.encode())
