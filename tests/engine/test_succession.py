"""The succession channel: who knocks is answered, whatever the one before did."""

from __future__ import annotations

import gc
import json
import os
import socket
from array import array
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager, closing
from socket import SCM_RIGHTS, SOL_SOCKET, SocketType
from socket import socket as Socket
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from proxy.core.pace import Pace
from proxy.engine.handover import succession
from proxy.engine.handover.leaving import Left
from proxy.engine.handover.succession import (
    KNOCK,
    VERSION,
    Succession,
    channel,
    knock,
    write_leave_order,
)
from proxy.engine.handover.transfer import HandOverError
from proxy.engine.specs import EVERYTHING, DrainOrder, LeaveOrder, Steered
from proxy.engine.wire import Wire, WireError
from proxy.engine.worker import open_files
from tests.engine.lab import PATIENCE


class FakeWorker:
    """A worker with three flows, which end when a test says so."""

    def __init__(self) -> None:
        self.drains: list[DrainOrder] = []
        self.drained = trio.Event()
        self.left: list[tuple[LeaveOrder, int]] = []
        self.outcome: Left | HandOverError = Left(3, 0.01)
        self.settled = 0

    async def leave(
        self,
        order: LeaveOrder,
        heirs: Sequence[SocketType],
        *,
        served: Container[int] | None = None,
    ) -> Left:
        self.left.append((order, len(heirs)))
        if isinstance(self.outcome, HandOverError):
            raise self.outcome
        return self.outcome

    async def counters(self, *, former: bool = False) -> Any:
        assert former
        return {"listeners": []}

    async def status(self) -> Any:
        return {"flows": 3}

    async def settle(self) -> None:
        assert not self.drains, "what may come back is not drained before"
        self.settled += 1

    async def drain(self, order: DrainOrder) -> bool:
        self.drains.append(order)
        return True

    async def wait_drained(self) -> None:
        await self.drained.wait()


class LeftBehind:
    """A worker that was left behind, and our end of its channel."""

    def __init__(self) -> None:
        self.end, theirs = channel()
        self.worker = FakeWorker()
        self.succession = Succession(theirs, self.worker, (1, 2))


def files_in_use() -> int:
    """Descriptors that are open, without those that are only waiting to be collected."""
    gc.collect()
    return open_files()


@asynccontextmanager
async def left_behind() -> AsyncIterator[LeftBehind]:
    left = LeftBehind()
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
        first._socket.send(b"\0\0")
        first.close()
        with closing(knock(left.end)) as second:
            assert (await ask(second, {"ask": "greet"}))["version"] == VERSION


async def test_who_comes_next_is_answered_while_the_one_before_still_looks_after_us() -> None:
    async with left_behind() as left:
        with closing(knock(left.end)) as before, closing(knock(left.end)) as after:
            for wire in (before, after, before, after):
                assert (await ask(wire, {"ask": "counters"}))["flows"] == 3


async def test_conversations_are_bounded_and_who_is_too_many_has_a_turn_later() -> None:
    async with left_behind() as left:
        wires = [knock(left.end) for _ in range(succession.CONVERSATIONS)]
        for wire in wires:
            await ask(wire, {"ask": "greet"})
        with closing(knock(left.end)) as late:
            with trio.move_on_after(0.05) as waiting:
                await ask(late, {"ask": "greet"})
            assert waiting.cancelled_caught
            wires.pop().close()
            assert json.loads((await late.receive()).body)["flows"] == 3
        for wire in wires:
            wire.close()


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b"1", b'{"ask": "dance"}', b'{"ask": []}', b"[" * 100_000]
)
async def test_what_is_not_understood_is_answered(body: bytes) -> None:
    async with left_behind() as left:
        with closing(knock(left.end)) as wire:
            await wire.send(body)
            assert "error" in json.loads((await wire.receive()).body)
            assert (await ask(wire, {"ask": "greet"}))["version"] == VERSION


