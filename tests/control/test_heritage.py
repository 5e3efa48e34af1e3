"""What is taken over from predecessors, whatever they say, or do not say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from socket import SocketType
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from proxy.control import predecessor as predecessor_module
from proxy.control.heritage import Heritage
from proxy.control.inherited import Channel
from proxy.control.notify import Notifier
from proxy.control.predecessor import Predecessor
from proxy.control.store import ChannelStore
from proxy.core.flow_state import STATE_VERSION
from proxy.engine.handover.forebears import Forebears
from proxy.engine.handover.succession import VERSION, _next, channel
from proxy.engine.merge import merge_counters
from proxy.engine.specs import Steered
from proxy.engine.wire import Wire, WireError
from tests.engine.lab import PATIENCE

GREETING = {
    "version": VERSION,
    "states": STATE_VERSION,
    "pid": 7,
    "worker": 0,
    "draining": False,
    "estate": {},
    "flows": 3,
    "counters": merge_counters([]),
}
REPORT = {**GREETING, "handed": 3, "flows": 0, "longest": 0.01, "failure": ""}


DEATH = object()
"""In place of an answer: the conversation ends, and another may begin."""


class Puppet:
    """A predecessor that answers what it is told to, and notes what it is asked.

    Attributes:
        answers: what it says to each question, in turn; None says nothing, ever.

    """

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.files: list[int] = []
        ours, self._theirs = channel()
        self.channel = Channel("worker/7", ours)

    async def run(self) -> None:
        self._theirs.setblocking(False)
        end = trio.socket.from_stdlib_socket(self._theirs)
        with end:
            while (socket := await _next(end)) is not None:
                wire = Wire(socket)
                with closing(wire), suppress(WireError):
                    await self._answer(wire)

    async def _answer(self, wire: Wire) -> None:
        while True:
            message = await wire.receive()
            self.asked.append(json.loads(message.body))
            self.files += message.files
            for fd in message.files:
                SocketType(fileno=fd).close()
            if not self.answers:
                raise WireError("over")
            answer = self.answers.pop(0)
            if answer is not None:
                await wire.send(json.dumps(answer).encode())
            if self.answers[:1] == [DEATH]:
                self.answers.pop(0)
                raise WireError("over")

    @property
    def asks(self) -> list[str]:
        return [asked["ask"] for asked in self.asked]


@asynccontextmanager
async def heritage(*puppets: Puppet) -> AsyncIterator[Heritage]:
    store = ChannelStore(Notifier())
    taking = Heritage([puppet.channel for puppet in puppets], store)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for puppet in puppets:
                nursery.start_soon(puppet.run)
            yield taking
            taking.close()
            nursery.cancel_scope.cancel()


async def expect_nothing(sockets: Sequence[SocketType]) -> None:
    assert sockets


@pytest.mark.parametrize(
    "greeting",
    [
        {**GREETING, "version": VERSION + 1},
        {**GREETING, "states": STATE_VERSION + 1},
        {**GREETING, "states": None},
    ],
)
async def test_one_of_another_version_is_told_to_drain(greeting: dict[str, Any]) -> None:
    puppet = Puppet(greeting, {"draining": True})
    with structlog.testing.capture_logs() as logs:
        async with heritage(puppet) as taking:
            await taking.greet()
            taking.prepare(1)
            assert taking.is_empty
            assert taking.is_anybody
            assert taking.rows() == []
            assert puppet.asks == ["greet"], "it goes on until we are there"
            await taking.wait_present()
            await taking.take_over({}, [])
            assert not taking.is_anybody
    assert puppet.asks == ["greet", "drain"]
    assert logs[0]["event"] == "predecessor_left_alone"
    assert "it drains" in logs[0]["reason"]


@pytest.mark.parametrize(
    "greeting",
    [
        [],
        1,
        {},
        {"error": "no"},
        {**GREETING, "pid": "x"},
        {**GREETING, "estate": 3},
        {**GREETING, "worker": float("inf")},
        {**GREETING, "flows": float("inf")},
        {key: GREETING[key] for key in GREETING if key != "flows"},
    ],
)
async def test_one_that_cannot_be_understood_is_left_alone(greeting: object) -> None:
    with structlog.testing.capture_logs() as logs:
        async with heritage(Puppet(greeting)) as taking:
            await taking.greet()
            taking.prepare(2)
            assert taking.is_empty
    assert [row["event"] for row in logs] == ["predecessor_left_alone"]


async def test_one_that_does_not_answer_holds_up_nothing_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predecessor_module, "WORD", 0.01)
    monkeypatch.setattr(Predecessor._ask, "__defaults__", ((), 0.01))
    with structlog.testing.capture_logs() as logs:
        async with heritage(Puppet(None), Puppet(GREETING)) as taking:
            await taking.greet()
            assert [row["pid"] for row in taking.rows()] == [7]
    assert "no answer within" in logs[0]["reason"]


async def test_flows_are_asked_for_when_all_workers_are_there() -> None:
    puppet = Puppet(GREETING, REPORT)
    order = {"web": Steered(2)}
    with structlog.testing.capture_logs() as logs:
        async with heritage(puppet) as taking:
            await taking.greet()
            taking.prepare(2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(taking.introduce, 0, expect_nothing)
                await trio.testing.wait_all_tasks_blocked()
                assert puppet.asks == ["greet"]
                assert nursery.child_tasks, "one waits for the other"
                assert await taking.introduce(1, expect_nothing)
            assert not await taking.introduce(1, expect_nothing), "it was lost; another came"
            await taking.wait_present()
            (report,) = await taking.take_over(order, [11])
    assert (report.handed, report.failure) == (3, "")
    assert puppet.asked[1] == {
        "ask": "leave",
        "order": {"web": [2, 0, 32, 64]},
        "served": [11],
    }
    assert len(puppet.files) == 2
    assert (logs[-1]["event"], logs[-1]["flows"], logs[-1]["pause"]) == ("handed_over", 3, 0.01)


async def test_one_whose_standby_is_in_its_place_is_asked_by_another_conversation() -> None:
    """It was killed since it was greeted; what it was told before it knows no more."""
    puppet = Puppet(GREETING, DEATH, REPORT)
    async with heritage(puppet) as taking:
        await taking.greet()
        taking.prepare(1)
        await taking.introduce(0, expect_nothing)
        await trio.testing.wait_all_tasks_blocked()
        (found,) = await taking.take_over({}, [])
    assert (found.handed, found.failure) == (3, "")
    assert puppet.asks == ["greet", "leave"]


async def test_one_that_refuses_to_hand_over_drains() -> None:
    puppet = Puppet(GREETING, {"error": "an heir is gone"}, {"draining": True})
    with structlog.testing.capture_logs() as logs:
        async with heritage(puppet) as taking:
            await taking.greet()
            taking.prepare(1)
            await taking.introduce(0, expect_nothing)
            (report,) = await taking.take_over({}, [])
    assert (report.handed, report.stayed, report.failure) == (0, 3, "an heir is gone")
    assert puppet.asks == ["greet", "leave", "drain"]
    assert [row["event"] for row in logs] == ["hand_over_refused", "handed_over"]


@pytest.mark.parametrize("reading", [{}, {"flows": "many", "counters": {}}, []])
async def test_one_whose_readings_cannot_be_read_is_not_watched(
    reading: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.control.heritage.WATCHING", 0.0)
    puppet = Puppet({**GREETING, "draining": True}, reading)
    with structlog.testing.capture_logs() as logs:
        async with heritage(puppet) as taking:
            await taking.greet()
            await taking.watch(Forebears(), trio.lowlevel.checkpoint)
            assert taking.rows() == []
    assert [row["event"] for row in logs] == ["predecessor_ended"]


async def test_one_that_drains_already_is_only_watched_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.control.heritage.WATCHING", 0.0)
    row = {"listeners": [], "endpoints": [], "log_dropped": 5, "table_entries": 9}
    reading = {**merge_counters([]), **row}
    draining = {**GREETING, "draining": True, "estate": {"orders": 1}}
    puppet = Puppet(draining, {"flows": 1, "counters": reading})
    forebears = Forebears()
    with structlog.testing.capture_logs() as logs:
        async with heritage(puppet) as taking:
            await taking.greet()
            taking.prepare(1)
            assert taking.is_empty
            assert taking.estate == {}
            assert taking.rows() == [{"pid": 7, "flows": 3, "draining": True}]
            await taking.watch(forebears, trio.lowlevel.checkpoint)
            assert taking.rows() == []
    assert [row["event"] for row in logs] == ["predecessor_ended"]
    total = forebears.added_to(merge_counters([]))
    assert (total["log_dropped"], total["table_entries"]) == (5, 0)


def test_who_drains_has_no_part_in_our_table() -> None:
    forebears = Forebears()
    assert forebears.remember("x", {**merge_counters([]), "log_dropped": 5, "table_entries": 9})
    total = forebears.added_to(merge_counters([]))
    assert (total["log_dropped"], total["table_entries"]) == (5, 0)


def test_those_that_have_ended_are_one_reading_however_many_there_were() -> None:
    """Or each life would hand on more to the next than it got."""
    forebears = Forebears()
    for number in range(20):
        assert forebears.remember(f"past {number}", {**merge_counters([]), "log_dropped": number})
        forebears.settle(f"past {number}")
    assert forebears.remember("living", {**merge_counters([]), "log_dropped": 1000})
    assert [each["log_dropped"] for each in forebears.readings()] == [1000, 190]
    assert forebears.added_to(merge_counters([]))["log_dropped"] == 1190


async def test_predecessors_are_told_when_all_ends() -> None:
    puppet = Puppet(GREETING, {"ending": True})
    async with heritage(puppet) as taking:
        await taking.greet()
        await taking.end()
        assert taking.rows() == []
    assert puppet.asks == ["greet", "end"]


async def test_counters_that_cannot_be_read_are_left_out() -> None:
    forebears = Forebears()
    for reading in (None, {}, [], {"listeners": [{}]}, {**merge_counters([]), "routes": [1]}):
        assert not forebears.remember("x", reading)
    assert forebears.readings() == []
