"""Counters by name, which outlive what they count: a reload takes a name away, another brings it.

Were the counters of a name thrown away with it, a scraper would see them fall back to 0 when the
name comes again. So they are kept for the life of the process, and go on where they were. They
are *shown* while the name is in use, and after that for as long as a flow is left: its series then
ends, as that of something that is no more.

Bound: ``RETIRED_MAX`` names that are not in use; beyond it the one that left first is forgotten,
and begins at 0 if it comes again, which a scraper takes for a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain
from typing import Final, Generic, Protocol, TypeVar

RETIRED_MAX: Final = 1024
"""Names; the counters of a listener are some 6 KiB."""


class Countable(Protocol):
    """Counters that know whether flows are left that will still change them."""

    @property
    def is_busy(self) -> bool:
        """Whether any flow is live."""
        ...


Key = TypeVar("Key", bound=Hashable)
Counters = TypeVar("Counters", bound=Countable)


class Ledger(Generic[Key, Counters]):
    """The counters of every name that is, or was, in use.

    Args:
        make: makes the counters of a name that is new.

    """

    def __init__(self, make: Callable[[Key], Counters]) -> None:
        self._make = make
        self._used: dict[Key, Counters] = {}
        self._retired: dict[Key, Counters] = {}  # those that left first stand first

    def __getitem__(self, key: Key) -> Counters:
        return self._used[key]

    def of(self, key: Key) -> Counters:
        """The counters of a name, in use or not; a new one is one that left."""
        known = self._used.get(key) or self._retired.get(key)
        if known is None:
            known = self._retired[key] = self._make(key)
            self._forget()
        return known

    def is_used(self, key: Key) -> bool:
        """Whether a name is in use."""
        return key in self._used

    def __len__(self) -> int:
        return len(self._used) + len(self._retired)

    def __iter__(self) -> Iterator[Counters]:
        return chain(self._used.values(), self._retired.values())

    def use(self, keys: Iterable[Key]) -> None:
        """Have exactly these names in use from now on; one that is named twice is one."""
        before, retired = self._used, self._retired
        self._used = {}
        for key in dict.fromkeys(keys):
            known = before.pop(key, None) or retired.pop(key, None)
            self._used[key] = known if known is not None else self._make(key)
        retired.update(before)
        self._forget()

    def shown(self) -> list[Counters]:
        """Those in use, and of the others those that have flows."""
        return [*self._used.values(), *(each for each in self._retired.values() if each.is_busy)]

    def _forget(self) -> None:
        excess = len(self._retired) - RETIRED_MAX
        if excess > 0:
            idle = [key for key, counters in self._retired.items() if not counters.is_busy]
            for key in idle[:excess]:
                del self._retired[key]
