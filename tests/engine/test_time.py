"""Deadlines are told by the slice."""

from __future__ import annotations

from collections import Counter
from time import monotonic

import pytest
import trio

from proxy.core.wheel import Slot
from proxy.engine import turns as turns_of_the_pump
from proxy.engine.relay import TOLD_AT_ONCE, Relay

MANY = 10 * TOLD_AT_ONCE


class Alarm:
    """Notes the turn in which it is told; every second one fails."""

    def __init__(self, name: int, turns: list[int], told: Counter[int]) -> None:
        self.slot: Slot | None = None
        self.name = name
        self._turns = turns
        self._told = told

    def expire(self, now: float) -> None:
        if self.name % 2:
            raise RuntimeError
        self._told[self._turns[0]] += 1

    def crashed(self, error: Exception, now: float) -> None:
        self._told[self._turns[0]] += 1


async def test_others_have_their_turn_while_many_deadlines_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns_of_the_pump, "TURN", 0.0)
    relay = Relay(10, 10, monotonic())
    turns, told = [0], Counter[int]()
    for name in range(MANY):
        relay.wheel.schedule(Alarm(name, turns, told), monotonic())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.keep_time)
        while told.total() < MANY:
            await trio.lowlevel.checkpoint()
            turns[0] += 1
        nursery.cancel_scope.cancel()
    relay.pipes.close()
    assert max(told.values()) <= 2 * TOLD_AT_ONCE  # Trio shuffles
    assert len(relay.wheel) == 0
