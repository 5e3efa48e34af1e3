"""Clients that talk on and on, and origins that answer: nothing may be lost, nor come twice.

One word at a time: the next is said when the answer has come, and it must be the answer to that
word. Origins tell by which address of ours each conversation comes, so that it can be seen that it
has stayed the same.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio
from trio.socket import SocketType

from tests.e2e.patience import PATIENCE, until
from tests.e2e.subject import Forward

HOST = "127.0.0.1"

TALKERS = 6
"""Of each kind, each with an address of its own."""

BREATH = 0.005
"""Seconds between two words of one of them: what is tested needs the processor, too."""


@dataclass
class Chatter:
    """Conversations that go on.

    Attributes:
        tcp: where the origin of streams listens.
        udp: the same of datagrams.
        words: how many were answered, by conversation.
        ways: how many addresses of ours the origins were met from.

    """

    nursery: trio.Nursery
    tcp: str = ""
    udp: str = ""
    words: dict[str, int] = field(default_factory=dict)
    ways: set[object] = field(default_factory=set)
    _scopes: dict[str, trio.CancelScope] = field(default_factory=dict)

    def begin(self, name: str, kind: str, address: tuple[str, int], source: str) -> None:
        """Have another conversation, from this address of ours."""
        self.words[name] = 0
        self._scopes[name] = trio.CancelScope()
        self.nursery.start_soon(self._talk, name, kind, address, source)

    def end(self, name: str) -> None:
        """Have a conversation end."""
        self._scopes[name].cancel()
        del self.words[name]

    async def wait_words(self, more: int = 20) -> None:
        """Wait until every conversation has gone on for so many words."""
        before = dict(self.words)
        await until(
            lambda: all(self.words[name] >= count + more for name, count in before.items()),
            f"{more} more words in each of {before}",
            3 * PATIENCE,
        )

    async def _talk(self, name: str, kind: str, address: tuple[str, int], source: str) -> None:
        transport = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
        with self._scopes[name], trio.socket.socket(socket.AF_INET, transport) as client:
            await client.bind((source, 0))
            await client.connect(address)
            while name in self.words:
                word = f"{name} {self.words[name]}".encode().ljust(64, b".")
                await client.send(word)
                with trio.fail_after(3 * PATIENCE):
                    assert await _receive(client, kind, len(word)) == word
                if name in self.words:
                    self.words[name] += 1
                await trio.sleep(BREATH)

    async def serve_streams(self, listening: SocketType) -> None:
        while True:
            accepted, way = await listening.accept()
            self.ways.add(("tcp", way))
            self.nursery.start_soon(self._echo, accepted)

    async def _echo(self, accepted: SocketType) -> None:
        with accepted, suppress(ConnectionError):  # a client that ends has not read everything
            while data := await accepted.recv(65536):
                await trio.SocketStream(accepted).send_all(data)

    async def serve_datagrams(self, bound: SocketType) -> None:
        while True:
            data, way = await bound.recvfrom(65536)
            self.ways.add(("udp", way))
            await bound.sendto(data, way)


async def _receive(client: SocketType, kind: str, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await client.recv(size - len(data))
        assert piece, "the conversation was ended"
        data += piece
        if kind == "udp":
            break
    return data


@asynccontextmanager
async def chatting() -> AsyncIterator[Chatter]:
    """Origins that answer, and whoever begins to talk to them."""
    with trio.socket.socket() as listening, trio.socket.socket(type=socket.SOCK_DGRAM) as bound:
        await listening.bind((HOST, 0))
        listening.listen(64)
        await bound.bind((HOST, 0))
        async with trio.open_nursery() as nursery:
            chatter = Chatter(nursery)
            chatter.tcp, chatter.udp = (
                f"{HOST}:{each.getsockname()[1]}" for each in (listening, bound)
            )
            nursery.start_soon(chatter.serve_streams, listening)
            nursery.start_soon(chatter.serve_datagrams, bound)
            yield chatter
            nursery.cancel_scope.cancel()


def talk(chatter: Chatter, web: Forward, dns: Forward, life: str) -> None:
    """Have so many begin to talk, to streams and to datagrams, whom we can tell from others."""
    for number in range(TALKERS):
        chatter.begin(f"{life}-tcp{number}", "tcp", web.address, f"127.0.0.{number + 2}")
        chatter.begin(f"{life}-udp{number}", "udp", dns.address, f"127.0.0.{number + 2}")
