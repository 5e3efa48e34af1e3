"""Probes: what one active check does to one address, and what it concludes.

Each kind is a value that says what to do, and a function that does it within a time and never
fails: whatever happens to it is a result. A probe leaves as flows to its upstream do, by its
sources and marks, so that it proves the way they go. What it reads is bounded, in bytes and time.

Here are the streams and datagrams that are sent and expected; ``probe_http`` and ``probe_command``
have theirs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from re import Pattern
from socket import MSG_DONTWAIT, SO_ERROR, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from proxy.core.flow import Drop
from proxy.core.health import Result, Verdict
from proxy.core.printable import printable
from proxy.core.unix import UnixAddress
from proxy.engine.icmp import ask_for_errors, take_errors
from proxy.engine.outbound import NO_SOURCE, Outbound
from proxy.engine.unix import stream_socket

if TYPE_CHECKING:
    from proxy.core.address import Address

READ_MAX: Final = 16 * 1024
"""Bytes of an answer in which what is expected must be."""

DATAGRAM_MAX: Final = 65535

SHOWN_MAX: Final = 60
"""Characters of an answer in a reason."""

UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EAGAIN})

UNREACHABLE: Final = {
    Drop.REFUSED: "port unreachable",
    Drop.HOST_UNREACHABLE: "host unreachable",
    Drop.NET_UNREACHABLE: "network unreachable",
    Drop.PROHIBITED: "prohibited on the way",
}
"""ICMP errors that prove that nothing arrives; others are about single datagrams."""

Expected: TypeAlias = "bytes | Pattern[bytes] | None"
"""What an answer must hold somewhere; None if there need be none."""


@dataclass(frozen=True, slots=True)
class Sight:
    """An endpoint's address as a probe sees it.

    Attributes:
        address: where to.
        timeout: seconds that a probe may take.
        outbound: how sockets to it are made.
        preface: bytes that a stream to it, or each datagram, begins with: the PROXY header of an
            upstream that sends one, with the command LOCAL, as connections of ours need it.

    """

    address: Address
    timeout: float
    outbound: Outbound = field(default_factory=Outbound, compare=False)
    preface: bytes = b""


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """Connect; if there is something to send, send it; if to expect, wait for it."""

    send: bytes = b""
    expect: Expected = None

    async def run(self, sight: Sight) -> Result:
        """Do it."""
        return await with_stream(sight, self._talk)

    async def _talk(self, socket: Socket) -> Result:
        await send_all(socket, self.send)
        if self.expect is None:
            return passed("connected")
        answer = b""
        while len(answer) < READ_MAX:
            data = await receive(socket, READ_MAX - len(answer))
            if not data:
                return failed(f"closed before the expected answer{_after(answer)}")
            answer += data
            if holds(self.expect, answer):
                return passed("answered as expected")
        return failed(f"answered otherwise than expected{_after(answer)}")


@dataclass(frozen=True, slots=True)
class UdpProbe:
    """Send a datagram; ICMP that says it does not arrive is a failure.

    Silence is one too if an answer is expected, and else proves nothing.
    """

    send: bytes = b""
    expect: Expected = None

    async def run(self, sight: Sight) -> Result:
        """Do it."""
        connect = sight.outbound.way(SOCK_DGRAM)
        try:
            socket, error = connect(sight.address, sight.address)
        except OSError as exc:
            return failed(_text(exc.errno))
        with closing(socket):
            if error:
                return failed(_text(error))
            ask_for_errors(socket)
            with trio.move_on_after(sight.timeout):
                return await self._talk(socket, sight.preface)
            if self.expect is None:
                return Result(Verdict.SILENT, f"no answer within {sight.timeout:g} s")
            return failed(f"no answer as expected within {sight.timeout:g} s")

    async def _talk(self, socket: Socket, preface: bytes) -> Result:
        refused = _refusal(socket, _send_datagram(socket, preface + self.send))
        while refused is None:
            await trio.lowlevel.wait_readable(socket)
            answer = b""
            try:
                answer = socket.recv(DATAGRAM_MAX, MSG_DONTWAIT)
            except BlockingIOError:
                refused = _refusal(socket, 0)
                continue
            except OSError as error:
                refused = _refusal(socket, error.errno or 0)
                continue
            if self.expect is None or holds(self.expect, answer):
                return passed("answered" if self.expect is None else "answered as expected")
        return failed(refused)


async def with_stream(sight: Sight, talk: Callable[[Socket], Awaitable[Result]]) -> Result:
    """Connect, talk, and close, all within a time.

    Args:
        sight: where to.
        talk: what to do with the connected socket.

    """
    connected = False
    with trio.move_on_after(sight.timeout):
        try:
            socket, error = _begin(sight)
        except OSError as exc:
            return failed(_text(exc.errno))
        with closing(socket):
            if error in UNDER_WAY:
                await trio.lowlevel.wait_writable(socket)
                error = socket.getsockopt(SOL_SOCKET, SO_ERROR)
            if error:
                return failed(_text(error))
            connected = True
            try:
                await send_all(socket, sight.preface)
                return await talk(socket)
            except OSError as exc:
                return failed(_text(exc.errno))
    if connected:
        return failed(f"connected, but no answer as expected within {sight.timeout:g} s")
    return failed(f"not connected within {sight.timeout:g} s")


async def send_all(socket: Socket, data: bytes) -> None:
    """Send all of it.

    Raises:
        OSError: the connection is lost.

    """
    left = memoryview(data)
    while left:
        try:
            left = left[socket.send(left) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(socket)


async def receive(socket: Socket, most: int) -> bytes:
    """Wait for some bytes; none at the end.

    Raises:
        OSError: the connection is lost.

    """
    while True:
        await trio.lowlevel.wait_readable(socket)
        try:
            return socket.recv(most)
        except BlockingIOError:
            continue


def passed(reason: str) -> Result:
    """The endpoint is well."""
    return Result(Verdict.PASSED, reason)


def failed(reason: str) -> Result:
    """The endpoint is not well."""
    return Result(Verdict.FAILED, reason)


def holds(expected: bytes | Pattern[bytes], answer: bytes) -> bool:
    """Whether an answer has what is expected."""
    if isinstance(expected, bytes):
        return expected in answer
    return expected.search(answer) is not None


def shown(data: bytes) -> str:
    """The begin of an answer, for people."""
    text = printable(data[:SHOWN_MAX].decode("utf-8", "backslashreplace"))
    return f'"{text[:SHOWN_MAX]}"'


def _begin(sight: Sight) -> tuple[Socket, int]:
    """Begin to connect: the socket, and 0 or the errno."""
    if isinstance(sight.address, UnixAddress):
        socket = stream_socket()
        return socket, socket.connect_ex(sight.address)
    return sight.outbound.way(SOCK_STREAM)(sight.address, sight.address)


def _after(answer: bytes) -> str:
    return f": {shown(answer)}" if answer else ""


def _send_datagram(socket: Socket, data: bytes) -> int:
    try:
        socket.send(data)
    except OSError as error:
        return error.errno or 0
    return 0


def _refusal(socket: Socket, error: int) -> str | None:
    """Why nothing arrives, as far as the kernel knows."""
    for kind in take_errors(socket):
        if kind in UNREACHABLE:
            return UNREACHABLE[kind]
    if error == errno.ECONNREFUSED:
        return UNREACHABLE[Drop.REFUSED]
    return None if error in {0, errno.EAGAIN} else _text(error)


def _text(error: int | None) -> str:
    if error == NO_SOURCE:
        return "no source to leave from"
    return os.strerror(error or 0).lower()
