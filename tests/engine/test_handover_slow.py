"""An heir reads late, or never: its wire is full in the middle of a message, and nothing is lost.

The wire has as little room as the kernel allows, so that a message of some flows does not fit.
"""

from __future__ import annotations

import os
import select
import socket as stdlib
from collections.abc import Iterator
from signal import SIGKILL
from socket import SO_SNDBUF, SOL_SOCKET
from socket import socket as Socket
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.core.address import Transport
from proxy.engine.handover.transfer import Bequeather, HandOverError, Heir, Papers
from proxy.engine.wire import wire_on
from tests.engine.dying import Dying, Step
from tests.engine.heirs import TO_ONE, nothing_left, successor_of
from tests.engine.lab import (
    Lab,
    datagram_socket,
    listening,
    pair,
    receive_exactly,
    relaying,
    send_all,
)
from tests.engine.test_handover_faults import talk

FLOWS = 40
"""Of one message; the state of each is some hundred bytes."""

SHORT = 0.3
"""Seconds of patience with an heir."""


class Narrow:
    """Makes the socket pairs of wires, with the least room, and knows whether the first is full."""

    def __init__(self) -> None:
        self._first = -1

    def __call__(self) -> tuple[Socket, Socket]:
        ours, theirs = stdlib.socketpair()
        ours.setsockopt(SOL_SOCKET, SO_SNDBUF, 1)  # 4,608 bytes are the least; socket(7)
        if self._first == -1:
            self._first = os.dup(ours.fileno())
        return ours, theirs

    async def wait_full(self) -> None:
        room = select.poll()
        room.register(self._first, select.POLLOUT)
        while room.poll(0):
            await trio.sleep(0.002)

    def close(self) -> None:
        if self._first != -1:
            os.close(self._first)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Narrow]:
    """Have all wires to heirs be narrow."""
    made = Narrow()
    for module in ("heirs", "dying"):
        monkeypatch.setattr(f"tests.engine.{module}.socketpair", made)
    yield made
    made.close()


async def streams(lab: Lab, endpoint: SocketType) -> list[tuple[SocketType, SocketType]]:
    return [await pair(lab, endpoint) for _ in range(FLOWS)]


async def players(lab: Lab, endpoint: SocketType) -> list[SocketType]:
    """Clients of datagrams, each of which has its flow."""
    clients = [datagram_socket() for _ in range(FLOWS)]
    for client in clients:
        await client.connect(lab.address)
        await client.send(b"first")
        await endpoint.recvfrom(10)
    return clients


def read_late(monkeypatch: pytest.MonkeyPatch, message: int) -> trio.Event:
    """Have an heir not read the message of this number until an event is set."""
    receive, resumed, numbers = Heir._receive, trio.Event(), iter(range(1_000_000))

    async def late(heir: Heir, *parts: Any) -> bytes:
        if next(numbers) == message:
            await resumed.wait()
        return await receive(heir, *parts)

    monkeypatch.setattr(Heir, "_receive", late)
    return resumed


async def test_streams_wait_for_an_heir_that_reads_late(
    narrow: Narrow, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:
        pairs = await streams(lab, endpoint)
        resumed = read_late(monkeypatch, 1)  # after that about datagrams, of which there are none

        async def speak() -> None:
            await narrow.wait_full()
            for client, _ in pairs:
                await send_all(client, b"meanwhile")
            resumed.set()

        nursery.start_soon(speak)
        async with successor_of(lab) as (heir, left):
            assert (left.handed, left.failure) == (FLOWS, "")
            for client, accepted in pairs:
                assert await receive_exactly(accepted, 9) == b"meanwhile"
                await talk(client, accepted)
            assert len(await heir.live()) == FLOWS
        assert nothing_left(lab)


async def test_datagrams_wait_for_an_heir_that_reads_late(
    narrow: Narrow, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = datagram_socket()
    async with (
        relaying([endpoint.getsockname()], Transport.UDP) as lab,
        trio.open_nursery() as nursery,
    ):
        clients = await players(lab, endpoint)
        resumed = read_late(monkeypatch, 0)

        async def speak() -> None:
            await narrow.wait_full()
            await send_each(clients)
            resumed.set()

        nursery.start_soon(speak)
        async with successor_of(lab) as (heir, left):
            assert (left.handed, left.failure) == (FLOWS, "")
            assert await received(endpoint) == numbered()
            assert len(await heir.live()) == FLOWS
        assert nothing_left(lab)


@pytest.mark.parametrize("step", [Step.GOT_READY, Step.READY_AGAIN])
async def test_streams_come_back_from_an_heir_that_reads_no_more(
    narrow: Narrow, monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    """Before the first batch of them, or the second: then the first is in its hands."""
    monkeypatch.setattr("proxy.engine.handover.transfer.PATIENCE", SHORT)
    monkeypatch.setattr("proxy.engine.handover.leaving.BATCH", FLOWS // 2)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:
        pairs = await streams(lab, endpoint)
        heir = Dying(step, stops=True)

        async def speak() -> None:
            await narrow.wait_full()
            for client, _ in pairs:
                await send_all(client, b"meanwhile")

        nursery.start_soon(speak)
        left = await lab.worker.leave(TO_ONE, [heir.end], patience=0.0)
        assert (left.handed, bool(left.failure)) == (0, True)
        for client, accepted in pairs:
            assert await receive_exactly(accepted, 9) == b"meanwhile"
            await talk(client, accepted)
        assert len(await lab.live()) == FLOWS
        await end(heir, is_over=step is Step.READY_AGAIN)


async def test_an_heir_that_takes_nothing_still_stands_still_when_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half a message has gone, and the wire is closed; what it does next is not known by that."""
    monkeypatch.setattr("proxy.engine.handover.transfer.PATIENCE", SHORT)
    ours, theirs = stdlib.socketpair()
    with theirs:
        heir = Bequeather(wire_on(ours))
        with pytest.raises(HandOverError, match="takes nothing"):
            await heir.give_datagrams([], Papers(1, 0.0, dict.fromkeys(range(1 << 17), 0)))
        await heir.abandon()
    assert heir.stands_still


async def test_datagrams_come_back_from_an_heir_that_reads_none(
    narrow: Narrow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.engine.handover.transfer.PATIENCE", SHORT)
    endpoint = datagram_socket()
    async with (
        relaying([endpoint.getsockname()], Transport.UDP) as lab,
        trio.open_nursery() as nursery,
    ):
        clients = await players(lab, endpoint)
        heir = Dying(Step.MET, stops=True)

        async def speak() -> None:
            await narrow.wait_full()
            await send_each(clients)

        nursery.start_soon(speak)
        with pytest.raises(HandOverError, match="takes nothing"):
            await lab.worker.leave(TO_ONE, [heir.end])
        assert await received(endpoint) == numbered()
        assert len(await lab.live()) == FLOWS
        await end(heir, is_over=False)


async def send_each(clients: list[SocketType]) -> None:
    for number, client in enumerate(clients):
        await client.send(b"%d" % number)


async def received(endpoint: SocketType) -> list[bytes]:
    return sorted([(await endpoint.recvfrom(10))[0] for _ in range(FLOWS)])


def numbered() -> list[bytes]:
    return sorted(b"%d" % number for number in range(FLOWS))


async def end(heir: Dying, *, is_over: bool) -> None:
    """See an heir off, which was killed already if it had anything."""
    if not is_over:
        assert not heir.has_ended()
        os.kill(heir.pid, SIGKILL)
    while not heir.has_ended():
        await trio.sleep(0.002)
