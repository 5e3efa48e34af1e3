"""Whose everything is that a life of ours has: its listening sockets, their files, its orders.

A life that another one has started comes into it when that one stands down, and leaves it the same
way. One that the service manager has started has it from the beginning.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class Tenure(Enum):
    """Whose it is, seen from one life."""

    COMING = auto()  # our predecessor's yet, which has started us: we wait until we may go on
    OURS = auto()
    GOING = auto()  # a successor takes over now: nothing can be ordered here any more
    GONE = auto()  # our successor's


NEXT: Final = {
    Tenure.COMING: {Tenure.OURS},
    Tenure.OURS: {Tenure.GOING},
    Tenure.GOING: {Tenure.GONE, Tenure.OURS},  # ours again if the successor has failed
    Tenure.GONE: set[Tenure](),
}
"""What may follow; a life that ends is in any of them."""

OTHERS: Final = frozenset({Tenure.COMING, Tenure.GONE})
"""When another life has everything, so that our end must leave it as it is."""
