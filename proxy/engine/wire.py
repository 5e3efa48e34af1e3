"""The wire between the supervisor and a worker process: messages, with descriptors beside them.

A Unix stream socket pair. A message is a head of eight bytes (the length of its body and the number
of its descriptors, both big-endian) and its body; descriptors travel with the head (SCM_RIGHTS,
unix(7)), ``FILES_PER_MESSAGE`` of them at most, because the kernel takes no more; ``send`` puts
further ones into messages without a body before it.

Down, to the worker, go pickled values: it trusts the supervisor, which started it. Up, to the
supervisor, goes JSON: a worker reads what strangers send, so what it says is only data.

Invariant: whoever receives owns the descriptors, and none is leaked when a message is not whole.
"""

from __future__ import annotations

import os
import socket as stdlib
import struct
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from socket import MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

if TYPE_CHECKING:
    from trio.socket import SocketType

HEAD: Final = struct.Struct("!II")

FILES_PER_MESSAGE: Final = 253
"""SCM_MAX_FD, include/net/scm.h."""

MORE: Final = 1 << 31
"""In the number of descriptors: the message they belong to comes after."""

LONGEST_BODY: Final = 256 << 20
"""Bytes; a listing of ten million ids is the longest there can be."""

CHUNK: Final = 1 << 16


class WireError(Exception):
    """The other end is gone, or does not keep to the form."""


class Message(NamedTuple):
    """A body, and the descriptors that came with it, which are the receiver's."""

    body: bytes
    files: tuple[int, ...] = ()


class Wire:
    """One end of a wire. Owns its socket.

    Args:
        socket: a connected Unix stream socket.

    """

    def __init__(self, socket: SocketType) -> None:
        self._socket = socket
        self._sending = trio.Lock()

    async def send(self, body: bytes, files: Sequence[int] = (), *, whole: bool = True) -> None:
        """Send a message; the descriptors stay the sender's.

        A send that was begun is finished, because half a message would end the conversation; it is
        bounded by the other end reading, or dying. Unless it need not be ``whole``: then it can be
        cancelled, and whoever does so closes the wire.

        Raises:
            WireError: the other end is gone.

        """
        assert len(body) <= LONGEST_BODY, len(body)
        async with self._sending:
            with trio.CancelScope(shield=whole):
                rest = list(files)
                while len(rest) > FILES_PER_MESSAGE:
                    await self._send(b"", rest[:FILES_PER_MESSAGE], more=True)
                    rest = rest[FILES_PER_MESSAGE:]
                await self._send(body, rest)

    async def receive(self) -> Message:
        """Receive the next message.

        Raises:
            WireError: there is none, and will be none.

        """
        files: list[int] = []
        expected = 0
        try:
            while True:
                length, count = await self._receive_head(files)
                expected += count & ~MORE
                if expected != len(files):
                    raise WireError(f"{expected} descriptors are announced, {len(files)} came")
                if count & MORE:
                    continue
                return Message(await self._receive_body(length), tuple(files))
        except BaseException:
            for fd in files:
                os.close(fd)
            raise

    def hang_up(self) -> None:
        """Receive what has come, and then no more: whoever has the other end will not send."""
        with suppress(OSError):
            self._socket.shutdown(stdlib.SHUT_RD)

    def close(self) -> None:
        """Close the socket; the other end sees that."""
        self._socket.close()

    async def _send(self, body: bytes, files: Sequence[int], *, more: bool = False) -> None:
        head = HEAD.pack(len(body), len(files) | (MORE if more else 0))
        view = memoryview(head + body)
        try:
            sent = await self._socket.sendmsg([view], rights(files))
            while sent < len(view):
                view = view[sent:]
                sent = await self._socket.send(view)
        except OSError as error:  # EPIPE, ECONNRESET
            raise WireError("the other end is gone") from error

    async def _receive_head(self, files: list[int]) -> tuple[int, int]:
        head = b""
        room = room_for(FILES_PER_MESSAGE)
        while len(head) < HEAD.size:
            try:
                data, control, _, _ = await self._socket.recvmsg(
                    HEAD.size - len(head), room, MSG_CMSG_CLOEXEC
                )
            except OSError as error:
                raise WireError("the other end is gone") from error
            files += files_in(control)
            if not data:
                raise WireError("the other end is gone")
            head += data
        length, count = HEAD.unpack(head)
        if length > LONGEST_BODY:
            raise WireError(f"a message of {length} bytes is announced")
        return length, count

    async def _receive_body(self, length: int) -> bytes:
        body = bytearray()
        while len(body) < length:
            try:
                data = await self._socket.recv(min(CHUNK, length - len(body)))
            except OSError as error:
                raise WireError("the other end is gone") from error
            if not data:
                raise WireError("the other end is gone in the middle of a message")
            body += data
        return bytes(body)


def rights(files: Sequence[int]) -> list[tuple[int, int, array[int]]]:
    """Descriptors, as sendmsg(2) sends them beside a message; unix(7)."""
    return [(SOL_SOCKET, SCM_RIGHTS, array("i", files))] if files else []


def room_for(files: int) -> int:
    """Bytes that recvmsg(2) needs for so many descriptors."""
    return stdlib.CMSG_SPACE(files * array("i").itemsize)


def files_in(control: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Descriptors that came beside a message: the receiver's, also where it was cut short."""
    files = array("i")
    for level, kind, value in control:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            files.frombytes(value[: len(value) - len(value) % files.itemsize])
    return files.tolist()


def wire_on(socket: stdlib.SocketType) -> Wire:
    """A wire on a connected Unix stream socket, whose descriptor it takes."""
    ours = stdlib.socket(fileno=socket.detach())
    ours.setblocking(False)
    return Wire(trio.socket.from_stdlib_socket(ours))


def wire_pair() -> tuple[Wire, stdlib.socket]:
    """A wire, and the other end of it, for a process that is to be started."""
    ours, theirs = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_STREAM)
    return wire_on(ours), theirs
