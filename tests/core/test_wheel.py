"""The timer wheel against a naive model: a dictionary of deadlines, searched at every advance."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.core.wheel import HORIZON, QUIET, Slot, TimerWheel

TICK = 0.05


class Item:
    def __init__(self, name: int) -> None:
        self.name = name
        self.slot: Slot | None = None

    def expire(self, now: float) -> None:
        raise AssertionError("the wheel's owner expires items, never the wheel itself")

    def crashed(self, error: Exception, now: float) -> None:
        raise AssertionError("the same", error)


class WheelModel(RuleBasedStateMachine):
    """Delays from nothing to beyond the horizon; advances from nothing to a suspended night."""

    @initialize(start=st.floats(0, 1e6))
    def begin(self, start: float) -> None:
        self.now = start
        self.wheel = TimerWheel(start, TICK)
        self.items = [Item(name) for name in range(12)]
        self.deadlines: dict[Item, float] = {}

    @rule(
        which=st.integers(0, 11),
        delay=st.one_of(
            st.floats(-1, 4), st.floats(0, 300), st.floats(0, 20000), st.floats(0, HORIZON * TICK)
        ),
    )
    def schedule(self, which: int, delay: float) -> None:
        item = self.items[which]
        self.wheel.schedule(item, self.now + delay)
        self.deadlines[item] = self.now + delay

    @rule(which=st.integers(0, 11))
    def cancel(self, which: int) -> None:
        self.wheel.cancel(self.items[which])
        self.deadlines.pop(self.items[which], None)

    @rule(
        step=st.one_of(st.floats(0, 0.2), st.floats(0, 5), st.floats(0, 400), st.floats(0, 90000)),
        most=st.none() | st.integers(1, 4),
    )
    def advance(self, step: float, most: int | None) -> None:
        before = self.now
        self.now += step
        due = self.wheel.advance(self.now, most)
        assert most is None or len(due) <= most
        for item in due:
            deadline = self.deadlines.pop(item)
            assert deadline <= self.now + 1e-6, "early"
            assert item.slot is None
        if most is not None and len(due) == most:
            return  # the others are for the next call
        for deadline in self.deadlines.values():
            # Late by less than a tick; one that was overdue when scheduled has a whole tick.
            assert max(deadline, before) > self.now - 2 * TICK, "late"

    @invariant()
    def counts_its_items(self) -> None:
        assert len(self.wheel) == len(self.deadlines)


TestWheelModel = WheelModel.TestCase
TestWheelModel.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 500), min_size=1, max_size=30))
def test_every_item_comes_due_exactly_once_tick_by_tick(delays: list[float]) -> None:
    wheel = TimerWheel(0.0, TICK)
    for name, delay in enumerate(delays):
        wheel.schedule(Item(name), delay)
    seen: list[int] = []
    for tick in range(int(501 / TICK)):
        for item in wheel.advance(tick * TICK):
            assert isinstance(item, Item)
            assert -1e-6 <= tick * TICK - delays[item.name] < 2 * TICK  # a tick, and its rounding
            seen.append(item.name)
    assert sorted(seen) == list(range(len(delays)))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 40), st.one_of(st.floats(-1, 4), st.floats(0, 60)))))
def test_an_owner_who_sleeps_while_it_is_quiet_is_never_late(
    plans: list[tuple[float, float]],
) -> None:
    """Plans are when an item is scheduled, and how much later it comes due."""
    wheel, now, left = TimerWheel(0.0, TICK), 0.0, {}
    coming = sorted(plans, reverse=True)
    woken: list[bool] = []
    wheel.sooner = lambda: woken.append(True)
    alarm = wheel.quiet(now)
    while coming or left:
        if coming and coming[-1][0] < alarm:
            now, delay = coming.pop()
            item = Item(len(coming))
            left[item] = now, now + delay
            wheel.schedule(item, now + delay)
            if woken:
                woken.clear()
                alarm = now + wheel.quiet(now)
            continue
        now = alarm + 1e-6  # nobody awakes on the dot
        for item in wheel.advance(now):
            assert isinstance(item, Item)
            scheduled, deadline = left.pop(item)
            assert now - deadline >= -1e-6
            assert now - max(scheduled, deadline) < 2 * TICK
        alarm = now + wheel.quiet(now)


def test_who_has_nothing_to_do_awakes_seldom() -> None:
    wheel, awake = TimerWheel(0.0, TICK), 0
    wheel.schedule(Item(0), 3600.0)
    now = 0.0
    while not wheel.advance(now):
        now += wheel.quiet(now) + 1e-6
        awake += 1
    assert awake <= 2 * 3600 / (QUIET * TICK)


def test_what_is_due_and_not_taken_yet_is_no_time_to_sleep() -> None:
    wheel = TimerWheel(0.0, TICK)
    for name in range(2):
        wheel.schedule(Item(name), TICK)
    assert len(wheel.advance(2 * TICK, 1)) == 1
    assert wheel.quiet(2 * TICK) == 0


def test_a_deadline_beyond_the_horizon_is_kept() -> None:
    wheel = TimerWheel(0.0, 1.0)
    item = Item(0)
    wheel.schedule(item, HORIZON * 3.0)
    assert wheel.advance(HORIZON * 2.0) == []
    assert wheel.advance(HORIZON * 3.0 - 1) == []
    assert wheel.advance(HORIZON * 3.0) == [item]


def test_what_is_due_and_not_taken_yet_can_be_cancelled_or_put_off() -> None:
    wheel = TimerWheel(0.0, 1.0)
    items = [Item(name) for name in range(4)]
    for item in items:
        wheel.schedule(item, 1.0)
    assert wheel.advance(2.0, 1) == items[:1]
    wheel.cancel(items[1])
    wheel.schedule(items[2], 5.0)
    assert wheel.advance(2.0, 5) == items[3:]
    assert wheel.advance(6.0, 5) == [items[2]]
    assert len(wheel) == 0
