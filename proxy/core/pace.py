"""When the flows that a drain has left over are ended: paced, with jitter, the idle ones first.

Clients that are cut off connect again, and do so at once: were all of them cut at one moment, they
would all knock at the same door in the next. So the time is divided into as many equal parts as
there are flows, and each flow ends at a random moment of its own part: never more than two at once
whatever the rate, and no beat that clients could fall into.

A flow without payload for long is the one whose loss is noticed least, so it goes first, and the
busy ones have the longest to end by themselves.

Units: seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

Item = TypeVar("Item")


class Pace(NamedTuple):
    """How a drain takes its time.

    Attributes:
        timeout: how long flows may take to end by themselves.
        rate: flows that are ended in a second after that.
        spread: seconds until all are; the rate rises where it would take longer.

    """

    timeout: float
    rate: float
    spread: float


def moments(count: int, pace: Pace, random: Callable[[], float]) -> Iterator[float]:
    """When to end each of so many flows, in seconds from the timeout on, rising.

    Args:
        count: of the flows.
        pace: how many in a second, and how long at most.
        random: gives numbers from 0 to less than 1.

    """
    rate = max(pace.rate, count / pace.spread)
    return ((place + random()) / rate for place in range(count))


def paced(
    flows: Iterable[tuple[float, Item]], pace: Pace, now: float, random: Callable[[], float]
) -> list[tuple[float, Item]]:
    """Say when to end each of these flows, the first to end first.

    Args:
        flows: each with the time of its last activity.
        pace: how many in a second, and how long at most.
        now: when the first may be ended.
        random: gives numbers from 0 to less than 1.

    """
    idle_first = sorted(flows, key=itemgetter(0))
    times = moments(len(idle_first), pace, random)
    return [(now + moment, item) for moment, (_, item) in zip(times, idle_first, strict=True)]
