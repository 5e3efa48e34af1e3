"""The endpoints of a soak, in a process of their own, which may be killed.

    python -m tests.soak.endpoint NAME:KIND:WHERE...

WHERE is a port on loopback, or a path for a Unix stream. On SIGTERM the books are printed as a
JSON object: of each NAME how many streams came, and the bytes received and sent. KIND is one of

* ``echo``: send back what comes;
* ``digest``: read to the end, then send the SHA-256 of it in hexadecimal;
* ``source``: read a number of eight digits, and send so many bytes of ``pattern``;
* ``reset``: echo, and reset when a chunk is ``RESET`` alone;
* ``answer``, ``silence``: datagrams, echoed or only counted.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from typing import Final

import trio

from tests.e2e.sockets import receive_exactly, reset

HOST: Final = "127.0.0.1"
COUNT_DIGITS: Final = 8
PATTERN: Final = bytes(range(251)) * 261
"""A prime period: what is lost or doubled by a power of two is seen."""

RESET: Final = b"reset me"
"""No client says it by chance: what they say is shorter, or far longer."""


@dataclass
class Book:
    """What an endpoint has seen under one name."""

    flows: int = 0
    received: int = 0
    sent: int = 0


async def echo(stream: trio.SocketStream, book: Book) -> None:
    async for chunk in stream:
        book.received += len(chunk)
        await stream.send_all(chunk)
        book.sent += len(chunk)


async def digest(stream: trio.SocketStream, book: Book) -> None:
    whole = sha256()
    async for chunk in stream:
        book.received += len(chunk)
        whole.update(chunk)
    answer = whole.hexdigest().encode()
    await stream.send_all(answer)
    book.sent += len(answer)


async def source(stream: trio.SocketStream, book: Book) -> None:
    left = int(await receive_exactly(stream, COUNT_DIGITS))
    book.received += COUNT_DIGITS
    while left:
        chunk = PATTERN[:left]
        await stream.send_all(chunk)
        left -= len(chunk)
        book.sent += len(chunk)
    # Not closed before all has been taken: a closed socket that still has to send is reset by the
    # kernel when other programs have used up the machine's TCP memory (net.ipv4.tcp_mem).
    await stream.send_eof()
    assert await stream.receive_some() == b"", "the client said something more"


async def echo_or_reset(stream: trio.SocketStream, book: Book) -> None:
    async for chunk in stream:
        book.received += len(chunk)
        if chunk == RESET:
            reset(stream)
            return
        await stream.send_all(chunk)
        book.sent += len(chunk)


STREAMS: Final[dict[str, Callable[[trio.SocketStream, Book], Awaitable[None]]]] = {
    "echo": echo,
    "digest": digest,
    "source": source,
    "reset": echo_or_reset,
}


async def serve_stream(kind: str, book: Book, stream: trio.SocketStream) -> None:
    book.flows += 1
    async with stream:
        try:
            await STREAMS[kind](stream, book)
        except trio.BrokenResourceError:
            return  # the client, or a kill, has reset it; whether it may is the books' business


async def serve_datagrams(kind: str, book: Book, bound: trio.socket.SocketType) -> None:
    with bound:
        while True:
            data, sender = await bound.recvfrom(65535)
            book.received += len(data)
            if kind == "answer":
                await bound.sendto(data, sender)
                book.sent += len(data)


async def open_socket(kind: str, where: str) -> trio.socket.SocketType:
    if where.startswith("/"):
        opened = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await opened.bind(where)
    else:
        stream = kind in STREAMS
        opened = trio.socket.socket(
            socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
        )
        if stream:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await opened.bind((HOST, int(where)))
    if kind in STREAMS:
        opened.listen(1024)
    return opened


async def main(*served: str) -> None:
    books: dict[str, Book] = {}
    async with trio.open_nursery() as nursery:
        for name, kind, where in (each.split(":") for each in served):
            book = books[name] = Book()
            opened = await open_socket(kind, where)
            if kind in STREAMS:
                serve = partial(serve_stream, kind, book)
                nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(opened)])
            else:
                nursery.start_soon(serve_datagrams, kind, book, opened)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            print("ready", flush=True)
            async for _ in signals:
                break
        nursery.cancel_scope.cancel()
    print(json.dumps({name: asdict(book) for name, book in books.items()}))


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
