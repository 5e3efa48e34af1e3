"""Alarms wake the pump for what no socket tells."""

from __future__ import annotations

from math import inf

import trio

from proxy.engine.alarms import Alarms
from proxy.engine.pump import Pump
from tests.engine.test_pump import pumping


class Clock:
    """Notes when it is woken, and may set the next alarm then."""

    def __init__(self, alarms: Alarms, *, every: float = inf) -> None:
        self.alarm = inf
        self.woken: list[float] = []
        self.errors: list[Exception] = []
        self._alarms = alarms
        self._every = every

    def wake(self, now: float) -> None:
        self.woken.append(now)
        self._alarms.set(self, now + self._every)

    def crashed(self, error: Exception, now: float) -> None:
        self.errors.append(error)


async def test_each_rings_at_its_moment_and_once() -> None:
    alarms = Alarms()
    early, late = Clock(alarms), Clock(alarms)
    alarms.set(late, 2.0)
    alarms.set(early, 1.0)
    assert alarms.next == 1.0
    alarms.ring(1.5)
    assert (early.woken, late.woken, alarms.next) == ([1.5], [], 2.0)
    alarms.ring(2.0)
    alarms.ring(3.0)
    assert (early.woken, late.woken, alarms.next) == ([1.5], [2.0], inf)


async def test_another_moment_takes_the_place_of_the_first() -> None:
    alarms = Alarms()
    later, sooner, never = Clock(alarms), Clock(alarms), Clock(alarms)
    for clock in (later, sooner, never):
        alarms.set(clock, 2.0)
    alarms.set(later, 3.0)
    alarms.set(sooner, 1.0)
    alarms.set(never, inf)
    alarms.ring(1.0)
    assert (later.woken, sooner.woken) == ([], [1.0])
    alarms.ring(2.0)
    assert later.woken == []
    alarms.ring(3.0)
    assert (later.woken, sooner.woken, never.woken) == ([3.0], [1.0], [])


async def test_one_that_fails_holds_up_nobody() -> None:
    alarms = Alarms()
    faulty, sound = Clock(alarms), Clock(alarms)
    faulty.woken = None  # type: ignore[assignment]
    for clock in (faulty, sound):
        alarms.set(clock, 1.0)
    alarms.ring(1.0)
    assert len(faulty.errors) == 1
    assert sound.woken == [1.0]


async def test_the_pump_sleeps_no_longer_than_the_next_alarm() -> None:
    pump = Pump()
    clock = Clock(pump.alarms, every=0.001)
    pump.alarms.set(clock, 0.0)
    async with pumping(pump):
        while len(clock.woken) < 20:
            await trio.sleep(0.01)
