"""The peers of the demo: endpoints that echo and answer, and clients that give them some work.

The endpoints are as small as they can be while real clients (``nc``, ``dig``) get real answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from socket import SOCK_DGRAM
from typing import Final

import trio
from trio.socket import SocketType

from proxy.core.address import Address

LARGEST_DATAGRAM: Final = 65535

DNS_HEADER: Final = 12  # bytes; RFC 1035 section 4.1.1
ANSWER_FLAGS: Final = b"\x85\x80"  # a response, authoritative, recursion as asked
ADDRESS_QUESTION: Final = b"\x00\x01\x00\x01"  # type A, class IN; section 3.2
ONE_ADDRESS: Final = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01"
"""An A record for the name in the question: 192.0.2.1, for a minute (RFC 1035 4.1.3, RFC 5737)."""


async def echo_streams(stream: trio.SocketStream) -> None:
    """Send back whatever comes, until the client has finished."""
    try:
        async with stream:
            async for data in stream:
                await stream.send_all(data)
    except trio.BrokenResourceError:
        return  # the client has left


async def answer_datagrams(socket: SocketType, answer: Callable[[bytes], bytes]) -> None:
    """Answer every datagram, until cancelled."""
    while True:
        data, sender = await socket.recvfrom(LARGEST_DATAGRAM)
        await socket.sendto(answer(data), sender)


def echo(data: bytes) -> bytes:
    """Answer with the question."""
    return data


def dns_answer(query: bytes) -> bytes:
    """Answer a DNS query for the address of any name; anything else about it with "no data".

    What is no query comes back as it is.
    """
    end = query.find(b"\0", DNS_HEADER) + 5  # the name's last byte, its type and its class
    if len(query) < DNS_HEADER or query[4:6] != b"\0\1" or end < DNS_HEADER or end > len(query):
        return query
    question = query[DNS_HEADER:end]
    answer = ONE_ADDRESS if question[-4:] == ADDRESS_QUESTION else b""
    counts = bytes((0, 1, 0, bool(answer), 0, 0, 0, 0))
    return query[:2] + ANSWER_FLAGS + counts + question + answer


async def bound_datagram_socket() -> SocketType:
    """A UDP socket on loopback; the caller owns it."""
    socket = trio.socket.socket(type=SOCK_DGRAM)
    await socket.bind(("127.0.0.1", 0))
    return socket


async def chat(address: Address) -> None:
    """One client that talks for a while, leaves, and comes again; until cancelled."""
    for number in itertools.count(1):
        async with await trio.open_tcp_stream(*address[:2]) as stream:
            for _ in range(number % 7 + 2):
                await _say(stream, b"hello, is anybody there?\n" * number)
                await trio.sleep(0.3)


async def copy(address: Address) -> None:
    """One client that sends a megabyte now and then; until cancelled."""
    while True:
        async with await trio.open_tcp_stream(*address[:2]) as stream:
            for _ in range(16):
                await _say(stream, bytes(65536))
                await trio.sleep(0.05)
        await trio.sleep(1)


async def ask(address: Address) -> None:
    """One client that says something now and then, and is echoed; until cancelled."""
    await _ask_again_and_again(address, b"anybody?")


async def look_up(address: Address) -> None:
    """One client that asks for the address of a name now and then; until cancelled."""
    header = b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0"  # an id, recursion desired, one question
    await _ask_again_and_again(address, header + b"\7example\3com\0" + ADDRESS_QUESTION)


async def _ask_again_and_again(address: Address, question: bytes) -> None:
    """Send a datagram every 0.7 s from a socket that is kept, and wait for its answer."""
    with trio.socket.socket(type=SOCK_DGRAM) as socket:
        await socket.connect(address)
        while True:
            await socket.send(question)
            await socket.recv(LARGEST_DATAGRAM)
            await trio.sleep(0.7)


CLIENTS: Final[dict[str, tuple[Callable[[Address], Awaitable[None]], ...]]] = {
    "echo": (chat, chat, copy),
    "echo-udp": (ask, ask),
    "dns": (look_up,),
}
"""Which clients the demo sends to which of its listeners."""


async def _say(stream: trio.SocketStream, data: bytes) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        missing = len(data)
        while missing:
            missing -= len(await stream.receive_some(missing))
