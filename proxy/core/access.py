"""Access lists: who may speak to a listener, by the longest prefix that holds the client.

However many prefixes there are, a look costs what ``core.longest`` says; and most clients come
again, so the verdicts on some hosts are kept: whoever is known costs one look into a dictionary.

A list decides about hosts. A Unix client has none, and is never asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from proxy.core.address import Network
from proxy.core.longest import LongestMatch

KNOWN_MAX: Final = 1024
"""Hosts whose verdicts are kept, 100 KiB. When they are so many all are forgotten: a flood of
invented addresses, to which no order would be of use, costs each of them a tenth more."""


class AccessList:
    """Allowed and denied networks; it does not change.

    What no network holds is admitted exactly if nothing is allowed expressly: ``deny`` alone bars
    some, ``allow`` alone admits some, and both together admit some of those, or bar some of these,
    whichever says more about the client.

    Args:
        allow: networks that are admitted.
        deny: networks that are not; none of them is in ``allow`` as well.
        others: whether those are admitted whom no network holds; None is as said above.

    Attributes:
        everybody: whether nobody is barred, so that there is no need to ask.

    """

    __slots__ = ("_known", "_others", "_verdicts", "everybody")

    def __init__(
        self, allow: Iterable[Network], deny: Iterable[Network], *, others: bool | None = None
    ) -> None:
        allow, deny = frozenset(allow), frozenset(deny)
        assert not allow & deny, f"both allowed and denied: {allow & deny}"
        self._others = not allow if others is None else others
        self._verdicts = LongestMatch(dict.fromkeys(allow, True) | dict.fromkeys(deny, False))
        self._known: dict[str, bool] = {}
        self.everybody = self._others and not deny

    def admits(self, host: str) -> bool:
        """Whether a client may speak to us.

        Args:
            host: of its socket's address; never an IPv4 address that is written as IPv6.

        """
        verdict = self._known.get(host)
        return self._decided(host) if verdict is None else verdict

    def entry(self, host: str) -> Network | None:
        """The network that decides about a client; None where none does, see ``admits``."""
        return self._verdicts.network(host)

    def _decided(self, host: str) -> bool:
        verdict = self._verdicts.find(host)
        if verdict is None:
            verdict = self._others
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[host] = verdict
        return verdict


ANYBODY: Final = AccessList((), ())
