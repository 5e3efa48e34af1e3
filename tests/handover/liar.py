"""A relay that lies, to show that the crowd finds it out: each of its lies must be seen.

It forwards TCP streams, or datagrams, of one listener to one endpoint as an honest relay would, but
for one deed at one place of one flow.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from tests.e2e.sockets import reset
from tests.handover.streams import HEADER, SIOCATMARK

HOST: Final = "127.0.0.1"
PIECE: Final = 4096
AT: Final = 300 + HEADER.size
"""The place of the lie in the first flow's original direction, and in its reply's."""

Address: TypeAlias = tuple[str, int]
Streams: TypeAlias = tuple[trio.SocketStream, trio.SocketStream]
Lie: TypeAlias = Callable[[bytes], bytes]
"""Takes the bytes from the place of the lie on, and returns what is passed on in their place."""

LIES: Final[dict[str, Lie]] = {
    "drops a byte": lambda data: data[1:],
    "repeats a byte": lambda data: data[:1] + data,
    "exchanges two bytes": lambda data: data[1::-1] + data[2:],
    "repeats a piece": lambda data: data + data,
    "drops a piece": lambda data: b"",
}


async def pump(
    source: trio.SocketStream, target: trio.SocketStream, lie: Lie | None, *, at: int = AT
) -> None:
    """Pass on what comes, and the end of it; urgent data keep their place if nobody lies."""
    passed = 0
    source.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    try:
        while True:
            if source.socket.fileno() < 0:  # a lie has closed it
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(source.socket)
            urgent = at_mark(source)
            data = await source.receive_some(1 if urgent else PIECE)
            if not data:
                break
            if lie is not None and passed <= at < passed + len(data):
                cut = at - passed
                data, passed = data[:cut] + lie(data[cut:]), at + 1
                lie = None
            passed += len(data)
            if urgent and data:
                target.socket._sock.send(data, socket.MSG_OOB)
            else:
                await target.send_all(data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        await trio.aclose_forcefully(target)


def at_mark(stream: trio.SocketStream) -> bool:
    answer = fcntl.ioctl(stream.socket.fileno(), SIOCATMARK, bytes(4))
    return bool(struct.unpack("i", answer)[0])


async def serve_streams(
    port: int, endpoint: int, relay: Callable[[Streams, bool], Awaitable[None]]
) -> None:
    """Relay each connection; of the first one it is said that it is."""
    first = True

    async def serve(client: trio.SocketStream) -> None:
        nonlocal first
        is_first, first = first, False
        async with client, await trio.open_tcp_stream(HOST, endpoint) as other:
            try:
                await relay((client, other), is_first)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # who finds the lie breaks off

    await trio.serve_tcp(serve, port, host=HOST)


def lying(lie: Lie, direction: str) -> Callable[[Streams, bool], Awaitable[None]]:
    """Change bytes of the first flow, in one direction."""

    async def relay(streams: Streams, is_first: bool) -> None:
        client, endpoint = streams
        original = lie if is_first and direction == "original" else None
        reply = lie if is_first and direction == "reply" else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, client, endpoint, original)
            nursery.start_soon(pump, endpoint, client, reply)

    return relay


async def ends_early(streams: Streams, is_first: bool) -> None:
    """FIN to the client, in the middle."""
    client, endpoint = streams
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, client, endpoint, None)
        data = await endpoint.receive_some()
        await client.send_all(data)
        if is_first:
            await client.send_eof()
        nursery.start_soon(pump, endpoint, client, None)


async def resets(streams: Streams, is_first: bool) -> None:
    """RST to the client, in the middle."""
    client, endpoint = streams
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, client, endpoint, None)
        if is_first:
            await endpoint.receive_some()
            reset(client)
            return
        nursery.start_soon(pump, endpoint, client, None)


async def swallows_the_end(streams: Streams, is_first: bool) -> None:
    """The client's FIN never arrives."""
    client, endpoint = streams
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, endpoint, client, None)
        if is_first:
            async for data in client:
                await endpoint.send_all(data)
        else:
            nursery.start_soon(pump, client, endpoint, None)


async def falls_asleep(streams: Streams, is_first: bool) -> None:
    """Nothing more is passed on after a while."""
    client, endpoint = streams
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, endpoint, client, None)
        if is_first:
            await endpoint.send_all(await client.receive_some())
            await trio.sleep_forever()
        nursery.start_soon(pump, client, endpoint, None)


