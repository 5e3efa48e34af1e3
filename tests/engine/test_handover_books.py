"""Whatever befalls flows while workers come and go: no byte is lost, and all books end at 0."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from random import Random
from socket import SHUT_WR, SO_RCVBUF, SOL_SOCKET
from typing import Final

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.address import Transport
from proxy.core.query import FlowQuery
from proxy.engine.handover.leaving import Left
from tests.engine.heirs import nothing_left, successor_of
from tests.engine.lab import (
    Lab,
    accept,
    connect,
    datagram_socket,
    listening,
    open_listener,
    relaying,
    reset,
)
from tests.engine.test_datagram import exchange

TEXT: Final = Random(8).randbytes(65521)
"""What everybody sends, again and again: its length is prime, so no piece of it fits elsewhere."""

LONG: Final = TEXT * 3

BROKEN: Final = (OSError, trio.ClosedResourceError, trio.BrokenResourceError)


class Way:
    """One direction of a flow, as its peers see it: what is sent, and that just this arrives."""

    def __init__(self, sender: SocketType, receiver: SocketType, random: Random) -> None:
        self._sender = sender
        self._receiver = receiver
        self._random = random
        self.sent = 0
        self.received = 0
        self.over = trio.Event()
        self.is_ending = False
        self.reads = trio.Event()
        self.reads.set()

    async def send(self) -> None:
        with suppress(*BROKEN):
            while not self.is_ending:
                size = self._random.choice((1, 700, 20_000, len(TEXT)))
                start = self.sent % len(TEXT)
                self.sent += await self._sender.send(LONG[start : start + size])
                if self._random.random() < 0.3:
                    await trio.sleep(0.002)
            self._sender.shutdown(SHUT_WR)

    async def receive(self) -> None:
        with suppress(*BROKEN):
            while data := await self._receiver.recv(1 << 16):
                start = self.received % len(TEXT)
                assert data == LONG[start : start + len(data)]
                self.received += len(data)
                await self.reads.wait()
        self.over.set()


class Talk:
    """A flow whose peers both send and receive."""

    def __init__(self, id: int, client: SocketType, accepted: SocketType, random: Random) -> None:
        self.id = id
        self.client = client
        self.ways = Way(client, accepted, random), Way(accepted, client, random)

    def start(self, nursery: trio.Nursery) -> None:
        for way in self.ways:
            nursery.start_soon(way.send)
            nursery.start_soon(way.receive)

    def stall(self) -> None:
        if self.ways[0].reads.is_set():  # nobody waits for it
            self.ways[0].reads = trio.Event()

    async def finish(self) -> None:
        """End both directions, and see that all has arrived."""
        for way in self.ways:
            way.is_ending = True
            way.reads.set()
        for way in self.ways:
            await way.over.wait()
            assert way.received == way.sent

    async def wait_broken(self) -> None:
        for way in self.ways:
            way.is_ending = True
            way.reads.set()
            await way.over.wait()
            assert way.received <= way.sent


class Crowd:
    """Flows of a worker and of those that follow it; does one thing after the other to them."""

    def __init__(self, lab: Lab, random: Random, nursery: trio.Nursery) -> None:
        self.labs = [lab]
        self.endpoint = listening()
        self.random = random
        self.nursery = nursery
        self.talks: list[Talk] = []
        self.opened = 0
        self.clients: list[tuple[SocketType, object]] = []
        self.echo = datagram_socket()

    @property
    def lab(self) -> Lab:
        """Who has the flows now."""
        return self.labs[-1]

    async def open(self) -> None:
        client = await connect(self.lab.address)
        client.setsockopt(SOL_SOCKET, SO_RCVBUF, 64 << 10)
        accepted = await accept(self.endpoint)
        self.opened += 1
        talk = Talk(self.opened, client, accepted, Random(self.opened))
        talk.start(self.nursery)
        self.talks.append(talk)

    def one(self) -> Talk:
        return self.talks.pop(self.random.randrange(len(self.talks)))

    async def close(self) -> None:
        await self.one().finish()

    async def stall(self) -> None:
        self.random.choice(self.talks).stall()

    async def reset(self) -> None:
        talk = self.one()
        reset(talk.client)
        await talk.wait_broken()

    async def kill(self) -> None:
        talk = self.one()
        assert await self.lab.worker.kill(FlowQuery(id=talk.id)) == 1
        await talk.wait_broken()

    async def ask(self) -> None:
        """Each client of datagrams gets its answer, always from the same flow."""
        for client, outbound in self.clients:
            assert await exchange(client, self.echo, b"%d" % self.opened) == outbound


@pytest.mark.parametrize("seed", range(4))
async def test_no_byte_is_lost_and_nothing_is_left_in_the_books(seed: int) -> None:
    random = Random(seed)
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        placeholder = listening()
        lab = await stack.enter_async_context(relaying([placeholder.getsockname()]))
        crowd = Crowd(lab, random, nursery)
        crowd.endpoint = placeholder
        await open_datagrams(crowd)
        handed = 0

        async def hand_over() -> None:
            nonlocal handed
            heir, left = await stack.enter_async_context(successor_of(crowd.lab))
            assert left == Left(len(crowd.talks) + len(crowd.clients), left.longest)
            handed += left.handed
            crowd.labs.append(heir)

        steps: list[Callable[..., object]] = [crowd.open] * 6
        for _ in range(2):
            some = [crowd.open, crowd.close, crowd.reset, crowd.kill, crowd.stall, crowd.ask]
            steps += [random.choice(some) for _ in range(8)]
            steps += [crowd.open, crowd.stall, hand_over, crowd.ask]
        for step in steps:
            if crowd.talks or step in (crowd.open, crowd.ask, hand_over):
                await step()  # type: ignore[misc]
        assert handed
        await see_all_end(crowd)


async def open_datagrams(crowd: Crowd) -> None:
    """A second listener, and clients of it."""
    door = bind_socket(ListenAddress(Transport.UDP, "127.0.0.1", 0))
    address = door.getsockname()
    endpoints = [crowd.echo.getsockname()]
    await open_listener(crowd.lab.worker, "more", door, endpoints, Transport.UDP)
    for _ in range(3):
        client = datagram_socket()
        await client.connect(address)
        crowd.clients.append((client, await exchange(client, crowd.echo, b"first")))
        crowd.opened += 1


async def see_all_end(crowd: Crowd) -> None:
    """Have all flows end in order, and look at the books of all workers."""
    ended: dict[int, Talk] = {talk.id: talk for talk in crowd.talks}
    while crowd.talks:
        await crowd.close()
    live = await crowd.lab.live()
    while len(live) > len(crowd.clients):
        await trio.sleep(0.002)
        live = await crowd.lab.live()
    for row in await crowd.lab.ended():
        if row["id"] in ended:
            assert row["close_reason"] == "finished"
            original, reply = ended[row["id"]].ways
            assert row["original"]["bytes"] == original.received
            assert row["reply"]["bytes"] == reply.received
    assert await crowd.lab.worker.kill(FlowQuery()) == len(crowd.clients)
    assert [row["id"] for row in await crowd.lab.ended()] != []
    assert len(await crowd.lab.ended()) == crowd.opened
    books = [row for lab in crowd.labs for row in (await lab.counters())["listeners"]]
    assert sum(row["opened"] for row in books) == crowd.opened
    assert sum(sum(row["closed"].values()) for row in books) == crowd.opened
    for lab in crowd.labs:
        assert nothing_left(lab)
