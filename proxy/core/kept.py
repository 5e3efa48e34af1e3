"""Sources that have members, and for a while those who had some and owe something.

Were a source forgotten with its last flow, it could come back as somebody new whose bucket holds
more. So it is kept until it owes no more than who is new. That takes a tenth of a second as a rule,
and nobody is woken for it: who joins sweeps a little, which is O(1), and a little more than it
brings, so that what is kept is bounded by the flows that were there together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, Protocol, TypeVar

FORGOTTEN_AT_ONCE: Final = 2


class Owner(Protocol):
    """A source; ``members`` belongs to its keeper.

    Whoever is in a hurry may add to the members of a source that has some, or take away any but
    the last: that is all that ``join`` and ``leave`` do then.
    """

    key: Hashable
    members: int

    def owes(self, now: float) -> bool:
        """Whether it would gain by being forgotten."""
        ...


Kind = TypeVar("Kind", bound=Owner)


class Kept(Generic[Kind]):
    """The sources of one listener's direction.

    Attributes:
        get: the source of a key, if it is known.

    """

    __slots__ = ("_idle", "_known", "get")

    def __init__(self) -> None:
        self._known: dict[Hashable, Kind] = {}
        self.get = self._known.get
        self._idle: deque[Kind] = deque()  # in the order they lost their last member

    def __len__(self) -> int:
        return len(self._known)

    def join(self, key: Hashable, now: float) -> Kind | None:
        """Give a source one member more; None if it is not known, and has to be entered."""
        source = self._known.get(key)
        if source is not None:
            source.members += 1
            if self._idle:
                self._sweep(now)
        return source

    def enter(self, source: Kind, now: float) -> Kind:
        """Know a new source, with its first member."""
        assert source.key not in self._known
        self._sweep(now)
        self._known[source.key] = source
        source.members = 1
        return source

    def leave(self, source: Kind) -> None:
        """Take one member away, exactly once for each that joined."""
        assert source.members > 0
        source.members -= 1
        if not source.members:
            self._idle.append(source)

    def _sweep(self, now: float) -> None:
        for _ in range(FORGOTTEN_AT_ONCE):
            if not self._idle:
                return
            source = self._idle[0]
            if not source.members:
                if source.owes(now):
                    return
                if self._known.get(source.key) is source:
                    del self._known[source.key]
            self._idle.popleft()
