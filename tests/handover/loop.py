"""A loop for a crowd: epoll and timers, and nothing that costs more than the crowd itself.

A task for each end of two thousand flows would take from the proxy the CPU that it is to be tested
with; so here every end is an object that is called when its socket is ready or its time has come.
"""

from __future__ import annotations

import heapq
import select
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Final, TypeAlias

Ready: TypeAlias = Callable[[int], None]

READ: Final = select.EPOLLIN | select.EPOLLRDHUP
WRITE: Final = select.EPOLLOUT


class Loop:
    """Calls who waits for a socket or for a time.

    Attributes:
        now: monotonic seconds, at the beginning of the turn.
        longest_turn: seconds of the longest turn so far: a pause of our own, not of the proxy.

    """

    def __init__(self) -> None:
        self.now = monotonic()
        self.longest_turn = 0.0
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def watch(self, fd: int, ready: Ready, events: int) -> None:
        self._ready[fd] = ready
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        del self._ready[fd]
        self._epoll.unregister(fd)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + seconds, next(self._order), call))

    def run(self) -> None:
        """Until somebody raises."""
        while True:
            events = self._epoll.poll(self._until_next())
            began = self.now = monotonic()
            for fd, mask in events:
                if (ready := self._ready.get(fd)) is not None:
                    ready(mask)
            while self._timers and self._timers[0][0] <= self.now:
                heapq.heappop(self._timers)[2]()
            self.longest_turn = max(self.longest_turn, monotonic() - began)

    def _until_next(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - monotonic())
