"""The condition of an endpoint: whether it takes new flows, and if not, why.

Three parties have a say, and none of them knows the others. Operators *administer* it: they drain
or disable it. Active checks tell its *health*. What flows met with has it *ejected* for a while.
The condition is what follows from the three, by one table, so that an endpoint that is drained
while it is down is in one condition, and comes back to the right one when either is over.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Administration(StrEnum):
    """What operators want of an endpoint."""

    ENABLED = "enabled"
    DRAINING = "draining"  # no new flows; those there are end within a while
    DISABLED = "disabled"  # no new flows, until it is enabled; those there are live on


class Health(StrEnum):
    """What active checks say of an endpoint."""

    UNKNOWN = "unknown"  # none has spoken yet, or there are none
    UP = "up"
    DOWN = "down"


class Condition(StrEnum):
    """Whether an endpoint takes new flows, and if not, why."""

    UP = "up"
    UNKNOWN = "unknown"
    EJECTED = "ejected"
    DOWN = "down"
    DRAINING = "draining"
    DISABLED = "disabled"

    @property
    def is_usable(self) -> bool:
        """Whether new flows may go there."""
        return self in USABLE


USABLE: Final = frozenset({Condition.UP, Condition.UNKNOWN})

_EITHER: Final = (False, True)

CONDITIONS: Final[dict[tuple[Administration, Health, bool], Condition]] = {
    (Administration.ENABLED, Health.UNKNOWN, False): Condition.UNKNOWN,
    (Administration.ENABLED, Health.UP, False): Condition.UP,
    (Administration.ENABLED, Health.UNKNOWN, True): Condition.EJECTED,
    (Administration.ENABLED, Health.UP, True): Condition.EJECTED,
    **{(Administration.ENABLED, Health.DOWN, each): Condition.DOWN for each in _EITHER},
    **{
        (Administration(condition.value), health, ejected): condition
        for condition in (Condition.DRAINING, Condition.DISABLED)
        for health in Health
        for ejected in _EITHER
    },
}
"""By what operators want, what checks say, and whether it is ejected."""
