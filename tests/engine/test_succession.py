"""The succession channel: who knocks is answered, whatever the one before did."""

from __future__ import annotations

import json
import os
import socket
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from socket import SCM_RIGHTS, SOL_SOCKET
from socket import socket as Socket
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from proxy.core.pace import Pace
from proxy.engine import succession
from proxy.engine.specs import EVERYTHING, DrainOrder
from proxy.engine.succession import KNOCK, VERSION, Succession, channel, knock
from proxy.engine.wire import Wire, WireError
from proxy.engine.worker import open_files
from tests.engine.lab import PATIENCE


class FakeWorker:
    """A worker with three flows, which end when a test says so."""

    def __init__(self) -> None:
        self.drains: list[DrainOrder] = []
        self.drained = trio.Event()

    async def counters(self, *, former: bool = False) -> Any:
        assert former
        return {"listeners": []}

    async def status(self) -> Any:
        return {"flows": 3}

    async def drain(self, order: DrainOrder) -> bool:
        self.drains.append(order)
        return True

    async def wait_drained(self) -> None:
        await self.drained.wait()


class Left:
    """A worker that was left behind, and our end of its channel."""

    def __init__(self) -> None:
        self.end, theirs = channel()
        self.worker = FakeWorker()
        self.succession = Succession(theirs, self.worker, (1, 2))


@asynccontextmanager
async def left_behind() -> AsyncIterator[Left]:
    left = Left()
    with trio.fail_after(PATIENCE), structlog.testing.capture_logs():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.succession.run)
            with left.end:
                yield left
            nursery.cancel_scope.cancel()


async def ask(wire: Wire, question: object) -> Any:
    await wire.send(json.dumps(question).encode())
    return json.loads((await wire.receive()).body)


async def test_a_greeting_says_who_is_there_and_what_it_leaves() -> None:
    async with left_behind() as left:
        left.succession.estate = {"orders": []}
        with closing(knock(left.end)) as wire:
            greeting = await ask(wire, {"ask": "greet"})
    assert (greeting["version"], greeting["pid"]) == (VERSION, os.getpid())
    assert (greeting["worker"], greeting["workers"], greeting["flows"]) == (1, 2, 3)
    assert (greeting["estate"], greeting["counters"]) == ({"orders": []}, {"listeners": []})


async def test_a_successor_that_dies_in_the_middle_of_a_word_is_in_nobodys_way() -> None:
    async with left_behind() as left:
        first = knock(left.end)
        await first._socket.send(b"\0\0")
        first.close()
        with closing(knock(left.end)) as second:
            assert (await ask(second, {"ask": "greet"}))["version"] == VERSION


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"1", b'{"ask": "dance"}', b'{"ask": []}'])
async def test_what_is_not_understood_is_answered(body: bytes) -> None:
    async with left_behind() as left:
        with closing(knock(left.end)) as wire:
            await wire.send(body)
            assert "error" in json.loads((await wire.receive()).body)
            assert (await ask(wire, {"ask": "greet"}))["version"] == VERSION


async def test_other_packets_and_further_descriptors_are_closed_and_nothing_follows() -> None:
    async with left_behind() as left:
        before = open_files()
        for data, count in ((b"x", 0), (b"x", 1), (KNOCK, 0), (KNOCK, 2)):
            pipe = os.pipe()
            rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", pipe[:count]))] if count else []
            left.end.sendmsg([data], rights)
            for fd in pipe:
                os.close(fd)
        with closing(knock(left.end)) as wire:
            await ask(wire, {"ask": "greet"})
            assert open_files() == before + 2  # both ends of this conversation


async def test_an_orphan_that_is_told_to_drain_ends_when_its_flows_have() -> None:
    async with left_behind() as left:
        left.succession.pace = Pace(5.0, 7.0, 9.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.succession.outlive)
            with closing(knock(left.end)) as wire:
                assert await ask(wire, {"ask": "drain"}) == {"draining": True}
                await ask(wire, {"ask": "drain"})
            assert left.worker.drains == [DrainOrder(EVERYTHING, Pace(5.0, 7.0, 9.0))]
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            left.worker.drained.set()


async def test_an_orphan_to_whom_nobody_can_come_ends_at_once() -> None:
    async with left_behind() as left:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.succession.outlive)
            left.end.close()
        assert left.worker.drains == []


async def test_an_orphan_that_nobody_comes_for_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "PATIENCE", 0.01)
    async with left_behind() as left:
        left.worker.drained.set()
        await left.succession.outlive()
        assert [order.target for order in left.worker.drains] == [EVERYTHING]


async def test_nobody_is_at_home_where_the_worker_has_ended() -> None:
    ours, theirs = channel()
    theirs.close()
    with ours, pytest.raises(WireError):
        knock(ours)


async def test_knocks_that_are_not_heard_are_bounded() -> None:
    ours, theirs = channel()
    wires: list[Wire] = []

    def knock_on() -> None:
        while True:
            wires.append(knock(ours))

    with ours, theirs:
        with pytest.raises(WireError):
            knock_on()
        for wire in wires:
            wire.close()
    assert 1 < len(wires) < 10_000


async def test_no_end_of_a_channel_is_inherited() -> None:
    ends = channel()
    for end in ends:
        assert not end.get_inheritable()
        assert end.type == socket.SOCK_SEQPACKET
        Socket.close(end)
