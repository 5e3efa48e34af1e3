"""Access lists: who may speak to a listener, by the longest prefix that holds the client.

However many prefixes there are, a look is a bisection for each length that occurs, from the
longest to the shortest, until one holds the client (see ``core.prefix_set``): the worst list has 33
lengths, or 129 for IPv6. Most clients come again, so the verdicts on some hosts are kept: whoever
is known costs one look into a dictionary.

A list decides about hosts. A Unix client has none, and is never asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeAlias

from proxy.core.address import Network
from proxy.core.prefix import V4_BITS, V6_BITS, v4_number, v6_number
from proxy.core.prefix_set import Level, PrefixSet, holds, prefix_of

KNOWN_MAX: Final = 1024
"""Hosts whose verdicts are kept, 100 KiB. When they are so many all are forgotten: a flood of
invented addresses, to which no order would be of use, costs each of them a tenth more."""

NONE: Final = PrefixSet()

Verdicts: TypeAlias = tuple[tuple[int, Sequence[int], bool], ...]
"""Levels, see ``core.prefix_set``, and whether those that one holds are admitted; in the order in
which they are asked."""


class AccessList:
    """Allowed and denied networks; it does not change. What is both is denied.

    What no network holds is admitted exactly if nothing is allowed expressly: ``deny`` alone bars
    some, ``allow`` alone admits some, and both together admit some of those, or bar some of these,
    whichever says more about the client.

    Args:
        allow: networks that are admitted.
        deny: networks that are not.
        others: whether those are admitted whom no network holds; None is as said above.
        more_allowed: the same as ``allow``, of a file.
        more_denied: the same as ``deny``.

    Attributes:
        everybody: whether nobody is barred, so that there is no need to ask.

    """

    __slots__ = ("_known", "_others", "_v4", "_v6", "everybody")

    def __init__(
        self,
        allow: Iterable[Network],
        deny: Iterable[Network],
        *,
        others: bool | None = None,
        more_allowed: PrefixSet = NONE,
        more_denied: PrefixSet = NONE,
    ) -> None:
        allowed = PrefixSet(map(prefix_of, allow)), more_allowed
        denied = PrefixSet(map(prefix_of, deny)), more_denied
        self._others = not any(allowed) if others is None else others
        self._v4 = _verdicts((each.v4 for each in allowed), (each.v4 for each in denied))
        self._v6 = _verdicts((each.v6 for each in allowed), (each.v6 for each in denied))
        self._known: dict[str, bool] = {}
        self.everybody = self._others and not any(denied)

    def admits(self, host: str) -> bool:
        """Whether a client may speak to us.

        Args:
            host: of its socket's address; never an IPv4 address that is written as IPv6.

        """
        verdict = self._known.get(host)
        return self._decided(host) if verdict is None else verdict

    def entry(self, host: str) -> Network | None:
        """The network that decides about a client; None where none does, see ``admits``."""
        found = self._find(host)
        if found is None:
            return None
        first, shift, _ = found
        if ":" in host:
            return IPv6Network((first << shift, V6_BITS - shift))
        return IPv4Network((first << shift, V4_BITS - shift))

    def _decided(self, host: str) -> bool:
        found = self._find(host)
        verdict = self._others if found is None else found[2]
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[host] = verdict
        return verdict

    def _find(self, host: str) -> tuple[int, int, bool] | None:
        """The first bits of the network that decides, how many others there are, its verdict."""
        if ":" in host:
            verdicts = self._v6
            number = v6_number(host) if verdicts else 0
        else:
            verdicts = self._v4
            number = v4_number(host) if verdicts else 0
        for shift, firsts, verdict in verdicts:
            first = number >> shift
            if holds(firsts, first):
                return first, shift, verdict
        return None


def _verdicts(
    allowed: Iterable[tuple[Level, ...]], denied: Iterable[tuple[Level, ...]]
) -> Verdicts:
    """All of them, the longest prefix first, and of equal ones those that are denied."""
    found = [
        (shift, firsts, verdict)
        for verdict, sets in ((False, denied), (True, allowed))
        for levels in sets
        for shift, firsts in levels
    ]
    return tuple(sorted(found, key=_shift))  # which leaves equal ones in their order


def _shift(level: tuple[int, Sequence[int], bool]) -> int:
    return level[0]


ANYBODY: Final = AccessList((), ())