async def levels_urgent_data(streams: Streams, is_first: bool) -> None:
    """Urgent data become ordinary data."""
    client, endpoint = streams
    client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    await _forgetful(client, endpoint)


async def loses_urgent_data(streams: Streams, is_first: bool) -> None:
    """Urgent data are left behind."""
    await _forgetful(*streams)


async def _forgetful(client: trio.SocketStream, endpoint: trio.SocketStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, endpoint, client, None)
        async for data in client:
            await endpoint.send_all(data)
        await endpoint.send_eof()


STREAM_DEEDS: Final = {
    "ends early": ends_early,
    "resets": resets,
    "swallows the end": swallows_the_end,
    "falls asleep": falls_asleep,
}
URGENT_DEEDS: Final = {
    "levels urgent data": levels_urgent_data,
    "loses urgent data": loses_urgent_data,
}

Datagrams: TypeAlias = Callable[[list[bytes]], list[bytes]]

DATAGRAM_LIES: Final[dict[str, Datagrams]] = {
    "drops one": lambda batch: batch[1:],
    "repeats one": lambda batch: [batch[0], *batch],
    "exchanges two": lambda batch: [batch[1], batch[0], *batch[2:]],
    "changes one": lambda batch: [batch[0][:-1] + bytes([batch[0][-1] ^ 1]), *batch[1:]],
    "cuts one short": lambda batch: [batch[0][:-1], *batch[1:]],
}
BATCH: Final = 2
"""Datagrams to one side that are passed on together, once there are so many of one flow."""


async def serve_datagrams(
    port: int, endpoint: int, lie: Datagrams | None, *, moves: str | None = None
) -> None:
    """Relay datagrams; of the first flow the second pair is passed on as the lie makes it.

    Args:
        port: to listen on.
        endpoint: its port.
        lie: what becomes of a pair of datagrams from the client.
        moves: ``original``: later ones leave from another port; ``reply``: answers come from one.

    """
    async with trio.open_nursery() as nursery:
        relay = _Datagrams(nursery, endpoint, await bound(port), lie, moves)
        try:
            while True:
                await relay.take(*await relay.listening.recvfrom(65535))
        finally:
            relay.close()


class _Datagrams:
    """What a relay of datagrams knows. Owns its sockets."""

    def __init__(
        self,
        nursery: trio.Nursery,
        endpoint: int,
        listening: trio.socket.SocketType,
        lie: Datagrams | None,
        moves: str | None,
    ) -> None:
        self.listening = listening
        self._nursery = nursery
        self._endpoint = endpoint
        self._lie = lie
        self._moves = moves
        self._upstream: dict[Address, trio.socket.SocketType] = {}
        self._opened = [listening]
        self._held: list[bytes] = []
        self._count = 0

    async def take(self, data: bytes, client: Address) -> None:
        is_new = client not in self._upstream
        is_first = client == next(iter(self._upstream), client)
        self._count += is_first
        if is_new or (is_first and self._moves == "original" and self._count == 3):
            await self._open(client, is_first=is_first)
        for each in self._changed(data) if is_first else [data]:
            await self._upstream[client].sendto(each, (HOST, self._endpoint))

    def _changed(self, data: bytes) -> list[bytes]:
        """What is passed on now: the third and the fourth together, if there is a lie."""
        if self._lie is None or self._count < 3:
            return [data]
        self._held.append(data)
        if len(self._held) < BATCH:
            return []
        lie, self._lie = self._lie, None
        return lie(self._held)

    async def _open(self, client: Address, *, is_first: bool) -> None:
        upstream = self._upstream[client] = await bound(0)
        self._opened.append(upstream)
        source = self.listening
        if is_first and self._moves == "reply":
            source = await bound(0)
            self._opened.append(source)
        self._nursery.start_soon(_answer, upstream, source, client)

    def close(self) -> None:
        for each in self._opened:
            each.close()


async def _answer(
    upstream: trio.socket.SocketType, source: trio.socket.SocketType, client: Address
) -> None:
    while True:
        data, _ = await upstream.recvfrom(65535)
        await source.sendto(data, client)


async def bound(port: int) -> trio.socket.SocketType:
    opened = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await opened.bind((HOST, port))
    return opened
