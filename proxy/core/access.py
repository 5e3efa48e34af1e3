"""Access lists: who may speak to a listener, by the longest prefix that holds the client.

There is one dictionary for each length of prefix that occurs, from the longest to the shortest,
and the first one that knows the client's first bits decides. So thousands of prefixes of a few
lengths cost what a few do, and the worst list costs 33 look-ups, or 129 for IPv6. A binary search
over the lengths would need markers, and saves nothing for the handful that lists really have; nor
does a trie, whose every step is a step of the interpreter here.

A list decides about hosts. A Unix client has none, and is never asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from proxy.core.address import Network
from proxy.core.prefix import v4_number, v6_number

Level: TypeAlias = tuple[int, dict[int, bool]]
"""How many bits of an address are not looked at, and whether those that begin so are admitted."""


class AccessList:
    """Allowed and denied networks; it does not change.

    What no network holds is admitted exactly if nothing is allowed expressly: ``deny`` alone bars
    some, ``allow`` alone admits some, and both together admit some of those, or bar some of these,
    whichever says more about the client.

    Args:
        allow: networks that are admitted.
        deny: networks that are not; none of them is in ``allow`` as well.
        others: whether those are admitted whom no network holds; None is as said above.

    """

    __slots__ = ("_others", "_v4", "_v6")

    def __init__(
        self, allow: Iterable[Network], deny: Iterable[Network], *, others: bool | None = None
    ) -> None:
        allow, deny = frozenset(allow), frozenset(deny)
        assert not allow & deny, f"both allowed and denied: {allow & deny}"
        verdicts = dict.fromkeys(allow, True) | dict.fromkeys(deny, False)
        self._others = not allow if others is None else others
        self._v4 = _levels(verdicts, 4)
        self._v6 = _levels(verdicts, 6)

    def admits(self, host: str) -> bool:
        """Whether a client may speak to us.

        Args:
            host: of its socket's address; never an IPv4 address that is written as IPv6.

        """
        if ":" in host:
            levels = self._v6
            number = v6_number(host) if levels else 0
        else:
            levels = self._v4
            number = v4_number(host) if levels else 0
        for shift, verdicts in levels:
            verdict = verdicts.get(number >> shift)
            if verdict is not None:
                return verdict
        return self._others


def _levels(verdicts: dict[Network, bool], version: int) -> tuple[Level, ...]:
    by_shift: dict[int, dict[int, bool]] = {}
    for network, verdict in verdicts.items():
        if network.version == version:
            shift = network.max_prefixlen - network.prefixlen
            level = by_shift.setdefault(shift, {})
            level[int(network.network_address) >> shift] = verdict
    return tuple(sorted(by_shift.items(), key=_shift))


def _shift(level: Level) -> int:
    return level[0]


ANYBODY: Final = AccessList((), ())
