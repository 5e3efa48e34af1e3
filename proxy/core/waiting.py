"""Waiting: who is held at a listener that is full, and who of them is the next to enter.

A client whom the gate refuses may wait for a place or a token. The rule: of all whom the gate would
admit now, whoever came first. Clients of one source are all alike to the gate, so each source has a
line of its own, in the order of arrival, and only the head of a line is ever asked for; one source
that is at its own ceiling holds up nobody but itself.

Asking is cheap, but there may be as many lines as there are clients. A line whose source is at its
ceiling *rests*, until a flow of the source has ended (``freed``) or its bucket has a token. So a
place that becomes free costs a question or two, however many wait. Sources that share an overflow
(see ``sources``) are not told apart for certain; so no line rests for longer than ``REST``, and
whatever is missed is found a second later.

With other workers a place goes to whoever has waited longest, here or there: who comes ``later``
than the first there is not asked, and keeps all behind it waiting. See ``proxy.engine.waiting``.

When the listener as a whole is full nobody is asked further; ``look_at`` says when to ask again
though nobody has left.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from proxy.core.admission import Limit

if TYPE_CHECKING:
    from proxy.core.admission import Gate
    from proxy.core.sources import Source, SourceKey

REST: Final = 1.0
"""Seconds that a line is left alone at most."""

STALE_MAX: Final = 64
"""Entries of a heap that do not count any more, beside one for each that does. Then it is built
anew, which costs as much as the entries that were added since; so nobody makes it grow who only
comes and goes."""

OF_ALL: Final = frozenset({Limit.LISTENER_FLOWS, Limit.LISTENER_RATE})

Client = TypeVar("Client")


class WaitLimits(NamedTuple):
    """How many may wait, and how long.

    Attributes:
        time: seconds, after which a client is refused.
        flows: clients at once.

    """

    time: float
    flows: int


class WaitingLines(Generic[Client]):
    """The clients that wait at one gate.

    Args:
        gate: decides who may enter.

    Attributes:
        look_at: when somebody may enter though no flow has ended; as of the last ``next``.
        kept: whom the listener as a whole keeps out, and all behind it; as of the last ``next``.

    """

    __slots__ = (
        "_arrived",
        "_gate",
        "_heads",
        "_lines",
        "_places",
        "_rested",
        "_resting",
        "_rests",
        "kept",
        "look_at",
    )

    def __init__(self, gate: Gate) -> None:
        self.look_at = inf
        self.kept: Client | None = None
        self._gate = gate
        self._arrived = 0
        self._places: dict[Client, tuple[int, SourceKey]] = {}  # in the order of arrival
        self._lines: dict[SourceKey, dict[Client, int]] = {}  # the same, of each source
        # Lines to be asked for, by the number of their head. What is not true any more is passed
        # over: an entry counts if its line does not rest, and begins with that number.
        self._heads: list[tuple[int, SourceKey]] = []
        self._resting: dict[SourceKey, float] = {}
        self._rested = 0
        self._rests: list[tuple[float, int, SourceKey]] = []  # until when; keys cannot be compared

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Client]:
        """In the order of arrival; of a copy, so that they may leave meanwhile."""
        return iter(list(self._places))

    def has(self, key: SourceKey) -> bool:
        """Whether any client of a source waits."""
        return key in self._lines

    def join(self, client: Client, key: SourceKey) -> None:
        """Have a client wait, behind all others of its source."""
        self._arrived += 1
        self._places[client] = self._arrived, key
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = {client: self._arrived}
            self._ask(self._arrived, key)
        else:
            line[client] = self._arrived

    def discard(self, client: Client) -> None:
        """Have a client wait no more, if it does."""
        if client not in self._places:
            return
        if client is self.kept:
            self.kept = None
        number, key = self._places.pop(client)
        line = self._lines[key]
        was_head = _head_of(line) == number
        del line[client]
        if not line:
            del self._lines[key]
            self._resting.pop(key, None)
        elif was_head and key not in self._resting:
            self._ask(_head_of(line), key)

    def next(
        self, now: float, is_later: Callable[[Client], bool] = lambda _: False
    ) -> Client | None:
        """Take out the next client that the gate admits, which then enters at once; or None.

        Args:
            now: monotonic seconds.
            is_later: whether a client comes after one who waits elsewhere.

        """
        self._wake(now)
        self.look_at = inf
        self.kept = None
        while self._heads:
            number, key = self._heads[0]
            if not self._is_head(number, key):
                heappop(self._heads)
                continue
            client = next(iter(self._lines[key]))
            if is_later(client):
                self.kept = client
                return None
            limit = self._gate.refusal(key, now)
            if limit is None:
                self.discard(client)
                return client
            if limit in OF_ALL:
                self.kept = client
                self.look_at = self._gate.admits_at(limit, key)
                return None
            heappop(self._heads)
            self._rest(key, min(self._gate.admits_at(limit, key), now + REST))
        if self._rests:
            self.look_at = self._rests[0][0]
        return None

    def freed(self, source: Source) -> None:
        """Know that a flow of a source has ended; of a shared one it may be anybody's."""
        if source.key is None:
            for key in list(self._resting):
                self._rise(key)
        elif source.key in self._resting:
            self._rise(source.key)

    def settle(self, key_of: Callable[[Client], SourceKey]) -> None:
        """Line all up anew: the gate has other limits, and may tell sources apart otherwise."""
        clients = list(self._places)
        for table in (self._places, self._lines, self._resting):
            table.clear()
        self.kept = None
        self._heads.clear()
        self._rests.clear()
        for client in clients:
            self.join(client, key_of(client))

    def _is_head(self, number: int, key: SourceKey) -> bool:
        line = self._lines.get(key)
        return line is not None and key not in self._resting and _head_of(line) == number

    def _ask(self, number: int, key: SourceKey) -> None:
        """Have a line asked for in its turn."""
        heappush(self._heads, (number, key))
        if len(self._heads) > 2 * len(self._lines) + STALE_MAX:
            resting = self._resting
            self._heads = [
                (_head_of(line), key) for key, line in self._lines.items() if key not in resting
            ]
            heapify(self._heads)

    def _rest(self, key: SourceKey, until: float) -> None:
        self._resting[key] = until
        self._rested += 1
        heappush(self._rests, (until, self._rested, key))
        if len(self._rests) > 2 * len(self._resting) + STALE_MAX:
            self._rests = [
                (until, number, key)
                for number, (key, until) in enumerate(self._resting.items(), self._rested)
            ]
            self._rested += len(self._rests)
            heapify(self._rests)

    def _rise(self, key: SourceKey) -> None:
        del self._resting[key]
        self._ask(_head_of(self._lines[key]), key)

    def _wake(self, now: float) -> None:
        while self._rests and self._rests[0][0] <= now:
            until, _, key = heappop(self._rests)
            if self._resting.get(key) == until:
                self._rise(key)


def _head_of(line: dict[Client, int]) -> int:
    """The number of whoever came first."""
    return next(iter(line.values()))
