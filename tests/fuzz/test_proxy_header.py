# Invariant: whatever comes, the answer is a header, a fault or "more", never an exception. A header
# lies within its bound and within what came; its addresses can be written, and are then read as the
# same. The answer is final: no byte that follows changes it, and no fewer bytes gave another that
# was final.

"""Fuzzing the readers of PROXY headers."""

from __future__ import annotations

from typing import Final

from proxy.core.client_hello import Hello
from proxy.core.proxy_block import LOCAL_BLOCK, write_block
from proxy.core.proxy_header import HEADER_MAX, MORE, Header, Tlv
from proxy.core.proxy_protocol import HeaderStyle, read_header, write_header
from proxy.core.unix import UnixAddress
from tests.fuzz.mutate import run

V4: Final = ("192.0.2.1", 56324)
V6: Final = ("2001:db8::1", 443, 0, 0)
NAME: Final = UnixAddress("/run/x.sock")

SAMPLES: Final = [
    write_header(HeaderStyle(1), V4, V4, 1),
    write_header(HeaderStyle(1), V6, V6, 1),
    b"PROXY UNKNOWN ffff:: ::1 1 2\r\nGET / HTTP/1.1\r\n",
    b"PROXY TCP6 ::ffff:1.2.3.4 ::1 1 2\r\n",
    write_header(HeaderStyle(2, checksum=True), V4, V4, 1),
    write_header(HeaderStyle(2, checksum=True), V6, V6, 2**60) + b"payload",
    write_header(HeaderStyle(2, checksum=True), V4, V4, 1, hello=Hello("a.example", ("h2",))),
    write_block(NAME, NAME),
    write_block(V4, V6, tlvs=(Tlv(1, b"h2"), Tlv(2, b"a.example"), Tlv(4, bytes(9)))),
    write_block(NAME, V6),
    LOCAL_BLOCK,
]


def check(data: bytes) -> None:
    answer = read_header(data)
    assert read_header(data + b"\r\n\0more") == answer or answer is MORE
    final = [each for size in range(len(data)) if (each := read_header(data[:size])) is not MORE]
    assert not final or set(final) == {answer}
    if not isinstance(answer, Header):
        return
    assert 0 < answer.size <= min(len(data), HEADER_MAX)
    assert (answer.source is None) == (answer.destination is None)
    if answer.source is not None and answer.destination is not None:
        again = read_header(write_block(answer.source, answer.destination, tlvs=answer.tlvs[:0]))
        assert isinstance(again, Header)
        assert (again.source, again.destination) == (answer.source, answer.destination)


def test_proxy_header() -> None:
    run(check, SAMPLES)
