"""The last bytes of a direction and its end leave in one packet, and nothing waits for another."""

from __future__ import annotations

from socket import IPPROTO_TCP, MSG_MORE, TCP_INFO
from struct import unpack_from

import pytest
import trio
from trio.socket import SHUT_WR, SocketType

from tests.engine.lab import listening, pair, receive_all, relaying, send_all

UNACKED = 24
SEGMENTS = 140
"""Of struct tcp_info (linux/tcp.h): packets on the way, and packets that have come."""

SIZE = 192


def told(socket: SocketType, offset: int) -> int:
    """A number that the kernel knows of a connection."""
    (number,) = unpack_from("=I", socket.getsockopt(IPPROTO_TCP, TCP_INFO, SIZE), offset)
    assert isinstance(number, int)
    return number


async def end_with(socket: SocketType, data: bytes) -> None:
    """Send bytes and the end, which arrive together."""
    await socket.send(data, MSG_MORE)
    socket.shutdown(SHUT_WR)


@pytest.mark.parametrize("first", ["client", "endpoint"])
async def test_the_last_bytes_and_the_end_are_one_packet(first: str) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        one, other = (await pair(lab, endpoint))[:: 1 if first == "client" else -1]
        await send_all(other, b"before")
        assert await one.recv(99) == b"before"
        while told(other, UNACKED):  # the packet that says so is none of those that are counted
            await trio.sleep(0.002)
        before = told(other, SEGMENTS)

        await end_with(one, b"last")

        assert await receive_all(other) == b"last"
        assert told(other, SEGMENTS) == before + 1
        assert (await lab.wait_live(f"{first}_closed"))["half_closed"] is not None


async def test_who_ends_last_ends_at_once() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, server = await pair(lab, endpoint)
        await end_with(client, b"question")
        assert await receive_all(server) == b"question"
        await end_with(server, b"answer")
        assert await receive_all(client) == b"answer"
        (row,) = await lab.wait_ended()
        assert (row["close_reason"], row["unsent"]) == ("finished", {"original": 0, "reply": 0})


async def test_what_is_not_taken_at_once_ends_as_well() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, server = await pair(lab, endpoint)
        sent = 0
        with trio.move_on_after(0.2):
            while True:
                sent += await server.send(bytes(1 << 16))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_with, server, b"last")
            received = await receive_all(client)
        assert received == bytes(sent) + b"last"
