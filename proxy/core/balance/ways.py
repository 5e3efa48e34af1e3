"""The ways of choosing, by the words of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

from proxy.core.balance.chance import TwoChoices
from proxy.core.balance.least import LeastFlows
from proxy.core.balance.maglev import Maglev, size_for
from proxy.core.balance.ordered import FirstOfAll
from proxy.core.balance.rendezvous import Rendezvous
from proxy.core.balance.turns import Turns

if TYPE_CHECKING:
    from proxy.core.balance.picker import Picker


class Balance(StrEnum):
    """How an endpoint is chosen for a new flow."""

    ROUND_ROBIN = "round_robin"
    LEAST_FLOWS = "least_flows"
    RANDOM = "random"
    FIRST = "first"
    SOURCE = "source"
    MAGLEV = "maglev"


def picker_of(way: Balance, configured: int, random: Callable[[], float]) -> Picker:
    """What chooses in this way.

    Args:
        way: the way.
        configured: how many endpoints the upstream has, usable or not.
        random: gives a number from 0 to less than 1, evenly.

    """
    match way:
        case Balance.ROUND_ROBIN:
            return Turns()
        case Balance.LEAST_FLOWS:
            return LeastFlows()
        case Balance.RANDOM:
            return TwoChoices(random)
        case Balance.FIRST:
            return FirstOfAll()
        case Balance.SOURCE:
            return Rendezvous()
        case Balance.MAGLEV:
            return Maglev(size_for(configured))
