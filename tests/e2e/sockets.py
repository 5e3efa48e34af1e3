"""Small clients and endpoints inside the test, well-behaved and hostile ones.

Each TCP endpoint is a function ``async (stream) -> None``; each of these is a few lines, so that a
test can be read without looking further.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import pytest
import trio

from tests.e2e.patience import PATIENCE
from tests.e2e.program import free_port

Serve: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]
Address: TypeAlias = tuple[str, int]


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def text_of(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def connect(address: Address, receive_buffer: int | None = None) -> trio.SocketStream:
    """Connect to sockpair."""
    connecting = trio.socket.socket(family_of(address[0]), socket.SOCK_STREAM)
    if receive_buffer is not None:
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        with trio.fail_after(PATIENCE):
            await connecting.connect(address)
    except BaseException:
        connecting.close()
        raise
    return trio.SocketStream(connecting)


async def listen(nursery: trio.Nursery, serve: Serve, host: str = "127.0.0.1") -> str:
    """Serve each connection with a function, until the nursery ends; ``host:port``."""
    listening = trio.socket.socket(family_of(host), socket.SOCK_STREAM)
    await listening.bind((host, free_port()))
    listening.listen(128)
    nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
    return text_of(listening.getsockname())


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, and end when the other side has."""
    async with stream:
        try:
            async for chunk in stream:
                await stream.send_all(chunk)
        except trio.BrokenResourceError:
            return  # it was reset, as some tests want it


async def listen_datagrams(nursery: trio.Nursery, host: str = "127.0.0.1") -> str:
    """Echo each datagram, until the nursery ends; ``host:port``."""
    bound = trio.socket.socket(family_of(host), socket.SOCK_DGRAM)
    await bound.bind((host, free_port()))
    nursery.start_soon(_echo_datagrams, bound)
    return text_of(bound.getsockname())


async def _echo_datagrams(bound: trio.socket.SocketType) -> None:
    with bound:
        while True:
            data, sender = await bound.recvfrom(65535)
            await bound.sendto(data, sender)


@asynccontextmanager
async def datagram_client(address: Address) -> AsyncIterator[trio.socket.SocketType]:
    """A UDP socket that speaks to sockpair only."""
    with trio.socket.socket(family_of(address[0]), socket.SOCK_DGRAM) as client:
        await client.connect(address)
        yield client


async def exchange(client: trio.socket.SocketType, data: bytes) -> bytes:
    """Send a datagram and wait for the answer."""
    await client.send(data)
    with trio.fail_after(PATIENCE):
        return await client.recv(65536)


async def receive_exactly(stream: trio.SocketStream, size: int) -> bytes:
    """Wait for so many bytes."""
    received = b""
    with trio.fail_after(PATIENCE):
        while len(received) < size:
            chunk = await stream.receive_some(size - len(received))
            assert chunk, f"the stream ended after {len(received)} of {size} bytes"
            received += chunk
    return received


async def receive_all(stream: trio.SocketStream) -> bytes:
    """Wait for the end of the stream, and return what came before it."""
    with trio.fail_after(PATIENCE):
        return b"".join([chunk async for chunk in stream])


async def say(stream: trio.SocketStream, data: bytes) -> None:
    """Send, and receive the same back."""
    await stream.send_all(data)
    assert await receive_exactly(stream, len(data)) == data


def reset(stream: trio.SocketStream) -> None:
    """Close with RST (socket(7), SO_LINGER for no time)."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def expect_reset(stream: trio.SocketStream) -> None:
    """Wait for RST; anything else, an ordinary end too, is a failure."""
    with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError) as caught:
        await _receive_until_end(stream)
    assert isinstance(caught.value.__cause__, ConnectionResetError), caught.value.__cause__


async def expect_refusal(address: Address) -> None:
    """Connect, and be reset; which may come so quickly that connecting fails with it."""
    try:
        client = await connect(address)
    except ConnectionResetError:
        return
    async with client:
        await expect_reset(client)


async def _receive_until_end(stream: trio.SocketStream) -> None:
    async for _ in stream:
        pass


async def unanswered_endpoint(nursery: trio.Nursery) -> str:
    """An endpoint that never answers a SYN: it listens, and its queue is full.

    With a backlog of 0 one connection fits into the queue (listen(2)); Linux drops a further SYN.
    """
    listening = socket.socket()
    listening.bind(("127.0.0.1", free_port()))
    listening.listen(0)
    filling = socket.socket()
    filling.connect(listening.getsockname())
    nursery.start_soon(_hold, [listening, filling])
    return text_of(listening.getsockname())


async def _hold(sockets: list[socket.socket]) -> None:
    try:
        await trio.sleep_forever()
    finally:
        for held in sockets:
            held.close()
