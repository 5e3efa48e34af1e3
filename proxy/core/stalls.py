"""How long a direction of a flow stood still though there was something to pass on.

A direction has none of this until it stands still for the first time, so those that never do pay
nothing for it. It begins and ends off the fast path: when a send was short, and when the rest is
gone.
"""

from __future__ import annotations

from proxy.core.sample import Stalled


class Stalls:
    """Adds up the seconds of one direction."""

    __slots__ = ("_blocked", "_by_limit", "_held", "_since")

    def __init__(self) -> None:
        self._blocked = 0.0
        self._held = 0.0
        self._since: float | None = None
        self._by_limit = False

    def begin(self, now: float, *, by_limit: bool) -> None:
        """It stands still from now on; because of a limit, or of the other side's socket."""
        self.end(now)
        self._since, self._by_limit = now, by_limit

    def end(self, now: float) -> None:
        """It moves again, if it did not."""
        self._blocked, self._held = self.until(now)
        self._since = None

    def until(self, now: float) -> Stalled:
        """The seconds so far, those that are still going on too."""
        since = self._since
        going_on = 0.0 if since is None else max(0.0, now - since)
        if self._by_limit:
            return Stalled(self._blocked, self._held + going_on)
        return Stalled(self._blocked + going_on, self._held)
