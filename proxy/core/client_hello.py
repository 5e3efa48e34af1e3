"""What a TLS client says first: the name of the server it wants, and the protocols it can speak.

Strategy: bytes are fed as they come, however they are cut, into segments or into TLS records. The
records' contents are joined until the ClientHello is whole; then it is read once. Nothing is
decrypted, changed or ended: a ClientHello is in the clear. What is no ClientHello, or a malformed
one, is told as ``NO_HELLO`` as soon as that is certain; it is for the endpoint to complain of it.

Invariant: no more than ``HELLO_MAX`` bytes are held, the answer does not depend on how the bytes
were cut, and no byte is read twice but the head of a record that has not come as a whole.

Units: bytes. Source: RFC 8446 (TLS 1.3) sections 4.1.2, 4.2 and 5.1; RFC 6066 section 3
(server_name); RFC 7301 section 3.1 (application_layer_protocol_negotiation).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from proxy.core.printable import printable

HELLO_MAX: Final = 16 * 1024
"""Bytes, the heads of records included. One with the largest key share in use has some 1,800; a
record of the largest size is no more than this."""

NAME_MAX: Final = 255
"""Characters of a name as it is kept; DNS has 253, and its final dot."""

ALPN_MAX: Final = 255
"""Characters of all protocols together as they are kept: a flow has them as long as it lives."""

RECORD_HEAD: Final = 5
RECORD_MAX: Final = 2**14
HANDSHAKE: Final = 22  # the type of a record
MAJOR_VERSION: Final = 3  # of SSL 3.0 and all of TLS

MESSAGE_HEAD: Final = 4
CLIENT_HELLO: Final = 1  # the type of a handshake message

VERSION_AND_RANDOM: Final = 2 + 32
SERVER_NAME: Final = 0  # the type of an extension, and of the one kind of name there is
ALPN: Final = 16


class Hello(NamedTuple):
    """What a client has said.

    Attributes:
        server_name: in small letters, without a final dot, escaped to print; None without one.
        alpn: what it can speak, the best first, escaped likewise, as far as there is room; empty
            if it does not say.

    """

    server_name: str | None = None
    alpn: tuple[str, ...] = ()


class HelloState(Enum):
    """There is no answer yet, or never will be."""

    MORE = "more"
    NO_HELLO = "no_hello"


MORE: Final = HelloState.MORE
NO_HELLO: Final = HelloState.NO_HELLO

HelloAnswer: TypeAlias = Hello | HelloState


class HelloReader:
    """Reads one ClientHello; once it has answered, it is done."""

    __slots__ = ("_head", "_left", "_message", "_read")

    def __init__(self) -> None:
        self._head = b""  # of a record, as far as it has come
        self._left = 0  # of the record's content
        self._message = bytearray()
        self._read = 0

    def feed(self, data: bytes) -> HelloAnswer:
        """Read on."""
        at = 0
        while at < len(data):
            if not self._left:
                head = self._head + data[at : at + RECORD_HEAD - len(self._head)]
                at += len(head) - len(self._head)
                self._head = head
                if not _begins_record(head):
                    return NO_HELLO
                if len(head) < RECORD_HEAD:
                    break
                self._left = int.from_bytes(head[3:], "big")
                self._head = b""
                continue
            part = data[at : at + self._left]
            self._message += part
            self._left -= len(part)
            at += len(part)
            answer = self._look()
            if answer is not MORE:
                return answer
        self._read += len(data)
        return NO_HELLO if self._read >= HELLO_MAX else MORE

    def _look(self) -> HelloAnswer:
        """Read the message, if it is whole."""
        message = self._message
        if message[0] != CLIENT_HELLO:
            return NO_HELLO
        if len(message) < MESSAGE_HEAD:
            return MORE
        size = MESSAGE_HEAD + int.from_bytes(message[1:MESSAGE_HEAD], "big")
        if size > HELLO_MAX:
            return NO_HELLO
        if len(message) < size:
            return MORE
        try:
            return _read_hello(_Fields(bytes(message[MESSAGE_HEAD:size])))
        except _MalformedError:
            return NO_HELLO


def _begins_record(head: bytes) -> bool:
    """Whether a record of a handshake may begin so; an empty one may not."""
    if head[0] != HANDSHAKE or head[1:2] not in {b"", bytes([MAJOR_VERSION])}:
        return False
    return len(head) < RECORD_HEAD or 0 < int.from_bytes(head[3:], "big") <= RECORD_MAX


class _MalformedError(Exception):
    """A length goes beyond its field, or leaves something over."""


class _Fields:
    """The fields of a structure, one after the other."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next so many bytes."""
        data = self._data[self._at : self._at + size]
        if len(data) < size:
            raise _MalformedError
        self._at += size
        return data

    def number(self, size: int) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """What stands behind a length of so many bytes."""
        return self.take(self.number(size))


def _read_hello(fields: _Fields) -> Hello:
    fields.take(VERSION_AND_RANDOM)
    fields.vector(1)  # session
    fields.vector(2)  # cipher suites
    fields.vector(1)  # compression methods
    if not fields:  # extensions came with TLS 1.0 only
        return Hello()
    extensions = _Fields(fields.vector(2))
    if fields:
        raise _MalformedError
    found: dict[int, bytes] = {}
    while extensions:
        kind = extensions.number(2)
        if found.setdefault(kind, value := extensions.vector(2)) is not value:
            raise _MalformedError  # there may be one of each
    name, alpn = found.get(SERVER_NAME), found.get(ALPN)
    return Hello(
        None if name is None else _read_names(name), () if alpn is None else _read_alpn(alpn)
    )


def _read_names(extension: bytes) -> str | None:
    names = _only_list(extension)
    while names:
        kind, name = names.number(1), names.vector(2)
        if kind == SERVER_NAME:
            return _plain_name(name)
    return None


def _read_alpn(extension: bytes) -> tuple[str, ...]:
    protocols = _only_list(extension)
    found: list[str] = []
    room = ALPN_MAX
    while protocols:
        protocol = protocols.vector(1)
        if not protocol:
            raise _MalformedError
        text = _text(protocol)
        room -= len(text)
        if room >= 0:
            found.append(text)
    return tuple(found)


def _only_list(extension: bytes) -> _Fields:
    """The list that is all there is in an extension."""
    fields = _Fields(extension)
    items = _Fields(fields.vector(2))
    if fields or not items:
        raise _MalformedError
    return items


def _plain_name(name: bytes) -> str:
    if not name or len(name) > NAME_MAX:
        raise _MalformedError
    return _text(name.lower().removesuffix(b"."))[:NAME_MAX]


def _text(data: bytes) -> str:
    return printable(data.decode("ascii", "backslashreplace"))
