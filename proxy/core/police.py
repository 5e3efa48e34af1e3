"""Bandwidth of datagrams: each is passed or dropped, at once. Nothing is queued.

A datagram goes through three ceilings: of its flow, of its source, of the listener. A source's is
divided max-min between its flows, the listener's first between sources and then between the flows
of each, as a fair queue would do it: what was passed is kept in thought as outstanding at a server
with the ceiling's speed that is divided perfectly (``core.fair``). What is missing in a bucket is
just what is outstanding in all. A datagram passes if the bucket has room for it *and for as much
again* as its source, and its flow, have outstanding. So who sends more than its part fills a part
of the bucket and is then passed as fast as its part drains, while who sends less finds room always;
and when one is quiet the others drain faster at once: nothing is measured, and there is no interval
to wait for.

Rejected: slots of time with levels from the demands of the last one. Datagrams are large and few in
a slot, demands of one slot say little about the next, and what changes is seen one slot late.

Invariants: in any span of ``t`` seconds each ceiling passes at most ``burst + per_second * t``,
where a datagram beyond the burst needs a full bucket and leaves a debt, and a bucket of few has
room for one more (``Ceiling.after_datagram``). Dropped ones cost nothing.

Far from all ceilings datagrams pass by *leases* and are booked later, see ``core.lease``.

The parts are even where the bucket has room for some datagrams of each who wants too much: the
burst should be that of several. Buckets begin full, because who is dropped does not just wait.

Units: bytes of payload, seconds, bytes a second. Pure: time is an argument, monotonic.

Source: A. Choudhury, E. Hahne, "Dynamic queue length thresholds for shared-memory packet switches"
(1998), for the room that is left in proportion.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import count
from math import inf

from proxy.core.admission import Limit
from proxy.core.ceiling import CALM, Ceiling, ShapeRates
from proxy.core.fair import Fluid, Part
from proxy.core.kept import Kept
from proxy.core.lease import Lease
from proxy.core.rate import Rate


class _Source(Part):
    """A source: its bucket, and its flows in thought.

    Attributes:
        key: of the source.
        members: its flows.
        full_at: its bucket.
        left: of its lease.
        lent: the same when it was last looked at.
        inside: divides between its flows what it drains.
        noted: what it had outstanding when that was last done.

    """

    __slots__ = ("common", "full_at", "inside", "key", "left", "lent", "members", "noted")

    def __init__(
        self, key: Hashable, weight: float, common: Ceiling, now: float, numbers: Iterator[int]
    ) -> None:
        super().__init__(weight)
        self.key = key
        self.members = 0
        self.common = common
        self.full_at = now
        self.left = self.lent = 0
        self.inside = Fluid(numbers)
        self.noted = 0.0

    def owes(self, now: float) -> bool:
        """Whether its bucket is not full, or something outstanding."""
        self.book(now)
        return self.full_at > now or self.busy

    def book(self, now: float) -> None:
        """Book what passed by its lease."""
        moved = self.lent - self.left
        if moved:
            self.full_at = self.common.after_lease(self.full_at, moved, now)
            self.lent = self.left


class Policed(Part):
    """One direction of a flow, as the policer sees it. Made by ``Policer.join``.

    Attributes:
        left: of its lease.
        lent: the same when it was last looked at.
        whole: the lease of the listener.

    """

    __slots__ = ("_common", "ceiling", "full_at", "left", "lent", "source", "whole")

    def __init__(
        self, source: _Source, common: Ceiling, rate: Rate | None, whole: Lease, now: float
    ) -> None:
        super().__init__()
        self.source = source
        self.whole = whole
        self.full_at = now
        self.left = self.lent = 0
        self._common = common
        self.ceiling = common if rate is None else Ceiling(rate)

    @property
    def rate(self) -> Rate | None:
        """The ceiling in force. To set it gives the flow one of its own; None takes that away."""
        return self.ceiling.rate

    @rate.setter
    def rate(self, rate: Rate | None) -> None:
        self.ceiling = self._common if rate is None else Ceiling(rate)
        self.call_in()

    def book(self, now: float) -> None:
        """Book what passed by its lease."""
        moved = self.lent - self.left
        if moved:
            self.full_at = self.ceiling.after_lease(self.full_at, moved, now)
            self.lent = self.left

    def call_in(self) -> None:
        """Have no lease any more; what passed by it is booked when it is next looked at."""
        self.lent -= self.left
        self.left = 0


class Policer:
    """Decides about the datagrams of one direction of one listener.

    Args:
        rates: the ceilings at the start.
        now: monotonic seconds.

    """

    __slots__ = (
        "_drained_at",
        "_flow",
        "_fluid",
        "_full_at",
        "_listener",
        "_numbers",
        "_source",
        "_sources",
        "_whole",
    )

    def __init__(self, rates: ShapeRates, now: float) -> None:
        self._listener = Ceiling(rates.listener)
        self._source = Ceiling(rates.source)
        self._flow = Ceiling(rates.flow)
        self._full_at = self._drained_at = now
        self._numbers = count()
        self._fluid = Fluid(self._numbers)
        self._sources: Kept[_Source] = Kept()
        self._whole = Lease(0)

    def become(self, rates: ShapeRates) -> None:
        """Have other ceilings, for the flows that exist too; O(1).

        Nobody passes by a lease of the old ones: each goes by the listener's lease that it knows,
        and that has nothing left.
        """
        before = self._whole
        self._whole = Lease(0, before.lent - before.left)
        before.left = 0
        self._listener.become(rates.listener)
        self._source.become(rates.source)
        self._flow.become(rates.flow)

    def join(
        self, source_key: Hashable, now: float, weight: float = 1, flow_rate: Rate | None = None
    ) -> Policed:
        """Enter a flow's direction; the arguments are those of ``Shaper.join``."""
        self._drain(now)  # so that it is known who may be forgotten
        sources = self._sources
        source = sources.join(source_key, now) or sources.enter(
            _Source(source_key, weight, self._source, now, self._numbers), now
        )
        self._fluid.weigh(source, weight)
        return Policed(source, self._flow, flow_rate, self._whole, now)

    def weigh(self, flow: Policed, weight: float, now: float) -> None:
        """Give a flow's source another weight, from now on."""
        self._drain(now)
        self._fluid.weigh(flow.source, weight)

    def leave(self, flow: Policed) -> None:
        """It ended; exactly once for each ``join``."""
        self._sources.leave(flow.source)

    def passes(self, flow: Policed, size: int, now: float) -> Limit | None:
        """Decide about a datagram: None, it passes and is booked; else the limit that drops it."""
        source, own, whole = flow.source, self._source, self._listener
        flow.book(now)
        source.book(now)
        self._book_whole(now)
        if flow.ceiling.tokens(flow.full_at - now) < min(size, flow.ceiling.burst):
            return Limit.FLOW_BANDWIDTH
        own_room = own.tokens(source.full_at - now)
        room = whole.tokens(self._full_at - now)
        if own_room - size < CALM * own.burst or room - size < CALM * whole.burst:
            self._drain(now)
            self._drain_inside(source, now)
            mine = source.inside.outstanding(flow)
            if min(size, own.burst) + mine > own_room:
                return Limit.SOURCE_BANDWIDTH
            if min(size, whole.burst) + mine + self._fluid.outstanding(source) > room:
                return Limit.LISTENER_BANDWIDTH
            self._note(flow, size)
        flow.full_at = flow.ceiling.after_datagram(flow.full_at, size, now)
        source.full_at = own.after_datagram(source.full_at, size, now)
        at_once = max(self._full_at, now) + size * whole.cost
        self._full_at = whole.after_datagram(self._full_at, size, now)
        if self._full_at < at_once:  # the rest was served before it came
            self._fluid.drain((at_once - self._full_at) * whole.per_second)
        self._lend(flow, now)
        return None

    def waiting(self, now: float) -> float:
        """The weight of the sources that have had more than their part; they would wait."""
        self._drain(now)
        return self._fluid.weight

    def _lend(self, flow: Policed, now: float) -> None:
        """Lend at each level what it can spare."""
        source, whole = flow.source, self._whole
        ceiling = flow.ceiling
        calm = flow.full_at - now <= ceiling.at_calm
        flow.left = flow.lent = ceiling.calm_lease if calm else 0
        flow.whole = whole
        ceiling = self._source
        calm = source.full_at - now <= ceiling.at_calm
        source.left = source.lent = ceiling.calm_lease if calm else 0
        ceiling = self._listener
        calm = self._full_at - now <= ceiling.at_calm
        whole.left = whole.lent = ceiling.calm_lease if calm else 0

    def _book_whole(self, now: float) -> None:
        """Book what passed by the lease of the listener."""
        whole = self._whole
        moved = whole.lent - whole.left
        if moved:
            self._full_at = self._listener.after_lease(self._full_at, moved, now)
            whole.lent = whole.left

    def _note(self, flow: Policed, size: int) -> None:
        source = flow.source
        self._fluid.add(source, size)
        source.inside.add(flow, size)
        source.noted += size

    def _drain(self, now: float) -> None:
        """Serve, in thought, what the listener has brought since."""
        whole = self._listener
        self._fluid.drain(
            inf if whole.rate is None else (now - self._drained_at) * whole.per_second
        )
        self._drained_at = now

    def _drain_inside(self, source: _Source, now: float) -> None:
        """Divide between the flows of a source what was served of it.

        It has as much outstanding as the slower one says: the listener, of which it has its part,
        or its own ceiling.
        """
        owed = source.full_at - now
        missing = owed * self._source.per_second if owed > 0 else 0.0
        outstanding = max(self._fluid.outstanding(source), missing)
        if outstanding < source.noted:
            source.inside.drain(source.noted - outstanding)
            source.noted = outstanding
