"""Flows that wait for an endpoint which is full, in the order in which they came.

A place comes when a flow ends, an endpoint is usable again, or its ceiling is raised. Who waits is
served in the pump's next round, never inside the end of a flow, which is still being taken apart. A
newcomer stands behind those who wait. One who has tried some endpoints already waits for the
others only, and is passed by whoever has not. So there may be many whom a place is of no use to:
each is asked once after somebody was told of room, and then nobody until there is room again.

Bound: so many flows, each for so long; both as configured. All are in the flow table, connecting.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from proxy.core.queue_counters import QueueCounters
    from proxy.core.upstream import Waiter
    from proxy.core.waiting import WaitLimits
    from proxy.core.wheel import Slot
    from proxy.engine.relay import Relay

ENTRIES_PER_TURN: Final = 16
"""Flows that are asked until the other sockets get their turn."""

log = structlog.get_logger()


class UpstreamQueue:
    """The flows that wait at one upstream; a ``Handler`` without a socket.

    Args:
        relay: where flows live.
        limits: how many may wait, and how long.
        counters: of what becomes of them.

    """

    def __init__(self, relay: Relay, limits: WaitLimits, counters: QueueCounters) -> None:
        self.counters = counters
        self._relay = relay
        self._places: dict[Waiter, Place] = {}
        self._asked: deque[Waiter] = deque()  # who is still to be asked
        self._has_room = False  # it was told of room since it began to ask
        self.become(limits)

    def __len__(self) -> int:
        return len(self._places)

    def become(self, limits: WaitLimits) -> None:
        """Have so many wait, for so long, from now on; whoever waits already stays as it is."""
        self.limits = limits
        self.counters.ceiling = limits.flows

    def join(self, waiter: Waiter, now: float) -> bool:
        """Have a flow wait; false if too many do."""
        if len(self._places) >= self.limits.flows:
            self.counters.turned_away += 1
            return False
        place = self._places[waiter] = Place(self, waiter)
        self.counters.waited += 1
        self.counters.waiting += 1
        self._relay.wheel.schedule(place, now + self.limits.time)
        return True

    def leave(self, waiter: Waiter) -> None:
        """Have a flow wait no more, if it does."""
        place = self._places.pop(waiter, None)
        if place is not None:
            self.counters.waiting -= 1
            self._relay.wheel.cancel(place)

    def room(self) -> None:
        """Know that somebody may find an endpoint now."""
        if self._places:
            self._has_room = True
            self._relay.pump.again(self, 0)

    def ready(self, mask: int, now: float) -> None:
        """Let those go on who find an endpoint."""
        asked = self._asked
        if not asked:
            asked.extend(self._places)
            self._has_room = False
        for _ in range(min(ENTRIES_PER_TURN, len(asked))):
            waiter = asked.popleft()
            if waiter in self._places and not waiter.resume(now) and not waiter.has_tried:
                asked.clear()  # nobody finds what he has not found
                break
        if asked or self._has_room:
            self._relay.pump.again(self, 0)

    def dissolve(self, now: float) -> None:
        """Have nobody wait any more."""
        self.counters.ceiling = 0
        for waiter in list(self._places):
            waiter.give_up(now)

    def expire(self, waiter: Waiter, now: float) -> None:
        """Have a flow wait no more, whose time is over."""
        self.counters.expired += 1
        waiter.give_up(now)

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours, and go on with the next event."""
        log.error("queue_crashed", upstream=self.counters.upstream, exc_info=error)


class Place:
    """The place of a flow in a queue; ``Timed``."""

    __slots__ = ("_queue", "_waiter", "slot")

    def __init__(self, queue: UpstreamQueue, waiter: Waiter) -> None:
        self._queue = queue
        self._waiter = waiter
        self.slot: Slot | None = None

    def expire(self, now: float) -> None:
        """The time is over."""
        self._queue.expire(self._waiter, now)

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours."""
        self._queue.crashed(error, now)
