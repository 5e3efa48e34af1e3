"""The wire between the supervisor and a worker process: messages, with descriptors beside them.

A Unix stream socket pair. A message is a head of eight bytes (the length of its body and the number
of its descriptors, both big-endian) and its body; descriptors travel with the head (SCM_RIGHTS,
unix(7)), ``FILES_PER_MESSAGE`` of them at most, because the kernel takes no more; ``send`` puts
further ones into messages without a body before it.

Down, to the worker, go pickled values: it trusts the supervisor, which started it. Up, to the
supervisor, goes JSON: a worker reads what strangers send, so what it says is only data.

What can be done at once is done at once, by the system call itself: Trio's own sockets give way at
each call, which costs the supervisor more than what it hears. A message takes one turn of its loop.

Invariant: whoever receives owns the descriptors, and none is leaked when a message is not whole.
"""

from __future__ import annotations

import os
import socket as stdlib
import struct
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from socket import MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET
from typing import Final, NamedTuple, TypeVar

import trio

HEAD: Final = struct.Struct("!II")

FILES_PER_MESSAGE: Final = 253
"""SCM_MAX_FD, include/net/scm.h."""

MORE: Final = 1 << 31
"""In the number of descriptors: the message they belong to comes after."""

LONGEST_BODY: Final = 256 << 20
"""Bytes; a listing of ten million ids is the longest there can be."""

CHUNK: Final = 1 << 18
"""Bytes of a body that are received between two turns of the scheduler."""

Result = TypeVar("Result")


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

    def __init__(self, socket: stdlib.SocketType) -> None:
        socket.setblocking(False)
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
        await trio.lowlevel.checkpoint()
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
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    async def _send(self, body: bytes, files: Sequence[int], *, more: bool = False) -> None:
        head = HEAD.pack(len(body), len(files) | (MORE if more else 0))
        sent = await _done(
            partial(self._socket.sendmsg, [head, body], rights(files)), self._may_send
        )
        view = memoryview(head + body)[sent:] if sent < len(head) + len(body) else b""
        while view:
            view = view[await _done(partial(self._socket.send, view), self._may_send) :]

    async def _receive_head(self, files: list[int]) -> tuple[int, int]:
        head = b""
        room = room_for(FILES_PER_MESSAGE)
        while len(head) < HEAD.size:
            wanted = HEAD.size - len(head)
            data, control, _, _ = await _done(
                partial(self._socket.recvmsg, wanted, room, MSG_CMSG_CLOEXEC), self._may_receive
            )
            files += files_in(control)
            if not data:
                raise WireError("the other end is gone")
            head += data
        length, count = HEAD.unpack(head)
        if length > LONGEST_BODY:
            raise WireError(f"a message of {length} bytes is announced")
        return length, count

    async def _receive_body(self, length: int) -> bytes:
        body = await self._receive_some(length) if length else b""
        if len(body) == length:  # as a rule; then it is not copied
            return body
        gathered = bytearray(body)
        while len(gathered) < length:
            gathered += await self._receive_some(length - len(gathered))
        return bytes(gathered)

    async def _receive_some(self, most: int) -> bytes:
        """Receive what there is of a body, but not so much that others would wait for it."""
        data = await _done(partial(self._socket.recv, min(CHUNK, most)), self._may_receive)
        if not data:
            raise WireError("the other end is gone in the middle of a message")
        if len(data) == CHUNK:
            await trio.lowlevel.checkpoint()
        return data

    async def _may_send(self) -> None:
        await trio.lowlevel.wait_writable(self._socket)

    async def _may_receive(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)


async def _done(call: Callable[[], Result], wait: Callable[[], Awaitable[None]]) -> Result:
    """What a system call returns, as soon as it does not block."""
    while True:
        try:
            return call()
        except BlockingIOError:
            await wait()
        except OSError as error:  # EPIPE, ECONNRESET
            raise WireError("the other end is gone") from error


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
    return Wire(stdlib.socket(fileno=socket.detach()))


def wire_pair() -> tuple[Wire, stdlib.socket]:
    """A wire, and the other end of it, for a process that is to be started."""
    ours, theirs = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_STREAM)
    return Wire(ours), theirs
