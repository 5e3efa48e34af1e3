"""What a leg asks whose flow is under an order: first the order, then what it asked before.

An order has a throttle of its own, for the flows it is for. A leg may move what both grant it, but
it cannot wait in two lines for the same bytes: by the time it has its turn in one, that in the
other has passed. So the order is asked first, and its grant is *paid* at once; then the leg asks
what it asked before, if anything, and moves what that grants, up to what is paid. What it did not
move is paid back.

So the flows of an order never move more than it grants; what is paid and not moved yet is a grant
for each flow at most.

An order for a flow that is under another one already is asked before that: tolls make a chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.admission import Limit

if TYPE_CHECKING:
    from proxy.core.sources import SourceKey
    from proxy.engine.leg import StreamLeg
    from proxy.engine.throttle import Meter, Owner, ShareMeter, Throttle, Watch


class Toll:
    """A meter before another one.

    Args:
        order: the throttle of an order.
        leg: who moves.
        inner: the meter it asked before; None if there was none.
        source: that the flow's client belongs to.
        now: monotonic seconds.

    """

    __slots__ = ("_own", "_owner", "_paid", "inner")

    share = None  # there is no lease of two throttles

    def __init__(
        self, order: Throttle, leg: StreamLeg, inner: Meter | None, source: SourceKey, now: float
    ) -> None:
        self._own: ShareMeter = order.meter(_Turn(self), source, now)
        self._owner: Owner = leg
        self._paid = 0
        self.inner = inner
        if inner is not None:
            inner.tell(self)

    @property
    def throttle(self) -> Throttle | Watch | None:
        """The one of the leg's listener."""
        return None if self.inner is None else self.inner.throttle

    @property
    def in_line(self) -> bool:
        """Whether a throttle will have the leg move, when its turn has come."""
        return self._own.in_line or (self.inner is not None and self.inner.in_line)

    @property
    def held_by(self) -> Limit:
        """The limit that makes it wait."""
        if self.inner is None or self._own.in_line:
            return Limit.ORDERED_BANDWIDTH
        return self.inner.held_by

    def tell(self, owner: Owner) -> None:
        """Have another one told when the turn has come."""
        self._owner = owner

    def ask(self, now: float) -> int:
        """How many bytes the leg may move now; 0: it is in line."""
        if not self._paid:
            self._pay(self._own.ask(now), now)
        return self._ask_inner(now)

    def spent(self, size: int, now: float) -> None:
        """Book what it moved, and take back what was paid for more."""
        if self.inner is not None:
            self.inner.spent(size, now)
        self._pay(-max(0, self._paid - size), now)
        self._paid = 0

    def granted(self, grant: int, now: float) -> None:
        """Move so many bytes at most, as the inner meter says."""
        assert self.inner is not None
        if not self._paid:
            self._pay(self._own.ask(now), now)
        if self._paid:
            self._owner.granted(min(grant, self._paid), now)
        else:
            self.inner.spent(0, now)

    def turn(self, grant: int, now: float) -> None:
        """Pay, as it is the leg's turn among those under the order, and ask on."""
        if self._paid:  # and not moved: the inner meter makes it wait
            self._own.spent(0, now)
        else:
            self._pay(grant, now)
        if self.inner is None or not self.inner.in_line:
            allowed = self._ask_inner(now)
            if allowed:
                self._owner.granted(allowed, now)

    def weigh(self, weight: int, now: float) -> None:
        """Have its source weigh so much from now on, among those of its listener."""
        if self.inner is not None:
            self.inner.weigh(weight, now)

    def leave(self) -> None:
        """It moves nothing any more."""
        self._own.leave()
        if self.inner is not None:
            self.inner.leave()

    def lift(self, now: float) -> Meter | None:
        """Ask the order no more; return the inner meter, which somebody else has to be told of."""
        self._pay(-self._paid, now)
        self._paid = 0
        self._own.leave()
        return self.inner

    def _pay(self, size: int, now: float) -> None:
        if size:
            self._paid += size
            self._own.spent(size, now)

    def _ask_inner(self, now: float) -> int:
        if not self._paid or self.inner is None:
            return self._paid
        return min(self._paid, self.inner.ask(now))


class _Turn:
    """Hears of a toll's turn at the order."""

    __slots__ = ("_toll",)

    def __init__(self, toll: Toll) -> None:
        self._toll = toll

    def granted(self, grant: int, now: float) -> None:
        self._toll.turn(grant, now)
