"""Who shares a bandwidth: a listener, its sources, and the directions of their flows.

Each of them is a *node* of the shaper's tree (see ``core.shaper``): it has a bucket, a lease (see
``core.lease``), and a place where it waits. What is decided about them is the shaper's affair.

A direction of a flow that is far from all limits needs no node of its own: as a *newcomer* it goes
by the leases of its source and of the listener, and by one for itself of what a new bucket holds.
Only when that is used up, or is called in, it has a share made (``Shaper.share_of``), as if it had
had one from the beginning, only that it pays as who is new when it first waits.

Most flows end before that. With two shares and two meters made for each, limits that were never
reached cost a connection with one request 10 points more of its CPU than they do so.

Units: bytes, seconds. Pure: time is an argument, monotonic.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import count
from typing import Any, Final, Protocol

from proxy.core.ceiling import LEASE_MAX, Ceiling
from proxy.core.lease import Lease
from proxy.core.line import Line, Waiter
from proxy.core.rate import Rate

ENOUGH: Final = 1 << 29
"""Bytes. When they are used up, whoever comes next looks at his budget and makes them anew."""

ENDLESS: Final = Lease(ENOUGH)
"""Of a level that has no ceiling."""


class Newcomer(Protocol):
    """A direction of a flow that has no share yet.

    Attributes:
        source: whose lease it goes by.
        whole: the lease of the listener.
        left: what it may move by them, of what a new bucket holds.

    """

    source: Group
    whole: Lease
    left: int


class Node(Waiter):
    """A share or a group of them: its bucket, its lease, and where it waits.

    Attributes:
        left: of its lease; the listener's is apart, see ``Shaper.become``.
        lent: the same when it was last looked at.
        parent: the level above; None above the listener.
        ceiling: of what it moves.
        full_at: its bucket, if there is a ceiling.
        weight: of its part beside its neighbours.
        tag: what it was served, in full grants (see ``core.shaper``) by its weight.
        wants: bytes that it can take at once, a quantum at most; set while it is in line.

    """

    __slots__ = ("ceiling", "full_at", "left", "lent", "parent", "tag", "wants")
    weight: float
    wants: float

    def __init__(self, parent: Group | None, ceiling: Ceiling, tag: float, now: float) -> None:
        self.line = self.place = None
        self.parent = parent
        self.ceiling = ceiling
        self.full_at = now + ceiling.new
        self.tag = tag
        self.left = self.lent = 0

    def book(self, now: float) -> None:
        """Book what was moved by its lease."""
        moved = self.lent - self.left
        if moved:
            self.full_at = self.ceiling.after_lease(self.full_at, moved, now)
            self.lent = self.left


def lacks(node: Node, now: float) -> bool:
    """Whether its own bucket holds too little for a grant."""
    return node.full_at - now > node.ceiling.at_least


class Group(Node):
    """A source, or the listener: those below it who wait for it, least served first.

    Attributes:
        key: of the source.
        inside: the ceiling of those below.
        members: how many there are.
        queue: those of them that have tokens and wait.
        virtual: the largest tag that was served.
        latest: what was granted last, in full grants.
        whole: the lease of the listener when this one lent last, or was made.

    """

    __slots__ = ("inside", "key", "latest", "members", "queue", "virtual", "weight", "whole")

    def __init__(
        self,
        parent: Group | None,
        ceiling: Ceiling,
        tag: float,
        now: float,
        numbers: Iterator[int],
    ) -> None:
        super().__init__(parent, ceiling, tag, now)
        self.key: Hashable = None
        self.inside = ceiling
        self.weight = 1.0
        self.members = 0
        self.queue: Line[Node] = Line(numbers)
        self.virtual = 0.0
        self.latest = 0.0
        self.whole = ENDLESS

    def owes(self, now: float) -> bool:
        """Whether its bucket holds less than a new one would."""
        self.book(now)
        return self.full_at - now > self.ceiling.at_piece

    def newest_tag(self, weight: float) -> float:
        """The tag of who comes new: one grant behind."""
        return self.virtual + self.latest / weight

    def oldest_tag(self, weight: float) -> float:
        """The least tag of who comes back: it may be due one grant."""
        return self.virtual - self.latest / weight


class Share(Node):
    """One direction of a flow, as the shaper sees it. Made by ``Shaper.join``.

    Attributes:
        granted: what it may move in its turn, until it said what it did.
        owner: who moves it; the caller's affair.
        whole: the lease of the listener.

    """

    __slots__ = ("granted", "owner", "source", "whole")
    weight = 1.0

    def __init__(self, source: Group, rate: Rate | None, whole: Lease, now: float) -> None:
        # All of it here: what calls to the classes above cost shows in the cost of a connection.
        ceiling = source.inside if rate is None else Ceiling(rate)
        self.line = self.place = None
        self.parent = self.source = source
        self.ceiling = ceiling
        self.full_at = now + ceiling.new
        self.tag = source.virtual + source.latest
        self.left = self.lent = ceiling.first_lease
        self.whole = whole
        self.granted = 0
        self.owner: Any = None

    @property
    def rate(self) -> Rate | None:
        """The ceiling in force. To set it gives the share one of its own; None takes that away."""
        return self.ceiling.rate

    @rate.setter
    def rate(self, rate: Rate | None) -> None:
        self.ceiling = self.source.inside if rate is None else Ceiling(rate)
        self.lent -= self.left
        self.left = 0


ALONE: Final = Group(None, Ceiling(None), 0.0, 0.0, numbers=count())
"""The source of flows that share no bandwidth, and go by leases because of their budget only."""


def lend_budget(leg: Newcomer) -> None:
    """Have a direction move so much before anybody looks at its flow's budget again.

    What the others have is without end: it is made anew each time, and not just large, because
    the interpreter is quick with numbers below 2 to the power of 30.
    """
    leg.source = ALONE
    leg.whole = ENDLESS
    leg.left = LEASE_MAX
    ALONE.left = ENDLESS.left = ENOUGH
