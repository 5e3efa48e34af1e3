"""The ClientHello: read however it is cut, and what is none is told as such."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.client_hello import HELLO_MAX, MORE, NO_HELLO, Hello, HelloAnswer, HelloReader
from tests.core.hellos import (
    POST_QUANTUM,
    alpn_extension,
    extension,
    message,
    name_extension,
    real_hello,
    records,
    vector,
)


def read(data: bytes) -> HelloAnswer:
    return HelloReader().feed(data)


@pytest.mark.parametrize("name", ["www.example.org", None])
@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
def test_what_openssl_sends(name: str | None, alpn: tuple[str, ...]) -> None:
    assert read(real_hello(name, alpn)) == Hello(name, alpn)


@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=20),
    st.integers(1, 3000),
    st.sampled_from([b"www.example.org", b"x" * 255]),
)
def test_however_it_is_cut(sizes: list[int], record: int, name: bytes) -> None:
    data = records(message(POST_QUANTUM, name_extension(name), alpn_extension(b"h2")), record)
    if len(data) > HELLO_MAX:
        return
    reader, at = HelloReader(), 0
    for number in range(len(data)):
        size = sizes[number % len(sizes)]
        answer = reader.feed(data[at : at + size])
        at += size
        if at >= len(data):
            break
        assert answer is MORE
    assert answer == Hello(name.decode(), ("h2",))


def test_byte_by_byte_in_records_of_a_byte() -> None:
    reader = HelloReader()
    data = records(message(name_extension(b"a")), 1)
    answers = [reader.feed(bytes([byte])) for byte in data]
    assert answers == [MORE] * (len(data) - 1) + [Hello("a")]


def test_a_large_key_share() -> None:
    data = records(message(POST_QUANTUM, name_extension(b"a.example")))
    assert len(data) > 1300
    assert read(data[:1300]) is MORE
    assert read(data) == Hello("a.example")


def test_what_follows_is_not_looked_at() -> None:
    assert read(records(message(name_extension(b"a"))) + b"anything") == Hello("a")


def test_names_as_they_are_kept() -> None:
    def name(data: bytes) -> str | None:
        answer = read(records(message(name_extension(data))))
        assert isinstance(answer, Hello)
        return answer.server_name

    assert name(b"WWW.Example.ORG.") == "www.example.org"
    assert name(b"a\x1b[2J\xff\n") == "a\\x1b[2j\\xff\\x0a".replace("\\x0a", "\\n")
    assert len(name(b"\xff" * 255) or "") == 255


def test_protocols_as_they_are_kept() -> None:
    def alpn(*protocols: bytes) -> tuple[str, ...]:
        answer = read(records(message(alpn_extension(*protocols))))
        assert isinstance(answer, Hello)
        return answer.alpn

    assert alpn(b"h2", b"\0\xff") == ("h2", "\\x00\\xff")
    assert alpn(b"a" * 250, b"b" * 6) == ("a" * 250,)
    assert alpn(b"a" * 250, b"b" * 5) == ("a" * 250, "b" * 5)


@pytest.mark.parametrize(
    "hello",
    [
        message(with_extensions=False),
        message(),
        message(extension(0xFE0D, b"ech")),
        message(name_extension(b"x", kind=1)),
    ],
)
def test_a_hello_without_a_name(hello: bytes) -> None:
    assert read(records(hello)) == Hello()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-",
        b"\x80\x2e\x01\3\1",  # SSL 2.0
        b"\x16\2",
        b"\x17\3\3\0\1x",
        b"\x16\3\1\0\0",
        b"\x16\3\1\x40\1",
        records(b"\2" + vector(3, bytes(40))),
        b"\x16\3\1\0\4\1\0\x40\1",
        records(message(after=b"x")),
        records(b"\1" + vector(3, b"\3\3")),
        records(message(b"\0\0\0")),
        records(message(name_extension(b"a"), name_extension(b"b"))),
        records(message(name_extension(b""))),
        records(message(name_extension(b"a" * 256))),
        records(message(extension(0, b""))),
        records(message(extension(0, b"\0\0"))),
        records(message(extension(0, b"\0\x09\0\0\1a"))),
        records(message(extension(0, vector(2, b"\0\0\1a") + b"x"))),
        records(message(alpn_extension())),
        records(message(alpn_extension(b""))),
        records(message(name_extension(b"a")), 20)[:25] + b"\x15\3\1\0\2\1\0",
    ],
)
def test_what_is_no_hello(data: bytes) -> None:
    assert read(data) is NO_HELLO


def test_its_bound() -> None:
    padding = extension(21, bytes(HELLO_MAX - 200))
    assert isinstance(read(records(message(padding))), Hello)
    long = records(message(extension(21, bytes(16200))), 100)  # whose records' heads are too much
    assert read(long[: HELLO_MAX - 1]) is MORE
    assert read(long[:HELLO_MAX]) is NO_HELLO
