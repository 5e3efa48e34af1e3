"""Urgent data arrives as urgent data, at the same place in the stream (RFC 6093)."""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Awaitable, Callable
from socket import MSG_OOB, SHUT_WR, SO_OOBINLINE, SO_RCVBUF, SOL_SOCKET

import pytest
import trio
from trio.socket import SocketType

from proxy.engine.tcp import SIOCATMARK
from tests.engine.lab import Lab, listening, pair, receive_all, receive_exactly, relaying, send_all

Ends = Callable[[Lab, SocketType], Awaitable[tuple[SocketType, SocketType]]]


async def original(lab: Lab, endpoint: SocketType) -> tuple[SocketType, SocketType]:
    return await pair(lab, endpoint)


async def reply(lab: Lab, endpoint: SocketType) -> tuple[SocketType, SocketType]:
    client, accepted = await pair(lab, endpoint)
    return accepted, client


both_directions = pytest.mark.parametrize("ends", [original, reply])


async def send_urgent(socket: SocketType, byte: bytes) -> None:
    while True:
        try:
            assert socket._sock.send(byte, MSG_OOB) == 1
        except BlockingIOError:
            await trio.lowlevel.wait_writable(socket)
        else:
            return


def at_mark(socket: SocketType) -> bool:
    (answer,) = struct.unpack("i", fcntl.ioctl(socket.fileno(), SIOCATMARK, bytes(4)))
    return bool(answer)


async def receive_with_marks(socket: SocketType) -> tuple[bytes, list[int]]:
    """Everything up to FIN with urgent bytes in line, and the places where they stood."""
    data, marks = b"", []
    while True:
        await trio.lowlevel.wait_readable(socket)
        if at_mark(socket) and (not marks or marks[-1] != len(data)):
            marks.append(len(data))
        part = socket._sock.recv(1 << 16)
        if not part:
            return data, marks
        data += part


@both_directions
async def test_an_urgent_byte_alone(ends: Ends) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        sender, receiver = await ends(lab, endpoint)
        await send_urgent(sender, b"!")
        while True:
            try:
                byte = receiver._sock.recv(1, MSG_OOB)
            except (BlockingIOError, OSError):
                await trio.sleep(0.002)
            else:
                break
        assert byte == b"!"
        await send_all(sender, b"after")
        assert await receive_exactly(receiver, 5) == b"after"


@both_directions
async def test_it_keeps_its_place_between_data(ends: Ends) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        sender, receiver = await in_line(ends, lab, endpoint)
        await send_all(sender, b"before")
        await send_urgent(sender, b"!")
        await send_all(sender, b"after")
        sender.shutdown(SHUT_WR)
        data, marks = await receive_with_marks(receiver)
        assert data == b"before!after"
        assert marks == [6]


@both_directions
@pytest.mark.parametrize("size", [16 << 10, 32 << 10, 100_000, 1 << 20])
async def test_it_keeps_its_place_in_a_busy_stream(ends: Ends, size: int) -> None:
    """Sizes at which the mark falls on the end of a whole receive, and elsewhere."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        sender, receiver = await in_line(ends, lab, endpoint)
        received: list[tuple[bytes, list[int]]] = []

        async def receive() -> None:
            received.append(await receive_with_marks(receiver))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await send_all(sender, b"a" * size)
            await send_urgent(sender, b"!")
            await send_all(sender, b"b" * size)
            sender.shutdown(SHUT_WR)
        ((data, marks),) = received
        assert data == b"a" * size + b"!" + b"b" * size
        assert marks == [size]


async def test_urgent_data_waits_behind_a_slow_reader() -> None:
    endpoint = listening()
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
    async with relaying([endpoint.getsockname()]) as lab:
        sender, receiver = await pair(lab, endpoint)
        receiver.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)

        async def send() -> None:
            await send_all(sender, b"a" * (8 << 20))
            await send_urgent(sender, b"!")
            await send_all(sender, b"b" * 1000)
            sender.shutdown(SHUT_WR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await lab.wait_counter(lambda c: c["listeners"][0]["original"]["buffered"], 1)
            data, marks = await receive_with_marks(receiver)
        assert data == b"a" * (8 << 20) + b"!" + b"b" * 1000
        assert marks == [8 << 20]


@both_directions
async def test_many_urgent_bytes_lose_no_data(ends: Ends) -> None:
    """A later mark takes the earlier one's place; what the receiver reads must still be whole."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        sender, receiver = await in_line(ends, lab, endpoint)
        for number in range(20):
            await send_all(sender, b"%02d" % number)
            await send_urgent(sender, b"!")
            await trio.sleep(0.005)
        sender.shutdown(SHUT_WR)
        assert await receive_all(receiver) == b"".join(b"%02d!" % n for n in range(20))


