# Invariant: whatever comes, the answer is a hello, "more" or "no hello", never an exception, and it
# is the same however the bytes are cut. A name and protocols are printable and within their bounds.
# An answer is final: what follows does not change it.

"""Fuzzing the reader of ClientHellos."""

from __future__ import annotations

from random import Random
from typing import Final

from proxy.core.client_hello import ALPN_MAX, MORE, NAME_MAX, Hello, HelloAnswer, HelloReader
from tests.core.hellos import (
    POST_QUANTUM,
    alpn_extension,
    message,
    name_extension,
    real_hello,
    records,
)
from tests.fuzz.mutate import run

SAMPLES: Final = [
    real_hello("www.example.org", ["h2", "http/1.1"]),
    real_hello(),
    records(message(POST_QUANTUM, name_extension(b"a.example."))),
    records(message(name_extension(b"a.example"), alpn_extension(b"h2")), 7),
    records(message(with_extensions=False)),
]


def check(data: bytes) -> None:
    answer = HelloReader().feed(data)
    assert in_pieces(data) == answer
    if answer is not MORE:
        assert HelloReader().feed(data + b"\x16\3\1") == answer
    if isinstance(answer, Hello):
        assert all(text.isprintable() and text for text in answer.alpn)
        assert sum(map(len, answer.alpn)) <= ALPN_MAX
        assert answer.server_name is None or answer.server_name.isprintable()
        assert len(answer.server_name or "") <= NAME_MAX


def in_pieces(data: bytes) -> HelloAnswer:
    random, reader, at = Random(len(data)), HelloReader(), 0
    while at < len(data):
        size = random.randint(1, 40)
        answer = reader.feed(data[at : at + size])
        if answer is not MORE:
            return answer
        at += size
    return MORE


def test_client_hello() -> None:
    run(check, SAMPLES)
