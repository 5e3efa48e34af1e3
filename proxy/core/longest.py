"""What is said of networks, found by an address: the longest network that holds it decides.

There is one dictionary for each length of prefix that occurs, from the longest to the shortest,
and the first one that knows the address's first bits answers. So thousands of prefixes of a few
lengths cost what a few do, and the worst list costs 33 look-ups, or 129 for IPv6. A binary search
over the lengths would need markers, and saves nothing for the handful that lists really have; nor
does a trie, whose every step is a step of the interpreter here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeAlias, TypeVar

from proxy.core.address import Network
from proxy.core.prefix import v4_number, v6_number

Value = TypeVar("Value")

Level: TypeAlias = tuple[int, dict[int, Value]]
"""How many bits of an address are not looked at, and what is said of those that begin so."""


class LongestMatch(Generic[Value]):  # noqa: PLW1641 - no hash, as of dictionaries
    """Networks and what is said of each; it does not change. Equal ones say the same.

    Args:
        values: by network; none of them is None.

    """

    __slots__ = ("_v4", "_v6")

    def __init__(self, values: Mapping[Network, Value]) -> None:
        self._v4 = _levels(values, 4)
        self._v6 = _levels(values, 6)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LongestMatch):
            return NotImplemented
        return (self._v4, self._v6) == (other._v4, other._v6)

    def __bool__(self) -> bool:
        """Whether anything is said of any network."""
        return bool(self._v4 or self._v6)

    def find(self, host: str) -> Value | None:
        """What is said of an address; None if no network holds it.

        Args:
            host: of a socket's address; never an IPv4 address that is written as IPv6.

        """
        if ":" in host:
            levels = self._v6
            number = v6_number(host) if levels else 0
        else:
            levels = self._v4
            number = v4_number(host) if levels else 0
        for shift, values in levels:
            value = values.get(number >> shift)
            if value is not None:
                return value
        return None


def _levels(values: Mapping[Network, Value], version: int) -> tuple[Level[Value], ...]:
    by_shift: dict[int, dict[int, Value]] = {}
    for network, value in values.items():
        if network.version == version:
            shift = network.max_prefixlen - network.prefixlen
            level = by_shift.setdefault(shift, {})
            level[int(network.network_address) >> shift] = value
    return tuple(sorted(by_shift.items(), key=_shift))


def _shift(level: Level[Value]) -> int:
    return level[0]
