"""Endpoints come back in time from an ejection, whether or not a flow asks for them.

An upstream looks at the time by itself only as flows come. So there is one timer for all upstreams,
due when the first of their ejections ends: it has them look, and whoever comes back is told of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from proxy.core.upstream import Upstream
    from proxy.core.wheel import Slot, TimerWheel

log = structlog.get_logger()


class Comeback:
    """The end of the next ejection; ``Timed``.

    Args:
        wheel: the worker's clock.
        upstreams: returns all there are.

    """

    __slots__ = ("_due", "_upstreams", "_wheel", "slot")

    def __init__(self, wheel: TimerWheel, upstreams: Callable[[], Iterable[Upstream]]) -> None:
        self._wheel = wheel
        self._upstreams = upstreams
        self._due = inf
        self.slot: Slot | None = None

    def look(self, upstream: Upstream) -> None:
        """See when ejections of an upstream end, whose endpoints are in another condition."""
        self._await(upstream.back_at)

    def expire(self, now: float) -> None:
        """Have those back whose time is over, and wait for the next."""
        self._due = inf
        for upstream in self._upstreams():
            upstream.refresh(now)
            self._await(upstream.back_at)

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours; flows that come have their endpoints back all the same."""
        log.error("comeback_crashed", exc_info=error)

    def _await(self, when: float) -> None:
        if when < self._due:
            self._due = when
            self._wheel.schedule(self, when)