@both_directions
async def test_urgent_bytes_in_quick_succession_are_all_there(ends: Ends) -> None:
    """The first of them is next to be read when the second is announced."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        for _ in range(100):
            sender, receiver = await in_line(ends, lab, endpoint)
            await send_all(sender, b"abc")
            assert await receive_exactly(receiver, 3) == b"abc"
            burst(sender, b"01234")
            await send_all(sender, b"z")
            sender.shutdown(SHUT_WR)
            assert await receive_all(receiver) == b"01234z"
            receiver.close()
            sender.close()
        assert await moved(lab, 100, ends) == [(9, 0)] * 100


@both_directions
async def test_urgent_bytes_between_bulk_are_all_there(ends: Ends) -> None:
    """Bulk goes through a pipe, which can carry none."""
    endpoint = listening()
    part = b"b" * (2 << 20)
    async with relaying([endpoint.getsockname()]) as lab:
        sender, receiver = await in_line(ends, lab, endpoint)
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, sender, part)
                assert await receive_exactly(receiver, len(part)) == part
            burst(sender, b"01234")
            await send_all(sender, b"z")
            assert await receive_exactly(receiver, 6) == b"01234z"
        receiver.close()
        sender.close()
        assert await moved(lab, 1, ends) == [(10 * (len(part) + 6), 0)]


@both_directions
async def test_urgent_bytes_within_bulk_are_all_there(ends: Ends) -> None:
    endpoint = listening()
    part = b"b" * (1 << 20)
    data = (part + b"01234") * 20 + part
    async with relaying([endpoint.getsockname()]) as lab:
        sender, receiver = await in_line(ends, lab, endpoint)

        async def send() -> None:
            for _ in range(20):
                await send_all(sender, part)
                for digit in range(5):
                    await send_urgent(sender, b"%d" % digit)
            await send_all(sender, part)
            sender.shutdown(SHUT_WR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await receive_all(receiver) == data
        receiver.close()
        sender.close()
        assert await moved(lab, 1, ends) == [(len(data), 0)]


@both_directions
async def test_the_last_of_many_urgent_bytes_keeps_its_mark(ends: Ends) -> None:
    """The kernel knows one mark only, so those before it may be ordinary bytes on arrival."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        for _ in range(100):
            sender, receiver = await in_line(ends, lab, endpoint)
            burst(sender, b"01234")
            await send_all(sender, b"z")
            sender.shutdown(SHUT_WR)
            data, marks = await receive_with_marks(receiver)
            assert data == b"01234z"
            assert marks[-1] == 4
            receiver.close()
            sender.close()


async def in_line(ends: Ends, lab: Lab, endpoint: SocketType) -> tuple[SocketType, SocketType]:
    """Both ends of a direction; the receiver reads urgent bytes with the others."""
    sender, receiver = await ends(lab, endpoint)
    receiver.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
    return sender, receiver


def burst(socket: SocketType, data: bytes) -> None:
    """Send each byte as urgent data; the worker has no turn meanwhile."""
    for byte in data:
        assert socket._sock.send(bytes([byte]), MSG_OOB) == 1


async def moved(lab: Lab, count: int, ends: Ends) -> list[tuple[int, int]]:
    """What the flows have moved that have ended: where bytes were sent, and the other way."""
    ways = ("original", "reply") if ends is original else ("reply", "original")
    return [(row[ways[0]]["bytes"], row[ways[1]]["bytes"]) for row in await lab.wait_ended(count)]
