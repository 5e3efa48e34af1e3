"""Drains under way: what a listener, an endpoint or the whole worker still has, and its end.

A drain waits for flows to end by themselves, and ends those that are left after its timeout as
``drained``, paced as ``core.pace`` says. It is over when none is left, however early that is.

The flows are listed when the timeout strikes, and again when that list is through: a connection
that was under way when its endpoint drained shows up late. The drain of an endpoint therefore
goes on watching until the endpoint is wanted again.

One task serves all drains, and sleeps while there are none. There are as many at most as there are
listeners and endpoints: a second order for the same target replaces the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Final

import trio

from proxy.core.flow import CloseReason, CloseSide, Flow
from proxy.core.pace import Pace, paced
from proxy.engine.datagram import DatagramFlow
from proxy.engine.specs import EVERYTHING, DrainOrder, DrainTarget
from proxy.engine.stream import StreamFlow

if TYPE_CHECKING:
    from proxy.engine.port import DrainRow
    from proxy.engine.relay import Relay
    from proxy.engine.roster import Roster

TICK: Final = 0.05
"""Seconds between two looks; the timer wheel's grain."""

SLICE: Final = 100
"""Flows listed, or ended, between two turns of the pump."""


class Phase(StrEnum):
    """Where a drain is."""

    WAITING = "waiting"  # for flows to end by themselves
    ENDING = "ending"  # those that are left
    DONE = "done"


@dataclass(slots=True)
class Drain:
    """One drain under way.

    Attributes:
        stays: its row is shown when it is over, until the target is wanted again.

    """

    target: DrainTarget
    pace: Pace
    deadline: float
    stays: bool
    phase: Phase = Phase.WAITING
    ended: int = 0
    endings: deque[tuple[float, Flow]] = field(default_factory=deque)


class Drains:
    """The drains of one worker.

    Args:
        relay: whose flows end.
        roster: knows how many flows a target has.

    """

    def __init__(self, relay: Relay, roster: Roster) -> None:
        self._relay = relay
        self._roster = roster
        self._drains: dict[DrainTarget, Drain] = {}
        self._ordered = trio.Event()
        self._all_done = trio.Event()

    def start(self, order: DrainOrder, now: float, *, stays: bool = True) -> None:
        """Begin to drain, or replace the order for a target that drains."""
        before = self._drains.get(order.target)
        drain = Drain(order.target, order.pace, now + order.pace.timeout, stays)
        drain.ended = before.ended if before else 0
        self._drains[order.target] = drain
        self._ordered.set()

    def cancel(self, is_wanted: Callable[[DrainTarget], bool]) -> None:
        """Forget the drains of targets that are wanted again."""
        for target in [target for target in self._drains if is_wanted(target)]:
            del self._drains[target]

    def __contains__(self, target: DrainTarget) -> bool:
        return target in self._drains

    def rows(self, now: float) -> list[DrainRow]:
        """Every drain, in the order they began."""
        return [self._row(drain, now) for drain in self._drains.values()]

    async def wait_all_done(self) -> None:
        """Wait until the drain of everything is over."""
        await self._all_done.wait()

    async def run(self) -> None:
        """Do what was ordered, until cancelled."""
        while True:
            await self._ordered.wait()
            if not self._drains:
                self._ordered = trio.Event()
                continue
            for drain in list(self._drains.values()):
                await self._step(drain)
            await trio.sleep(TICK)

    async def _step(self, drain: Drain) -> None:
        now = monotonic()
        if drain.endings:
            await self._end_due(drain, now)
        elif not self._count(drain.target):
            self._finish(drain)
        elif now < drain.deadline:
            drain.phase = Phase.WAITING
        else:
            drain.phase = Phase.ENDING
            found = await self._flows(drain.target)
            drain.endings.extend(paced(found, drain.pace, now, random))

    async def _end_due(self, drain: Drain, now: float) -> None:
        done = 0
        while drain.endings and drain.endings[0][0] <= now:
            _, flow = drain.endings.popleft()
            if flow.close_reason is None and self._drains.get(drain.target) is drain:
                assert isinstance(flow, StreamFlow | DatagramFlow)
                flow.abort(CloseReason.DRAINED, CloseSide.PROXY, now)
                drain.ended += 1
            done += 1
            if done % SLICE == 0:
                await trio.lowlevel.checkpoint()
        if drain.endings and not self._count(drain.target):
            drain.endings.clear()

    def _finish(self, drain: Drain) -> None:
        drain.phase = Phase.DONE
        if drain.target == EVERYTHING:
            self._all_done.set()
        if not drain.stays and self._drains.get(drain.target) is drain:
            del self._drains[drain.target]

    def _count(self, target: DrainTarget) -> int:
        if target == EVERYTHING:
            return len(self._relay.table)
        if target.listener is not None:
            counters = self._roster.counters
            return sum(each.flows for each in counters if each.listener == target.listener)
        return sum(
            each.flows
            for each in self._roster.upstreams.counters
            if (each.upstream, each.endpoint) == (target.upstream, target.endpoint)
        )

    async def _flows(self, target: DrainTarget) -> list[tuple[float, Flow]]:
        """The flows of a target, with their last activity."""
        found: list[tuple[float, Flow]] = []
        for part in slices(list(self._relay.table)):
            found += [(flow.active, flow) for flow in part if is_of(flow, target)]
            await trio.lowlevel.checkpoint()
        return found

    def _row(self, drain: Drain, now: float) -> DrainRow:
        flows = self._count(drain.target)
        end = drain.endings[-1][0] if drain.endings else None
        if end is None:
            end = drain.deadline + min(drain.pace.spread, flows / drain.pace.rate)
        return {
            "listener": drain.target.listener,
            "upstream": drain.target.upstream,
            "endpoint": drain.target.endpoint,
            "phase": drain.phase.value,
            "flows": flows,
            "ended": drain.ended,
            "seconds_left": None if drain.phase is Phase.DONE else round(max(0.0, end - now), 3),
        }


def untold_row(order: DrainOrder) -> DrainRow:
    """A drain that is in force while no worker is there to tell of it."""
    return {
        "listener": order.target.listener,
        "upstream": order.target.upstream,
        "endpoint": order.target.endpoint,
        "phase": Phase.WAITING.value,
        "flows": 0,
        "ended": 0,
        "seconds_left": order.pace.timeout,
    }


def is_of(flow: Flow, target: DrainTarget) -> bool:
    """Whether a flow belongs to what drains."""
    if target == EVERYTHING:
        return True
    if target.listener is not None:
        return flow.counters.listener == target.listener
    if flow.endpoint is None:
        return False
    counters = flow.endpoint.counters
    return (counters.upstream, counters.endpoint) == (target.upstream, target.endpoint)


def slices(flows: Sequence[Flow], size: int = SLICE) -> Iterator[Sequence[Flow]]:
    """The flows in parts, each short enough for one turn."""
    for start in range(0, len(flows), size):
        yield flows[start : start + size]
