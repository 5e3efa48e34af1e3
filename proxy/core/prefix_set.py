"""A set of networks, packed: half a million of them in two megabytes, made without a halt.

For each length of prefix that occurs there is one sorted array of the first bits, in which a look
is a bisection: twenty steps in C for a million. A dictionary or a set for each length is found in
one step and takes as long, and twenty times the memory; and it is copied to the workers number by
number, which would hold up their flows, where an array is one copy.

Lists that large are made in a thread beside a relay. So there is no call here that keeps the
interpreter for long: sorted are pieces, which are merged one by one.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from heapq import merge
from typing import Final, TypeAlias

from proxy.core.address import Network
from proxy.core.prefix import V4_BITS

PIECE: Final = 16384
"""Numbers that are sorted at once: 3 ms."""

PackedPrefix: TypeAlias = tuple[int, int, int]
"""Of a network: the bits of an address of its version, how many of those do not count, and those
that do, as a number."""

Level: TypeAlias = tuple[int, Sequence[int]]
"""How many bits of an address are not looked at, and what the others may be, in order."""


class PrefixSet:  # noqa: PLW1641 - no hash, as of sets
    """Networks; it does not change.

    Args:
        prefixes: in any order; one that comes twice is there once.

    Attributes:
        v4: the levels of IPv4, from the longest prefix to the shortest.
        v6: those of IPv6.

    """

    __slots__ = ("__weakref__", "v4", "v6")

    def __init__(self, prefixes: Iterable[PackedPrefix] = ()) -> None:
        found: dict[tuple[int, int], list[int]] = {}
        for bits, shift, first in prefixes:
            level = found.get((bits, shift))
            if level is None:
                level = found[bits, shift] = []
            level.append(first)
        v4: list[Level] = []
        v6: list[Level] = []
        for (bits, shift), firsts in sorted(found.items()):
            (v4 if bits == V4_BITS else v6).append((shift, _packed(firsts, bits - shift)))
        self.v4, self.v6 = tuple(v4), tuple(v6)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PrefixSet):
            return NotImplemented
        return (self.v4, self.v6) == (other.v4, other.v6)

    def __len__(self) -> int:
        return sum(len(firsts) for _, firsts in self.v4 + self.v6)


def prefix_of(network: Network) -> PackedPrefix:
    """A network, as a set takes it."""
    shift = network.max_prefixlen - network.prefixlen
    return network.max_prefixlen, shift, int(network.network_address) >> shift


def holds(firsts: Sequence[int], first: int) -> bool:
    """Whether a level knows these first bits."""
    at = bisect_left(firsts, first)
    return at < len(firsts) and firsts[at] == first


def _packed(firsts: list[int], length: int) -> Sequence[int]:
    pieces = (sorted(firsts[at : at + PIECE]) for at in range(0, len(firsts), PIECE))
    ordered = _once(merge(*pieces))
    if length > 64:
        return tuple(ordered)
    return array("I" if length <= 32 else "Q", ordered)


def _once(ordered: Iterable[int]) -> Iterable[int]:
    last = -1
    for number in ordered:
        if number != last:
            last = number
            yield number