async def test_descriptors_that_are_no_sockets_end_no_more_than_the_conversation() -> None:
    async with left_behind() as left:
        before = files_in_use()
        for fd in (pipe := os.pipe()):
            rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", [fd]))]
            left.end.sendmsg([KNOCK], rights)
            with closing(knock(left.end)) as wire:
                await wire.send(b'{"ask": "leave"}', [fd])
                with pytest.raises(WireError):
                    await wire.receive()
        for fd in pipe:
            os.close(fd)
        with closing(knock(left.end)) as wire:
            assert (await ask(wire, {"ask": "greet"}))["version"] == VERSION
        await trio.testing.wait_all_tasks_blocked()
        assert files_in_use() == before


async def test_other_packets_and_further_descriptors_are_closed_and_nothing_follows() -> None:
    async with left_behind() as left:
        before = files_in_use()
        for data, count in ((b"x", 0), (b"x", 1), (KNOCK, 0), (KNOCK, 2)):
            pipe = os.pipe()
            rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", pipe[:count]))] if count else []
            left.end.sendmsg([data], rights)
            for fd in pipe:
                os.close(fd)
        with closing(knock(left.end)) as wire:
            await ask(wire, {"ask": "greet"})
            assert files_in_use() == before + 2  # both ends of this conversation


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


async def leave(left: LeftBehind, order: object, heirs: int = 1) -> Any:
    """Ask to hand over to so many heirs."""
    with closing(knock(left.end)) as wire:
        pairs = [socket.socketpair() for _ in range(heirs)]
        question = json.dumps({"ask": "leave", "order": order}).encode()
        await wire.send(question, [theirs.fileno() for _, theirs in pairs])
        answer = json.loads((await wire.receive()).body)
        for pair in pairs:
            for end in pair:
                end.close()
        return answer


async def settle(left: LeftBehind) -> Any:
    """Say that the heirs stay."""
    with closing(knock(left.end)) as wire:
        return await ask(wire, {"ask": "settle"})


async def test_flows_are_handed_over_as_the_successor_says_and_the_rest_drains() -> None:
    order = {"web": Steered(2, 0, 24, 56), "alone": Steered(1, 1)}
    async with left_behind() as left:
        answer = await leave(left, write_leave_order(order), heirs=2)
        assert left.worker.left == [(order, 2)]
        assert left.worker.drains == [], "the heirs may yet die"
        assert "counters" in await settle(left)
        assert left.worker.settled == 1
        assert [each.target for each in left.worker.drains] == [EVERYTHING]
        with closing(knock(left.end)) as wire:
            assert (await ask(wire, {"ask": "greet"}))["draining"] is True
    assert (answer["handed"], answer["longest"], answer["failure"]) == (3, 0.01, "")
    assert (answer["flows"], answer["counters"]) == (3, {"listeners": []})


async def test_who_could_not_hand_over_all_waits_for_the_next_one() -> None:
    async with left_behind() as left:
        left.worker.outcome = Left(1, 0.01, "the heir is gone")
        assert (await leave(left, {}))["failure"] == "the heir is gone"
        left.worker.outcome = HandOverError("the heir does not acknowledge")
        assert await leave(left, {}) == {"error": "the heir does not acknowledge"}
        await settle(left)
        assert left.worker.drains == []
        left.worker.outcome = Left(2)
        await leave(left, {})
        await settle(left)
        assert len(left.worker.drains) == 1


@pytest.mark.parametrize(
    "order",
    [
        None,
        [],
        {"web": 1},
        {"web": [1, 0, 32]},
        {"web": [1, 0, 32, "64"]},
        {"web": [1, 0, 32, True]},
        {"web": [2, 0, 32, 64]},
        {"web": [1, 1, 32, 64]},
        {"web": [1, -1, 32, 64]},
        {"web": [0, 0, 32, 64]},
        {"web": [1, 0, 33, 64]},
        {"web": [1, 0, 32, 129]},
    ],
)
async def test_an_order_that_is_none_changes_nothing(order: object) -> None:
    before = files_in_use()
    async with left_behind() as left:
        assert "error" in await leave(left, order)
        assert left.worker.left == []
        assert left.worker.drains == []
    assert files_in_use() == before


async def test_an_orphan_ends_when_its_successor_says_so() -> None:
    async with left_behind() as left:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.succession.outlive)
            with closing(knock(left.end)) as wire:
                assert await ask(wire, {"ask": "end"}) == {"ending": True}
        await left.succession.wait_ended()
        assert not left.worker.drained.is_set()
