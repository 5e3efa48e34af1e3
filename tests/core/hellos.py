"""ClientHellos: real ones from OpenSSL, and ones that are built as a test wants them."""

from __future__ import annotations

import ssl
from collections.abc import Sequence


def real_hello(name: str | None = None, alpn: Sequence[str] = ()) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("there is nobody to shake hands with")


def vector(size: int, data: bytes) -> bytes:
    """Data behind its length."""
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def name_extension(name: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, bytes([kind]) + vector(2, name)))


def alpn_extension(*protocols: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, each) for each in protocols)))


def message(*extensions: bytes, after: bytes = b"", with_extensions: bool = True) -> bytes:
    """A ClientHello as a handshake message."""
    body = b"\3\3" + bytes(32) + vector(1, bytes(32)) + vector(2, b"\x13\x01") + vector(1, b"\0")
    if with_extensions:
        body += vector(2, b"".join(extensions))
    return b"\1" + vector(3, body + after)


def records(data: bytes, size: int = 2**14) -> bytes:
    """A handshake message in records of this size."""
    parts = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(b"\x16\3\1" + vector(2, part) for part in parts)


KEY_SHARE = 51
X25519MLKEM768 = 0x11EC
POST_QUANTUM = extension(
    KEY_SHARE, vector(2, X25519MLKEM768.to_bytes(2, "big") + vector(2, bytes(1184 + 32)))
)
"""The key share of a browser of today: 1216 bytes (draft-ietf-tls-ecdhe-mlkem)."""
