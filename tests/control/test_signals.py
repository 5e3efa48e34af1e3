"""What signals do to the house."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import structlog.testing
import trio
import trio.testing

from proxy.control.notify import Notifier
from proxy.control.signals import obey_signals
from proxy.engine.specs import EVERYTHING
from tests.e2e.patience import PATIENCE


class FakeHouse:
    """A house, its worker and its steward in one: it notes what it is told."""

    def __init__(self) -> None:
        self.worker = self.config = self.engine = self.heritage = self
        self.drain_timeout, self.drain_spread = 30.0, 10.0
        self.notifier = Notifier()
        self.told: list[object] = []
        self.drained = trio.Event()
        self.succeeded, self.released = trio.Event(), trio.Event()
        self.answered = trio.Event()
        self.may_reload = trio.Event()
        self.may_reload.set()

    async def status(self) -> dict[str, int]:
        return {"flows": 3}

    async def drain(self, target: object) -> bool:
        self.told.append(target)
        return True

    async def wait_drained(self) -> None:
        await self.drained.wait()

    async def wait_ended(self) -> None:
        pass

    async def reload(self, by: str) -> None:
        self.told.append(by)
        await self.may_reload.wait()

    async def wait_told(self, count: int) -> None:
        while len(self.told) < count:
            await trio.lowlevel.checkpoint()


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
async def house(nursery: trio.Nursery) -> AsyncIterator[FakeHouse]:
    with trio.fail_after(PATIENCE):
        yield FakeHouse()


async def obeying(house: FakeHouse, then: Callable[[], Any]) -> None:
    """Obey signals until it is time to end; meanwhile do something."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey_signals, cast("Any", house), cast("Any", house))
        while signal.getsignal(signal.SIGHUP) in {signal.SIG_DFL, signal.SIG_IGN}:
            await trio.lowlevel.checkpoint()
        await then()


async def test_a_hangup_reloads_and_ends_nothing(house: FakeHouse) -> None:
    async def hang_up() -> None:
        send(signal.SIGHUP)
        await house.wait_told(1)
        assert house.told == ["SIGHUP"]
        house.drained.set()
        send(signal.SIGTERM)

    await obeying(house, hang_up)
    assert house.told == ["SIGHUP", EVERYTHING]


async def test_many_hangups_during_a_reload_are_one_more(house: FakeHouse) -> None:
    async def hang_up_often() -> None:
        house.may_reload = trio.Event()
        send(signal.SIGHUP)
        await house.wait_told(1)
        for _ in range(10):
            send(signal.SIGHUP)
            await trio.testing.wait_all_tasks_blocked()
        assert house.told == ["SIGHUP"]
        house.may_reload.set()
        await house.wait_told(2)
        await trio.testing.wait_all_tasks_blocked()
        assert house.told == ["SIGHUP", "SIGHUP"]
        house.drained.set()
        send(signal.SIGTERM)

    await obeying(house, hang_up_often)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_ends_when_everything_has_drained(
    house: FakeHouse, number: signal.Signals
) -> None:
    async def stop() -> None:
        send(number)
        await house.wait_told(1)
        send(signal.SIGHUP)
        await trio.testing.wait_all_tasks_blocked()
        house.drained.set()
        await trio.testing.wait_all_tasks_blocked()
        house.answered.set()

    with structlog.testing.capture_logs() as logs:
        await obeying(house, stop)
    assert house.told == [EVERYTHING]
    assert [record["event"] for record in logs] == ["stopping", "reload_refused"]
    assert (logs[0]["reason"], logs[0]["flows"]) == (number.name, 3)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_stop_ends_at_once(
    house: FakeHouse, first: signal.Signals, second: signal.Signals
) -> None:
    async def stop_twice() -> None:
        send(first)
        await house.wait_told(1)
        await trio.testing.wait_all_tasks_blocked()
        send(second)

    await obeying(house, stop_twice)
    assert not house.drained.is_set()


async def test_nobody_leaves_for_a_successor_that_cannot_come(house: FakeHouse) -> None:
    async def leave_and_stop() -> None:
        send(signal.SIGUSR2)
        await trio.testing.wait_all_tasks_blocked()
        assert house.told == []
        house.drained.set()
        send(signal.SIGTERM)

    with structlog.testing.capture_logs() as logs:
        await obeying(house, leave_and_stop)
    assert house.told == [EVERYTHING]
    assert [record["event"] for record in logs] == ["leave_refused", "stopping"]


async def test_who_has_a_successor_ends_with_its_last_flow(house: FakeHouse) -> None:
    async def be_succeeded() -> None:
        house.succeeded.set()
        await trio.testing.wait_all_tasks_blocked()
        house.drained.set()
        await trio.testing.wait_all_tasks_blocked()
        house.answered.set()

    await obeying(house, be_succeeded)
    assert house.told == []


async def test_who_has_a_successor_ends_when_that_says_so(house: FakeHouse) -> None:
    async def be_released() -> None:
        house.succeeded.set()
        house.released.set()
        house.answered.set()

    await obeying(house, be_released)
    assert house.told == []
