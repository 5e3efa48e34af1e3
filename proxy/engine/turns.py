"""Turns: how long work that can wait may keep the pump from the sockets that are ready.

Whoever has much to do, a listing of thousands of flows, does it piece by piece and asks after each
whether its turn is over; then the pump serves what is ready, and it goes on. A turn is a time and
not a number of pieces, since what a piece costs depends on what is in it, and on how long ago the
processor has seen that: a number that is right for one is ten times too large for another.

Giving way costs a turn of Trio's scheduler, 30 to 50 microseconds. So a turn that is much shorter
would make long work longer, and the relay would lose more by that than it gains.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

import trio

TURN: Final = 100e-6
"""Seconds: what four messages take, so whoever comes meanwhile does not wait much longer for the
work than for others."""


class Turn:
    """The turn of one task, from now on; whoever has waited for something has another one."""

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self._end = monotonic() + TURN

    async def may_end(self) -> None:
        """Give way to the pump if the turn is over, and begin another one."""
        if monotonic() >= self._end:
            await trio.lowlevel.checkpoint()
            self._end = monotonic() + TURN
