"""The clients of a soak: each does its kind of flow again and again, and counts it.

A flow that a dead worker, or a dead endpoint, has cut is counted as ``cut``; that nobody else cuts
any is proved by the books. Every other surprise is an error, and ends the soak.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import cycle
from typing import Final

import trio

from tests.e2e.patience import PATIENCE
from tests.e2e.sockets import expect_reset, receive_all, reset
from tests.soak.endpoint import COUNT_DIGITS, PATTERN, RESET
from tests.soak.scene import Scene, Tally

CLIENTS: Final = {
    "echo": 6,
    "bulk": 1,
    "half": 2,
    "slow": 2,
    "reset": 2,
    "torn": 1,
    "held": 10,
    "doomed": 3,
    "unix": 2,
    "game": 4,
    "void": 1,
}

SMALL: Final = (1, 60, 1460, 20_000)
BULK: Final = 2 << 20
PIECE: Final = 64 * 1024
SLOW_BUFFER: Final = 16 * 1024
PORTS: Final = range(33_000, 60_000)


class CutError(Exception):
    """The other side has ended a flow that had not come to its end."""


class Flow:
    """A client's side of a flow. Who finds it cut has it counted so, and closed.

    Args:
        stream: connected.
        tally: of its listener.

    """

    def __init__(self, stream: trio.SocketStream, tally: Tally) -> None:
        self.stream = stream
        self._tally = tally
        tally.opened += 1

    async def say(self, data: bytes) -> None:
        """Send, and receive the same back, both at the same time."""
        answers = []
        with self._cutting():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, data)
                answers.append(await self._receive(len(data)))
        assert sha256(answers[0]).digest() == sha256(data).digest(), "other bytes came back"
        self.count(len(data), len(data))

    async def tell(self, data: bytes) -> None:
        """Send what gets no answer."""
        with self._cutting():
            await self._send(data)
        self.count(len(data), 0)

    async def hear(self, size: int) -> bytes:
        """Receive so much, unasked."""
        with self._cutting():
            data = await self._receive(size)
        self.count(0, size)
        return data

    async def end(self) -> None:
        """End in order; a last word shows that it lived until now."""
        await self.say(b"bye")
        await self.stream.send_eof()
        await self.finished()

    async def finished(self) -> None:
        """Wait for the end, which must be the ordinary one."""
        with self._cutting():
            assert await receive_all(self.stream) == b"", "something came after the end"
        await self.over("finished")

    async def reset_by_proxy(self, reason: str) -> None:
        """Wait for RST."""
        await expect_reset(self.stream)
        await self.over(reason)

    async def over(self, reason: str) -> None:
        self._tally.ends[reason] += 1
        await self.stream.aclose()

    def reset(self) -> None:
        reset(self.stream)
        self._tally.ends["client_reset"] += 1

    def count(self, sent: int, received: int) -> None:
        self._tally.sent += sent
        self._tally.received += received

    async def _send(self, data: bytes) -> None:
        with trio.fail_after(3 * PATIENCE):
            await self.stream.send_all(data)

    async def _receive(self, size: int) -> bytes:
        parts = []
        with trio.fail_after(3 * PATIENCE):
            while size:
                parts.append(await self.stream.receive_some(min(size, PIECE)))
                if not parts[-1]:
                    raise CutError
                size -= len(parts[-1])
        return b"".join(parts)

    @contextmanager
    def _cutting(self) -> Iterator[None]:
        """Count a flow that is cut, whether one task of ours found it so or two."""
        cut = False
        try:
            yield
        except* (CutError, trio.BrokenResourceError):
            cut = True
        if cut:
            self._tally.ends["cut"] += 1
            self.stream.socket.close()
            raise CutError


class Client:
    """One client, at an address of its own, by which it is steered to a worker."""

    def __init__(self, scene: Scene, name: str, number: int) -> None:
        self.scene = scene
        self.name = name
        self.tally = scene.tallies[name]
        self.chance = scene.random(f"{name} {number}")
        self.source = f"127.1.{1 + list(scene.tallies).index(name)}.{1 + number}"
        self._ports = cycle(PORTS)

    async def run(self) -> None:
        do = DOINGS[self.name]
        while not self.scene.stopping:
            await self.think()
            with suppress(CutError):  # it is counted
                await do(self)

    async def think(self, least: float = 0.1, most: float = 0.8) -> None:
        """Be silent for a while, but not when all is to end."""
        end = trio.current_time() + self.chance.uniform(least, most)
        while (left := end - trio.current_time()) > 0 and not self.scene.stopping:
            await trio.sleep(min(0.2, left))

    def data(self) -> bytes:
        return self.chance.randbytes(self.chance.choice(SMALL))

    async def connect(self, receive_buffer: int | None = None) -> Flow:
        """Begin a flow. Only within a passage of the gate, and to be used at once."""
        forward = self.scene.forwards[self.name]
        if forward.transport == "unix":
            return Flow(await trio.open_unix_socket(forward.text), self.tally)
        connecting = trio.socket.socket()
        if receive_buffer is not None:
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        with trio.fail_after(3 * PATIENCE):
            await connecting.bind((self.source, 0))
            await connecting.connect(forward.address)
        return Flow(trio.SocketStream(connecting), self.tally)

    async def datagram_socket(self) -> trio.socket.SocketType:
        """Of a port that this client has not had for long: each is a flow of its own."""
        while True:
            opened = trio.socket.socket(type=socket.SOCK_DGRAM)
            try:
                await opened.bind((self.source, next(self._ports)))
            except OSError:
                opened.close()  # somebody has the port at every address
            else:
                await opened.connect(self.scene.forwards[self.name].address)
                return opened


async def talk(client: Client) -> None:
    """Some questions, answers, pauses, and the ordinary end."""
    gate = client.scene.gate
    async with gate.passage():
        flow = await client.connect()
        await flow.say(b"hello")
    for _ in range(client.chance.randrange(6)):
        await client.think()
        async with gate.passage():
            await flow.say(client.data())
    async with gate.passage():
        await flow.end()


async def hold(client: Client) -> None:
    """The same, hardly ever saying a word, until all is to end."""
    gate = client.scene.gate
    async with gate.passage():
        flow = await client.connect()
        await flow.say(b"hello")
    while not client.scene.stopping:
        await client.think(1, 5)
        async with gate.passage():
            await flow.say(b"still here")
    async with gate.passage():
        await flow.end()


async def send_bulk(client: Client) -> None:
    async with client.scene.gate.passage():
        flow = await client.connect()
        await flow.say(client.chance.randbytes(client.chance.randrange(BULK)))
        await flow.end()


async def ask_and_end(client: Client) -> None:
    """End first, and get the answer afterwards."""
    async with client.scene.gate.passage():
        flow = await client.connect()
        data = client.chance.randbytes(client.chance.randrange(1, 200_000))
        await flow.tell(data)
        await flow.stream.send_eof()
        answer = await flow.hear(64)
        assert answer.decode() == sha256(data).hexdigest(), "the endpoint got something else"
        await flow.finished()


async def read_slowly(client: Client) -> None:
    async with client.scene.gate.passage():
        flow = await client.connect(SLOW_BUFFER)
        left = size = client.chance.randrange(300_000, 600_000)
        await flow.tell(f"{size:0{COUNT_DIGITS}}".encode())
        pattern = PATTERN * (1 + size // len(PATTERN))
        while left:
            await trio.sleep(0.02)
            data = await flow.hear(min(left, SLOW_BUFFER))
            assert pattern.startswith(data, (size - left) % len(PATTERN)), "other bytes came"
            left -= len(data)
        await flow.finished()


async def be_reset(client: Client) -> None:
    """RST from one side or the other, when nothing is on its way."""
    async with client.scene.gate.passage():
        flow = await client.connect()
        await flow.say(client.data())
        if client.chance.random() < 0.5:
            flow.reset()
        else:
            await flow.tell(RESET)
            await flow.reset_by_proxy("endpoint_reset")


async def tear(client: Client) -> None:
    """RST in the middle of bulk that nobody reads."""
    async with client.scene.gate.passage():
        flow = await client.connect()
        await flow.say(b"hello")
        with trio.move_on_after(0.3):
            await flow.tell(client.chance.randbytes(BULK))
        flow.reset()


async def play(client: Client) -> None:
    """Datagrams, each with its answer.

    After a closing of the gate another flow is begun: this one's worker may be gone, or it may
    have been silent for too long.
    """
    gate = client.scene.gate
    closings = gate.closings
    with await client.datagram_socket() as player:
        for number in range(client.chance.randrange(1, 20)):
            async with gate.passage():
                if gate.closings != closings:
                    return
                client.tally.opened += number == 0
                data = client.data()
                await player.send(data)
                with trio.fail_after(3 * PATIENCE):
                    assert await player.recv(65536) == data
                client.tally.datagrams += 1
                client.tally.sent += len(data)
                client.tally.received += len(data)
            await client.think(0.05, 0.3)


async def call(client: Client) -> None:
    """Datagrams that nobody answers."""
    async with client.scene.gate.passage():
        with await client.datagram_socket() as caller:
            client.tally.opened += 1
            for _ in range(3):
                await caller.send(b"anybody?")
                client.tally.datagrams += 1
                client.tally.sent += len(b"anybody?")


DOINGS: Final[dict[str, Callable[[Client], Awaitable[None]]]] = {
    "echo": talk,
    "bulk": send_bulk,
    "half": ask_and_end,
    "slow": read_slowly,
    "reset": be_reset,
    "torn": tear,
    "held": hold,
    "doomed": talk,
    "unix": talk,
    "game": play,
    "void": call,
}


def start_clients(nursery: trio.Nursery, scene: Scene) -> None:
    """Let the clients begin; they end when the scene does."""
    for name, count in CLIENTS.items():
        for number in range(count):
            nursery.start_soon(Client(scene, name, number).run)
