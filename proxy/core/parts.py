"""What part of a listener's bandwidth a worker has, where several workers share the listener.

Each tells what it *wants*: the weight of its sources that wait for bandwidth, and what it moves. A
worker in which nobody waits has all that it needs; what such workers move is taken off first, and
the rest is divided by the weights of those in which somebody does. So it is max-min between all
sources, to whichever worker the kernel gave them, as far as those who wait want more than they get.

A worker in which nobody waits may grow: to all that the others leave, or, where others wait, to the
part of one source. If it wants more it waits, and is heard the next time. So the sum of all parts
is more than the whole for a moment only, when somebody begins.

Units: bytes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

LEAST: Final = 1 / 1024
"""Of the whole; so much a worker has in any case, so that whoever comes to it can be heard."""


class Want(NamedTuple):
    """What a worker wants of a listener's direction.

    Attributes:
        weight: of its sources that wait; 0 if none does.
        used: what it moved lately, in bytes a second.

    """

    weight: float
    used: float


def part_of(whole: float, own: Want, others: Sequence[Want]) -> float:
    """The part of a worker in ``whole``, beside what the others want."""
    waiting = sum(other.weight for other in others)
    moved = sum(other.used for other in others if not other.weight)
    rest = max(0.0, whole - moved)
    if waiting or own.weight:
        weight = own.weight or 1.0
        rest *= weight / (weight + waiting)
    return max(rest, whole * LEAST)
