"""Errands are gone on with after a round of the pump: for a moment, or for a part of its time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import trio
import trio.testing

from proxy.engine import errands
from proxy.engine.alarms import Alarms
from proxy.engine.errands import PART, SHORTEST, Errands

STEP = SHORTEST / 3


class Clock:
    """Goes on by as much as is said."""

    def __init__(self) -> None:
        self.now = 1000.0

    def steps(self, many: int) -> Iterator[int]:
        """Steps of an errand that take their time."""
        for number in range(many):
            self.now += STEP
            yield number


class House:
    """Errands, and rounds of a pump that take as long as is said."""

    def __init__(self, clock: Clock) -> None:
        self.alarms = Alarms()
        self.errands = Errands(self.alarms)
        self.clock = clock

    def round(self, seconds: float = 0.0) -> None:
        """Make a round."""
        began = self.clock.now
        self.clock.now += seconds
        if self.alarms.next <= began:
            self.alarms.ring(began)

    async def rounds(self) -> None:
        """Make rounds until cancelled."""
        while True:
            self.round()
            await trio.lowlevel.checkpoint()


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    clock = Clock()
    monkeypatch.setattr(errands, "monotonic", lambda: clock.now)
    return House(clock)


async def begin(nursery: trio.Nursery, house: House, steps: Iterator[int]) -> None:
    """Give an errand, and let whoever gave it wait for it."""
    nursery.start_soon(house.errands.run, steps)
    await trio.testing.wait_all_tasks_blocked()


async def test_what_the_steps_made_comes_back_in_their_order(house: House) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.rounds)
        assert await house.errands.run(house.clock.steps(100)) == list(range(100))
        assert await house.errands.run(()) == []
        nursery.cancel_scope.cancel()


async def test_a_piece_is_short_and_longer_only_after_a_long_round(house: House) -> None:
    clock = house.clock
    async with trio.open_nursery() as nursery:
        await begin(nursery, house, clock.steps(10**6))
        for seconds in (0.0, 0.001, 0.01):
            before = clock.now
            house.round(seconds)
            piece = clock.now - before - seconds
            assert piece == pytest.approx(max(SHORTEST, PART * seconds), abs=1.5 * STEP)
        nursery.cancel_scope.cancel()


async def test_several_share_one_part_and_take_turns(house: House) -> None:
    order: list[str] = []

    def steps(name: str) -> Iterator[int]:
        for number in house.clock.steps(10**6):
            order.append(name)
            yield number

    async with trio.open_nursery() as nursery:
        for name in ("one", "other"):
            await begin(nursery, house, steps(name))
        for turn in ("one", "other", "one"):
            order.clear()
            house.round()
            assert set(order) == {turn}
            assert len(order) == pytest.approx(SHORTEST / STEP, abs=1)
        nursery.cancel_scope.cancel()


async def test_a_step_that_fails_is_the_fault_of_whoever_asked(house: House) -> None:
    def failing() -> Iterator[int]:
        yield from house.clock.steps(4)
        raise LookupError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.rounds)
        done: list[list[int]] = []

        async def another() -> None:
            done.append(await house.errands.run(house.clock.steps(20)))

        nursery.start_soon(another)
        with pytest.raises(LookupError):
            await house.errands.run(failing())
        while not done:
            await trio.lowlevel.checkpoint()
        assert done == [list(range(20))]
        nursery.cancel_scope.cancel()


async def test_nothing_is_done_for_who_waits_no_more(house: House) -> None:
    endless = count()
    with trio.move_on_after(0):
        await house.errands.run(endless)
    house.round()
    assert next(endless) == 0
    assert house.alarms.next == float("inf")
