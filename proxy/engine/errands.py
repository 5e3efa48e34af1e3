"""Errands: long work that the pump itself does for a task, a little after each of its rounds.

A task that gives way by ``turns`` pays a turn of Trio's scheduler each time, so its turns are long
beside what a message takes. To go on with an errand costs the pump two or three microseconds, so a
piece of it is short: whoever comes meanwhile waits for a third of a turn at most. The rows of a
listing are made so, and the samples are taken.

After a round in which there was much to do a piece is longer, in proportion: errands have a bounded
part of a busy core, but do have it, and end in a time that does not depend on the load.

All errands of a worker share that part: they are gone on with in turn, one after a round, however
many people ask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from proxy.engine.alarms import Alarms

SHORTEST: Final = 30e-6
"""Seconds: two rows, or what the relay itself takes for a message. The pump asks the kernel for
news in between, and that is not to become most of what it does."""

PART: Final = 0.4
"""Of the time of the round before; so errands have less than a third of a core that is busy. 5,000
rows take a third of a second of that."""

Made = TypeVar("Made")


class Errands:
    """What is to be done beside the relay: a sleeper whose moment has come for as long as there is.

    Args:
        alarms: of the pump.

    """

    def __init__(self, alarms: Alarms) -> None:
        self.alarm = inf
        self._alarms = alarms
        self._errands: deque[_Errand[Any]] = deque()

    async def run(self, steps: Iterable[Made]) -> list[Made]:
        """Have the pump take these steps, and return what they made.

        Raises:
            Exception: what a step has raised; then those that follow are not taken.

        """
        errand = _Errand(steps)
        self._errands.append(errand)
        self._alarms.set(self, monotonic())
        try:
            await errand.over.wait()
        finally:
            errand.steps = iter(())  # nobody waits for the rest
        if errand.error is not None:
            raise errand.error
        return errand.made

    def wake(self, now: float) -> None:
        """Go on with the first for a while, after a round that began then; it is the last now."""
        errand, begun = self._errands[0], monotonic()
        if errand.go_on(begun + max(SHORTEST, PART * (begun - now))):
            self._errands.rotate(-1)
            self._alarms.set(self, now)
        else:
            self._end(now)

    def crashed(self, error: Exception, now: float) -> None:
        """Tell whoever waits for the first."""
        self._errands[0].error = error
        self._end(now)

    def _end(self, now: float) -> None:
        self._errands.popleft().over.set()
        if self._errands:
            self._alarms.set(self, now)


class _Errand(Generic[Made]):
    """One errand, and who waits for it."""

    __slots__ = ("error", "made", "over", "steps")

    def __init__(self, steps: Iterable[Made]) -> None:
        self.steps = iter(steps)
        self.made: list[Made] = []
        self.error: Exception | None = None
        self.over = trio.Event()

    def go_on(self, end: float) -> bool:
        """Take steps until then; whether there may be more."""
        for made in self.steps:
            self.made.append(made)
            if monotonic() >= end:
                return True
        return False
