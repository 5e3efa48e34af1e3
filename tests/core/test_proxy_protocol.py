"""The PROXY protocol: what is written is read, and what is wrong is told by its fault."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.address import Address
from proxy.core.client_hello import ALPN_MAX, NAME_MAX, Hello
from proxy.core.crc32c import crc32c
from proxy.core.proxy_block import (
    ALPN,
    AUTHORITY,
    CRC32C,
    LOCAL_BLOCK,
    NOOP,
    UNIQUE_ID,
    read_block,
    write_block,
)
from proxy.core.proxy_header import (
    HEADER_MAX,
    MORE,
    SIGNATURE,
    BadHeader,
    Header,
    HeaderFault,
    Tlv,
)
from proxy.core.proxy_line import LINE_MAX
from proxy.core.proxy_protocol import HeaderStyle, read_header, write_header
from proxy.core.unix import UnixAddress

V4: Address = ("192.0.2.1", 56324)
TO_V4: Address = ("192.0.2.2", 443)
V6: Address = ("2001:db8::1", 56324, 0, 0)
TO_V6: Address = ("2001:db8::2", 443, 0, 0)

PORTS = st.integers(0, 65535)
V4_ADDRESSES: st.SearchStrategy[Address] = st.tuples(st.ip_addresses(v=4).map(str), PORTS)
V6_ADDRESSES: st.SearchStrategy[Address] = st.tuples(
    st.ip_addresses(v=6).filter(lambda host: host.ipv4_mapped is None).map(str),  # type: ignore[union-attr]
    PORTS,
    st.just(0),
    st.just(0),
)
NAMES: st.SearchStrategy[Address] = st.builds(
    UnixAddress, st.text("/ab\udcff", max_size=108), st.just(0)
)
PAIRS = (
    st.tuples(V4_ADDRESSES, V4_ADDRESSES)
    | st.tuples(V6_ADDRESSES, V6_ADDRESSES)
    | st.tuples(NAMES, NAMES)
)
TLVS = st.lists(
    st.builds(Tlv, st.integers(6, 255), st.binary(max_size=40))
    | st.builds(Tlv, st.just(UNIQUE_ID), st.binary(max_size=128)),
    max_size=4,
).map(tuple)


def block(
    body: bytes = b"", command: int = 0x21, family: int = 0x11, length: int | None = None
) -> bytes:
    """A header of version 2, wrong where the test wants it."""
    size = len(body) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, family, size) + body


ADDRESSES = bytes(12)


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720 appendix B.4, and the check value of the catalogue of such checksums
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_checksums_that_are_published(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


@given(PAIRS, TLVS, st.booleans(), st.booleans(), st.binary(max_size=20))
def test_a_block_is_read_as_it_was_written(
    pair: tuple[Address, Address],
    tlvs: tuple[Tlv, ...],
    datagrams: bool,
    checksum: bool,
    payload: bytes,
) -> None:
    written = write_block(*pair, datagrams=datagrams, tlvs=tlvs, checksum=checksum)
    header = read_header(written + payload)
    assert isinstance(header, Header)
    assert (header.size, header.source, header.destination) == (len(written), *pair)
    assert tuple(tlv for tlv in header.tlvs if tlv.type != CRC32C) == tlvs
    assert len(header.tlvs) == len(tlvs) + checksum


@given(
    st.tuples(V4_ADDRESSES, V4_ADDRESSES) | st.tuples(V6_ADDRESSES, V6_ADDRESSES),
    st.binary(max_size=20),
)
def test_a_line_is_read_as_it_was_written(pair: tuple[Address, Address], payload: bytes) -> None:
    written = write_header(HeaderStyle(1), *pair, 7)
    assert len(written) <= LINE_MAX
    assert read_header(written + payload) == Header(len(written), *pair)


def test_lines_of_the_specification() -> None:
    line = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"
    assert write_header(HeaderStyle(1), V4, TO_V4, 7) == line
    assert write_header(HeaderStyle(1), V6, TO_V6, 7) == (
        b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"
    )
    assert write_header(HeaderStyle(1), V4, TO_V6, 7) == b"PROXY UNKNOWN\r\n"
    assert write_header(HeaderStyle(1), UnixAddress(""), TO_V4, 7) == b"PROXY UNKNOWN\r\n"
    longest = b"PROXY UNKNOWN " + b" ".join(2 * [b":".join(8 * [b"ffff"])]) + b" 65535 65535\r\n"
    assert len(longest) == LINE_MAX
    assert read_header(longest) == Header(LINE_MAX)
    assert read_header(b"PROXY UNKNOWN\r\nGET") == Header(15)


def test_a_block_byte_by_byte() -> None:
    written = write_header(HeaderStyle(2), V4, TO_V4, 17)
    assert written == block(b"\xc0\0\2\1\xc0\0\2\2\xdc\4\1\xbb\5\0\2" + b"17")
    assert write_header(HeaderStyle(2), V4, TO_V4, 17, datagrams=True)[13] == 0x12
    assert read_header(LOCAL_BLOCK) == Header(16)


NAME, PROTOCOL = Tlv(AUTHORITY, b"www.example.org"), Tlv(ALPN, b"h2")


@pytest.mark.parametrize(
    ("hello", "tlvs"),
    [
        (None, []),
        (Hello(), []),
        (Hello("www.example.org"), [NAME]),
        (Hello("www.example.org", ("h2",)), [PROTOCOL, NAME]),
        (Hello(None, ("h2",)), [PROTOCOL]),
        (Hello("www.example.org", ("h2", "http/1.1")), [NAME]),  # nobody has chosen yet
        (Hello("\\xff.example", ("\\x0a",)), []),  # escaped: not what the client said
    ],
)
def test_what_the_client_asked_for_is_told(hello: Hello | None, tlvs: list[Tlv]) -> None:
    for checksum in (False, True):
        written = write_header(HeaderStyle(2, checksum), V4, TO_V4, 17, hello=hello)
        header = read_header(written)
        assert isinstance(header, Header)
        told = [tlv for tlv in header.tlvs if tlv.type != CRC32C]
        assert told == [*tlvs, Tlv(UNIQUE_ID, b"17")]
    line = write_header(HeaderStyle(1), V4, TO_V4, 17, hello=hello)
    assert line == write_header(HeaderStyle(1), V4, TO_V4, 17)


def test_the_longest_names_fit() -> None:
    hello = Hello("n" * NAME_MAX, ("p" * ALPN_MAX,))
    header = read_header(write_header(HeaderStyle(2), V6, TO_V6, 2**64, hello=hello))
    assert isinstance(header, Header)
    assert [len(tlv.value) for tlv in header.tlvs] == [ALPN_MAX, NAME_MAX, 20]


def test_a_client_of_the_other_ip_version_is_mapped() -> None:
    header = read_header(write_header(HeaderStyle(2), V4, TO_V6, 1))
    assert isinstance(header, Header)
    assert (header.source, header.destination) == (V4, TO_V6)  # which reads it as what it is


def test_ipv4_in_ipv6_is_ipv4() -> None:
    line = read_header(b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n")
    assert isinstance(line, Header)
    assert line.source == V4


def test_a_client_without_a_name_in_ip() -> None:
    header = read_header(write_header(HeaderStyle(2), UnixAddress(""), TO_V4, 1))
    assert isinstance(header, Header)
    assert header.source is None
    assert read_header(write_header(HeaderStyle(2), UnixAddress("x" * 109), UnixAddress(""), 1))


def test_what_is_local_or_unspecified_is_not_looked_at() -> None:
    for data in (
        block(b"anything", command=0x20),
        block(b"anything", command=0x20, family=0xFF),
        block(b"anything", family=0),
        block(ADDRESSES, family=0x10),
        block(b"", family=0x01),
    ):
        assert read_header(data + b"payload") == Header(len(data)), data


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"GET / HTTP/1.1\r\n", HeaderFault.NO_HEADER),
        (b"\x16\x03\x01", HeaderFault.NO_HEADER),
        (b"P", None),
        (b"POST", HeaderFault.NO_HEADER),
        (b"PROXYX", HeaderFault.NO_HEADER),
        (b"PROXY\tTCP4", HeaderFault.NO_HEADER),
        (b"PROXY TCP4 " + b"1" * 96, HeaderFault.LINE_TOO_LONG),
        (b"PROXY UNKNOWN " + b"1" * 92 + b"\r\n", HeaderFault.LINE_TOO_LONG),
        (b"PROXY UNKNOWN\n", HeaderFault.LINE_END),
        (b"PROXY UNKNOWN\rx", HeaderFault.LINE_END),
        (b"PROXY UNKNOWN x\r\r\n", HeaderFault.LINE_END),
        (b"PROXY UNKNOWNS\r\n", HeaderFault.PROTOCOL),
        (b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n", HeaderFault.PROTOCOL),
        (b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", HeaderFault.PROTOCOL),
        (b"PROXY \r\n", HeaderFault.PROTOCOL),
        (b"PROXY TCP4\r\n", HeaderFault.LINE_FORM),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", HeaderFault.LINE_FORM),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", HeaderFault.LINE_FORM),
        (b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n", HeaderFault.LINE_FORM),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", HeaderFault.PORT),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n", HeaderFault.PORT),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n", HeaderFault.PORT),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 \xb2\r\n", HeaderFault.PORT),
        (b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n", HeaderFault.ADDRESS),
        (b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", HeaderFault.ADDRESS),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", HeaderFault.ADDRESS),
        (b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", HeaderFault.ADDRESS),
        (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", HeaderFault.ADDRESS),
        (b"\r\n\r\n\0\r\nQUIT\r", HeaderFault.NO_HEADER),
        (block(ADDRESSES, command=0x11), HeaderFault.VERSION),
        (block(ADDRESSES, command=0x31), HeaderFault.VERSION),
        (block(ADDRESSES, command=0x22), HeaderFault.COMMAND),
        (block(ADDRESSES, family=0x41), HeaderFault.FAMILY),
        (block(ADDRESSES, family=0x13), HeaderFault.FAMILY),
        (block(length=HEADER_MAX - 15), HeaderFault.TOO_LONG),
        (block(ADDRESSES[1:]), HeaderFault.TOO_SHORT),
        (block(ADDRESSES, family=0x21), HeaderFault.TOO_SHORT),
        (block(bytes(215), family=0x31), HeaderFault.TOO_SHORT),
        (block(ADDRESSES + b"\4"), HeaderFault.TLV),
        (block(ADDRESSES + b"\4\0"), HeaderFault.TLV),
        (block(ADDRESSES + b"\4\0\1"), HeaderFault.TLV),
        (block(ADDRESSES + b"\3\0\3abc"), HeaderFault.TLV),
        (block(ADDRESSES + 2 * b"\3\0\4abcd"), HeaderFault.TLV),
        (block(ADDRESSES + b"\5\0\x81" + bytes(129)), HeaderFault.TLV),
        (block(ADDRESSES + b"\3\0\4abcd"), HeaderFault.CHECKSUM),
    ],
)
def test_malformed_headers(data: bytes, fault: HeaderFault | None) -> None:
    assert read_header(data) == (MORE if fault is None else BadHeader(fault))


def test_the_longest_block() -> None:
    padding = Tlv(NOOP, bytes(HEADER_MAX - 16 - 12 - 3))
    written = write_block(V4, TO_V4, tlvs=(padding,))
    assert len(written) == HEADER_MAX
    assert read_block(written) == Header(HEADER_MAX, V4, TO_V4, (padding,))


@given(PAIRS, st.integers(0, 400), st.integers(0, 7))
def test_a_block_with_a_bit_that_fell_over_is_not_taken(
    pair: tuple[Address, Address], byte: int, bit: int
) -> None:
    written = bytearray(write_block(*pair, checksum=True))
    at = 16 + byte % (len(written) - 16)
    if len(written) - 7 <= at < len(written) - 4:
        at = len(written) - 1  # without its type or length there is no checksum
    written[at] ^= 1 << bit
    assert read_header(bytes(written)) == BadHeader(HeaderFault.CHECKSUM)


@given(PAIRS, st.sampled_from([1, 2]), st.booleans())
def test_nothing_is_decided_before_it_is_whole(
    pair: tuple[Address, Address], version: int, checksum: bool
) -> None:
    written = write_header(HeaderStyle(version, checksum), *pair, 12)
    for size in range(len(written)):
        assert read_header(written[:size]) is MORE
    assert isinstance(read_header(written), Header)
