"""What became of the flows that found every endpoint of an upstream full.

Plain ints, written as things happen; ``waiting`` and ``ceiling`` are levels, the rest only grow.
"""

from __future__ import annotations

from typing import TypedDict


class QueueCounters:
    """The waiting queue of one upstream in numbers.

    Attributes:
        waiting: flows that wait now.
        ceiling: how many may wait; 0 once none may.
        waited: flows that had to wait, whatever came of it.
        turned_away: those for whom there was no room to wait.
        expired: those that waited in vain.

    """

    __slots__ = ("ceiling", "expired", "turned_away", "upstream", "waited", "waiting")

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.waiting = 0
        self.ceiling = 0
        self.waited = 0
        self.turned_away = 0
        self.expired = 0

    @property
    def is_busy(self) -> bool:
        """Whether any flow waits."""
        return self.waiting > 0

    def snapshot(self) -> QueueSnapshot:
        """Return a copy as plain values."""
        return {
            "upstream": self.upstream,
            "waiting": self.waiting,
            "ceiling": self.ceiling,
            "waited": self.waited,
            "turned_away": self.turned_away,
            "expired": self.expired,
        }


class QueueSnapshot(TypedDict):
    """``QueueCounters`` as plain values."""

    upstream: str
    waiting: int
    ceiling: int
    waited: int
    turned_away: int
    expired: int


def add_queues(one: QueueSnapshot, other: QueueSnapshot) -> QueueSnapshot:
    """Add up what two workers say of one upstream."""
    return {
        "upstream": one["upstream"],
        "waiting": one["waiting"] + other["waiting"],
        "ceiling": one["ceiling"] + other["ceiling"],
        "waited": one["waited"] + other["waited"],
        "turned_away": one["turned_away"] + other["turned_away"],
        "expired": one["expired"] + other["expired"],
    }


def retire_queue(row: QueueSnapshot) -> QueueSnapshot:
    """What is left of the queue of a worker that died: nobody waits in it."""
    return {**row, "waiting": 0, "ceiling": 0}
