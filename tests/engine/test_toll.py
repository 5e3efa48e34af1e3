"""Tolls: whoever is under an order and a listener's ceiling has what both grant, and all of that.

The clock is the test's own. Legs are replaced by movers that do with a meter what a leg does.
"""

from __future__ import annotations

from math import inf

import pytest

from proxy.core.ceiling import ShapeRates, shaping_rate
from proxy.engine.alarms import Alarms
from proxy.engine.throttle import Meter, Throttle
from proxy.engine.toll import Toll

FAST = 1_000_000
SLOW = 250_000

HUNGRY = 1 << 30


class Mover:
    """Moves so many bytes whenever it looks, as far as its meter lets it."""

    def __init__(self, appetite: int) -> None:
        self.appetite = appetite
        self.meter: Meter | None = None
        self.held_back = False
        self.moved = 0

    def look(self, now: float) -> None:
        assert self.meter is not None
        left = self.appetite
        while left and not self.held_back:
            grant = self.meter.ask(now)
            if not grant:
                assert self.meter.in_line
                self.held_back = True
            else:
                left -= self._move(min(grant, left), now)

    def granted(self, grant: int, now: float) -> None:
        """Its turn has come."""
        assert self.meter is not None
        if not self.held_back:  # nothing is there for it
            self.meter.spent(0, now)
            return
        self._move(min(grant, self.appetite), now)
        self.held_back = self.appetite == HUNGRY and self.meter.in_line

    def _move(self, size: int, now: float) -> int:
        assert self.meter is not None
        self.moved += size
        self.meter.spent(size, now)
        return size


class Scene:
    """Throttles, and movers that look every two milliseconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.alarms = Alarms()
        self.movers: list[Mover] = []

    def throttle(self, per_second: float | None) -> Throttle:
        rate = None if per_second is None else shaping_rate(per_second)
        return Throttle(self.alarms, ShapeRates(listener=rate), self.now)

    def mover(self, appetite: int, *throttles: Throttle) -> Mover:
        """One that asks these, the last of them first."""
        mover = Mover(appetite)
        listener, *orders = throttles
        mover.meter = listener.meter(mover, "source", self.now)  # type: ignore[arg-type]
        for order in orders:
            mover.meter = Toll(order, mover, mover.meter, "source", self.now)  # type: ignore[arg-type]
        self.movers.append(mover)
        return mover

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 500)):
            self.now += 0.002
            self.alarms.ring(self.now)
            for mover in self.movers:
                mover.look(self.now)


@pytest.mark.parametrize(
    ("listener", "orders"),
    [
        (None, [SLOW]),
        (FAST, [SLOW]),
        (SLOW, [FAST]),
        (SLOW, [SLOW]),
        (FAST, [SLOW, FAST]),
        (FAST, [FAST, SLOW]),
        (SLOW, [SLOW, SLOW]),
    ],
)
@pytest.mark.parametrize("count", [1, 5])
async def test_all_that_the_strictest_grants_is_moved_and_no_more(
    listener: float | None, orders: list[float], count: int
) -> None:
    scene = Scene()
    throttles = [scene.throttle(each) for each in (listener, *orders)]
    movers = [scene.mover(HUNGRY, *throttles) for _ in range(count)]
    scene.pass_time(4.0)
    least = min(each for each in (listener, *orders) if each is not None)
    moved = sum(mover.moved for mover in movers)
    assert 0.97 * 4 * least <= moved <= 4 * least + shaping_rate(least).burst
    assert min(mover.moved for mover in movers) >= 0.8 * moved / count


async def test_who_is_under_no_order_has_what_the_others_leave() -> None:
    scene = Scene()
    listener, order = scene.throttle(FAST), scene.throttle(SLOW)
    under = [scene.mover(HUNGRY, listener, order) for _ in range(3)]
    free = scene.mover(HUNGRY, listener)
    scene.pass_time(4.0)
    assert sum(each.moved for each in under) <= 4 * SLOW + shaping_rate(SLOW).burst
    everything = free.moved + sum(each.moved for each in under)
    assert 0.97 * 4 * FAST <= everything <= 4 * FAST + shaping_rate(FAST).burst


async def test_what_was_paid_and_not_moved_is_paid_back() -> None:
    scene = Scene()
    listener, order = scene.throttle(None), scene.throttle(SLOW)
    trickles = [scene.mover(1, listener, order) for _ in range(20)]
    hungry = scene.mover(HUNGRY, listener, order)
    scene.pass_time(4.0)
    assert hungry.moved + sum(each.moved for each in trickles) >= 0.97 * 4 * SLOW
    assert min(each.moved for each in trickles) > 500


async def test_who_is_freed_is_told_by_the_listener_again() -> None:
    scene = Scene()
    listener, order = scene.throttle(SLOW), scene.throttle(FAST)
    mover = scene.mover(HUNGRY, listener, order)
    scene.pass_time(1.0)
    toll = mover.meter
    assert isinstance(toll, Toll)
    mover.meter = toll.lift(scene.now)
    assert mover.meter is toll.inner is not None
    mover.meter.tell(mover)
    mover.held_back = False
    before = mover.moved
    scene.pass_time(2.0)
    assert 0.97 * 2 * SLOW <= mover.moved - before <= 2 * SLOW + shaping_rate(SLOW).burst
    mover.meter.leave()
    scene.movers.clear()
    scene.pass_time(0.1)
    assert scene.alarms.next == inf


class Granting:
    """A meter whose grants are the test's."""

    throttle = None
    in_line = False

    def __init__(self) -> None:
        self.spends: list[int] = []

    def tell(self, owner: object) -> None:
        """It never calls."""

    def ask(self, now: float) -> int:
        return 1 << 20

    def spent(self, size: int, now: float) -> None:
        self.spends.append(size)


async def test_a_turn_at_the_listener_is_given_back_when_the_order_has_nothing() -> None:
    scene = Scene()
    order = scene.throttle(SLOW)
    scene.mover(HUNGRY, scene.throttle(None), order)
    scene.pass_time(0.1)  # it takes all that there is
    inner, mover = Granting(), Mover(HUNGRY)
    toll = Toll(order, mover, inner, "other", scene.now)  # type: ignore[arg-type]
    mover.meter, mover.held_back = toll, True
    toll.granted(5000, scene.now)
    assert (inner.spends, mover.moved) == ([0], 0)
    scene.pass_time(0.5)  # now it has its turn at the order, and the inner meter allows all
    assert mover.moved == sum(inner.spends) > 0
