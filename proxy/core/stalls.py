"""How long a direction of a flow stood still though there was something to pass on.

A direction has none of this until it stands still for the first time, so those that never do pay
nothing for it. It begins and ends off the fast path: when a send was short, and when the rest is
gone.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.core.sample import STILL, Insight, Stalled, unpack


class StallState(NamedTuple):
    """What is known of one direction, so that another process can go on.

    Attributes:
        blocked: seconds by the other side's socket.
        held: seconds by a limit.
        since: when it came to stand still; None if it moves.
        by_limit: whether that is because of a limit.

    """

    blocked: float
    held: float
    since: float | None
    by_limit: bool


class Stalls:
    """Adds up the seconds of one direction."""

    __slots__ = ("_blocked", "_by_limit", "_held", "_since")

    def __init__(self) -> None:
        self._blocked = 0.0
        self._held = 0.0
        self._since: float | None = None
        self._by_limit = False

    def state(self) -> StallState:
        """What another process needs to know."""
        return StallState(self._blocked, self._held, self._since, self._by_limit)

    @classmethod
    def restored(cls, state: StallState) -> Stalls:
        """Go on where another process was."""
        stalls = cls()
        stalls._blocked, stalls._held, stalls._since, stalls._by_limit = state
        return stalls

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


def insight_of(
    packed: bytes | None,
    original: Stalls | None,
    reply: Stalls | None,
    active: float,
    closed: float | None,
) -> Insight | None:
    """What held a flow up, and what the kernel told of it; None if there is nothing to tell.

    Args:
        packed: the last sample.
        original: how long that direction stood still, if it ever did.
        reply: the same of the other.
        active: when payload last moved.
        closed: when the flow ended; None if it lives.

    """
    if packed is None and original is None and reply is None:
        return None
    sample = None if packed is None else unpack(packed)
    now = closed
    if now is None:
        now = active if sample is None else max(active, sample.when)
    return Insight(
        sample, *(STILL if each is None else each.until(now) for each in (original, reply))
    )
