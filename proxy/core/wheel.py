"""A hierarchical timer wheel: many deadlines, O(1) for each change, nothing done when one moves.

Time is cut into ticks. Level 0 has a slot for each of the next ``SLOTS`` ticks; a slot of level 1
covers as many ticks as level 0 has slots, and so on. When level 0 has turned once, the next slot
of level 1 is dealt out into it (a *cascade*).

Idle deadlines move with every byte, and the wheel is not told: an item that comes due is asked by
its owner whether it really is, and is scheduled again if not. So a busy flow costs the wheel one
visit per timeout, not one per event. A flow that ends is cancelled at once, because a wheel that
kept it until its deadline would hold hours of dead flows.

What has come due waits in a slot of its own until the owner takes it, some at a time: thousands of
flows that were opened together are due together, and each of them takes microseconds. There it can
be cancelled like anywhere else.

The owner may sleep as long as ``quiet`` says, and is told if something is scheduled that comes due
before: who has nothing to do does not have to be awake for each tick.

Units: seconds outside, ticks inside. An item is never due early, and late by less than two ticks
plus the time for which ``advance`` was not called though something was due.

Source: G. Varghese and T. Lauck, "Hashed and hierarchical timing wheels" (1987), scheme 7.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from math import ceil
from typing import Final, Protocol, TypeAlias

SLOT_BITS: Final = 6
SLOTS: Final = 1 << SLOT_BITS
LEVELS: Final = 4
HORIZON: Final = 1 << (SLOT_BITS * LEVELS)
"""Ticks; a deadline beyond it waits in the last slot and is dealt out again (9.7 days at 50 ms)."""

QUIET: Final = SLOTS // 2
"""Ticks that an owner may sleep at most; far fewer than those after which all is sorted anew."""

Slot: TypeAlias = "dict[Timed, int]"
"""The items of a slot, in the order they came, with the tick each is due at."""


class Timed(Protocol):
    """What can be scheduled; ``slot`` belongs to the wheel, and is None outside it."""

    slot: Slot | None

    def expire(self, now: float) -> None:
        """Act on the deadline, or schedule anew if it has moved; called by the wheel's owner."""
        ...

    def crashed(self, error: Exception, now: float) -> None:
        """Take the consequences: ``expire`` raised."""
        ...


class TimerWheel:
    """Deadlines of any number of items, each item at most once.

    Args:
        now: monotonic seconds at the start.
        tick: resolution in seconds.

    Attributes:
        sooner: called when something comes due before the end of what ``quiet`` said last.

    """

    def __init__(self, now: float, tick: float = 0.05) -> None:
        self.tick = tick
        self.sooner: Callable[[], None] = _nobody_sleeps
        self._start = now
        self._ticks = 0  # every slot up to and including this tick has been emptied
        self._levels: list[list[Slot]] = [[{} for _ in range(SLOTS)] for _ in range(LEVELS)]
        self._due: Slot = {}
        self._count = 0
        self._awaited = 0  # the tick that the owner sleeps until

    def __len__(self) -> int:
        return self._count

    def schedule(self, item: Timed, deadline: float) -> None:
        """Have the item come due at ``deadline``, in place of any earlier arrangement."""
        if item.slot is not None:
            self.cancel(item)
        ticks = self._ticks
        due_tick = ceil((deadline - self._start) / self.tick)
        if due_tick <= ticks:
            due_tick = ticks + 1
        if due_tick - ticks < SLOTS:  # as `_place` would, without the way there
            item.slot = slot = self._levels[0][due_tick % SLOTS]
            slot[item] = due_tick
            if due_tick < self._awaited:
                self._awaited = due_tick
                self.sooner()
        else:
            self._place(item, due_tick)
        self._count += 1

    def cancel(self, item: Timed) -> None:
        """Forget the item's deadline; harmless if it has none."""
        if item.slot is not None:
            del item.slot[item]
            item.slot = None
            self._count -= 1

    def quiet(self, now: float) -> float:
        """Seconds from now in which nothing comes due of what is scheduled; none left if late.

        Nothing is looked for beyond the next cascade, which may deal out anything.
        """
        if self._due:
            return 0.0
        slots, ticks = self._levels[0], self._ticks
        end = min(ticks + QUIET, (ticks | SLOTS - 1) + 1)
        following = range(ticks + 1, end)
        self._awaited = next((tick for tick in following if slots[tick % SLOTS]), end)
        return max(0.0, self._start + self._awaited * self.tick - now)

    def advance(self, now: float, most: int | None = None) -> list[Timed]:
        """Go on to ``now`` and return items that are due, ``most`` at most; they leave the wheel.

        If as many are returned there may be more, for the next call.
        """
        self._awaited = 0
        target = int((now - self._start) / self.tick)
        if target - self._ticks > SLOTS:
            self._jump(target)
        while self._ticks < target:
            self._step()
        taken = list(islice(self._due, most))
        for item in taken:
            del self._due[item]
            item.slot = None
        self._count -= len(taken)
        return taken

    def _step(self) -> None:
        self._ticks += 1
        for level in range(1, LEVELS):
            if self._ticks & ((1 << (SLOT_BITS * level)) - 1):
                break
            self._cascade(level)
        slot = self._levels[0][self._ticks % SLOTS]
        for item in slot:
            item.slot = self._due
        self._due.update(slot)
        slot.clear()

    def _cascade(self, level: int) -> None:
        slot = self._levels[level][(self._ticks >> (SLOT_BITS * level)) % SLOTS]
        items = list(slot.items())
        slot.clear()
        for item, due_tick in items:
            self._place(item, due_tick)

    def _jump(self, target: int) -> None:
        """After a long sleep (SIGSTOP, suspend), sort everything anew: bounded by the items."""
        everything = [entry for level in self._levels for slot in level for entry in slot.items()]
        for level in self._levels:
            for slot in level:
                slot.clear()
        self._ticks = target
        for item, due_tick in sorted(everything, key=_due_tick):
            if due_tick <= target:
                self._due[item] = due_tick
                item.slot = self._due
            else:
                self._place(item, due_tick)

    def _place(self, item: Timed, due_tick: int) -> None:
        """Put an item into the slot for its tick, which is not before the present one.

        The present tick itself occurs only inside a cascade, where its slot is emptied next.
        """
        ticks = self._ticks
        distance = due_tick - ticks
        if distance >= HORIZON:
            distance = HORIZON - 1
        level, shift = 0, 0
        while distance >> shift >= SLOTS:
            level += 1
            shift += SLOT_BITS
        slot = self._levels[level][((ticks + distance) >> shift) % SLOTS]
        slot[item] = due_tick
        item.slot = slot


def _nobody_sleeps() -> None:
    """Whoever advances at every tick need not be told."""


def _due_tick(entry: tuple[Timed, int]) -> int:
    return entry[1]
