"""Bandwidth of streams: who has had its part is not read, and the kernel's window pushes back.

A listener has a *throttle* for each direction, which asks the shaper (``proxy.core.shaper``) who
may move how much. A leg whose listener is limited has a *meter*, by which it asks before it
receives. When it gets nothing it is not read; the throttle has it move what it was granted when its
turn has come, before the next one. Turns are an affair of milliseconds, so they are alarms.

A leg without a meter knows nothing of all this.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import structlog

from proxy.core.admission import Limit
from proxy.core.ceiling import GRANT_MAX
from proxy.core.lease import BUDGET_ROOM
from proxy.core.police import Policer
from proxy.core.shaper import Shaper
from proxy.engine.sources import source_key_of, weight_of

if TYPE_CHECKING:
    from proxy.core.ceiling import ShapeRates
    from proxy.core.counters import ListenerCounters
    from proxy.core.police import Policed
    from proxy.core.share import Share
    from proxy.core.sources import SourceKey
    from proxy.engine.alarms import Alarms
    from proxy.engine.leg import StreamLeg
    from proxy.engine.specs import BandwidthLimits
    from proxy.engine.stream import StreamFlow
    from proxy.engine.toll import Toll

GRANTS_PER_TURN: Final = 16
"""Grants until other sockets get their turn: two megabytes, or a thousandth of a second."""

log = structlog.get_logger()


class Owner(Protocol):
    """Who is told of a share's turn: a leg, or what it asks through."""

    def granted(self, grant: int, now: float) -> None:
        """Move so many bytes at most, and book them."""
        ...


class Bandwidth:
    """The bandwidth of a listener's stream flows: a throttle for each direction.

    Args:
        alarms: of the pump.
        limits: at the start.
        now: monotonic seconds.
        dry_run: hold nobody back, only count what would be; for its whole life.

    """

    def __init__(
        self, alarms: Alarms, limits: BandwidthLimits, now: float, *, dry_run: bool = False
    ) -> None:
        self.dry_run = dry_run
        self._weights = limits.weights
        self._has_weights = bool(limits.weights)
        self._original: Throttle | Watch
        self._reply: Throttle | Watch
        if dry_run:
            self._original, self._reply = Watch(limits.original, now), Watch(limits.reply, now)
        else:
            self._original = Throttle(alarms, limits.original, now)
            self._reply = Throttle(alarms, limits.reply, now)

    def become(self, limits: BandwidthLimits) -> None:
        """Have other ceilings, for the flows that exist too."""
        self._weights = limits.weights
        self._has_weights = bool(limits.weights)
        self._original.become(limits.original)
        self._reply.become(limits.reply)

    def waiting(self, now: float) -> tuple[float, float]:
        """The weight of the sources that wait for the listener's bandwidth, by direction."""
        return self._original.waiting(now), self._reply.waiting(now)

    def begin(self, flow: StreamFlow, now: float) -> None:
        """Have both legs of a flow that begins now go by leases, until they have to ask here.

        Every call shows in the cost of a connection, so here are few.
        """
        original, reply = self._original, self._reply
        if original.shaper is None or reply.shaper is None:
            self.meter(flow, now)
            return
        weight = weight_of(flow, self._weights) if self._has_weights else 1
        source = flow.source.key or source_key_of(flow, flow.counters.gate.limits)
        one, other = flow.original, flow.reply
        original.shaper.let_in(one, source, now, weight)
        reply.shaper.let_in(other, source, now, weight)
        one.throttle, other.throttle = original, reply
        one.limited = one.apart = other.limited = other.apart = True
        if flow.limits.bytes >= BUDGET_ROOM:
            one.lease, other.lease = one, other

    def meter(self, flow: StreamFlow, now: float) -> None:
        """Have both legs of a flow ask here from now on, with the weight that is in force."""
        weight = weight_of(flow, self._weights) if self._has_weights else 1
        legs = flow.original, flow.reply
        meters = [leg.own_meter() for leg in legs]
        if meters[0] is not None and meters[0].throttle is self._original:
            for leg, meter in zip(legs, meters, strict=True):
                if meter is not None:
                    meter.weigh(weight, now)
                    leg.limit()  # the flow may have another budget
            return
        source = flow.source.key or source_key_of(flow, flow.counters.gate.limits)
        flow.original.use_meter(self._original.meter(flow.original, source, now, weight))
        flow.reply.use_meter(self._reply.meter(flow.reply, source, now, weight))


class Throttle:
    """The bandwidth of one direction of a listener's flows; a ``Sleeper``.

    Args:
        alarms: wake it for the next turn.
        rates: the ceilings at the start.
        now: monotonic seconds.

    """

    __slots__ = ("_alarms", "alarm", "shaper")

    def __init__(self, alarms: Alarms, rates: ShapeRates, now: float) -> None:
        self.alarm = inf
        self._alarms = alarms
        self.shaper = Shaper(rates, now)

    def become(self, rates: ShapeRates) -> None:
        """Have other ceilings, for the flows that exist too."""
        self.shaper.become(rates)

    def meter(self, owner: Owner, source: SourceKey, now: float, weight: int = 1) -> ShareMeter:
        """Take in a leg."""
        return ShareMeter(self, self.shaper.join(source, now, weight), owner)

    def meter_of(self, leg: StreamLeg) -> ShareMeter:
        """Have a leg ask that went by the leases since its flow began."""
        return ShareMeter(self, self.shaper.share_of(leg, leg.flow.opened, leg.bytes), leg)

    def waiting(self, now: float) -> float:
        """The weight of the sources that wait for the listener's bandwidth."""
        return self.shaper.waiting()

    def weigh(self, share: Share, weight: int) -> None:
        """Give the source of a leg another weight."""
        self.shaper.weigh(share, weight)

    def leave(self, share: Share) -> None:
        """Let go of a leg, wherever it stands."""
        self.shaper.leave(share)

    def ask(self, share: Share, now: float) -> int:
        """How many bytes a leg may move now; 0: it will be told when."""
        grant = self.shaper.ask(share, now)
        if not grant:
            self._alarms.set(self, self.shaper.next_at())
        return grant

    def held_by(self, share: Share) -> Limit:
        """The limit that makes a leg wait."""
        limit = self.shaper.held_by(share)
        assert limit is not None, "it does not wait"
        return limit

    def spent(self, share: Share, size: int, now: float) -> None:
        """Book what it moved."""
        self.shaper.spent(share, size, now)

    def wake(self, now: float) -> None:
        """Have those whose turn it is move what they are granted."""
        turns = GRANTS_PER_TURN
        for share, grant in self.shaper.serve(now):
            share.owner.granted(grant, now)
            turns -= 1
            if not turns:
                break
        self._alarms.set(self, self.shaper.next_at())

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours, and go on."""
        log.error("throttle_crashed", exc_info=error)
        self._alarms.set(self, self.shaper.next_at())


class ShareMeter:
    """What a leg asks before it receives: its share of a throttle.

    Attributes:
        share: by whose lease it may also go, without asking.

    """

    __slots__ = ("share", "throttle")

    def __init__(self, throttle: Throttle, share: Share, owner: Owner) -> None:
        self.throttle = throttle
        self.share = share
        share.owner = owner

    @property
    def in_line(self) -> bool:
        """Whether the throttle will have the leg move, when its turn has come."""
        return self.share.line is not None

    @property
    def held_by(self) -> Limit:
        """The limit that makes it wait."""
        return self.throttle.held_by(self.share)

    def tell(self, owner: Owner) -> None:
        """Have another one told when the turn has come."""
        self.share.owner = owner

    def ask(self, now: float) -> int:
        """How many bytes the leg may move now; 0: it is in line."""
        return self.throttle.ask(self.share, now)

    def spent(self, size: int, now: float) -> None:
        """Book what it moved."""
        self.throttle.spent(self.share, size, now)

    def weigh(self, weight: int, now: float) -> None:
        """Have its source weigh so much from now on."""
        self.throttle.weigh(self.share, weight)

    def leave(self) -> None:
        """It moves nothing any more."""
        self.throttle.leave(self.share)


class Watch:
    """Counts what a throttle would hold back, and holds back nothing.

    Args:
        rates: the ceilings at the start.
        now: monotonic seconds.

    """

    __slots__ = ("policer",)

    shaper = None

    def __init__(self, rates: ShapeRates, now: float) -> None:
        self.policer = Policer(rates, now)

    def become(self, rates: ShapeRates) -> None:
        """Have other ceilings, for the flows that exist too."""
        self.policer.become(rates)

    def waiting(self, now: float) -> float:
        """The weight of the sources that would wait for the listener's bandwidth."""
        return self.policer.waiting(now)

    def meter(self, leg: StreamLeg, source: SourceKey, now: float, weight: int = 1) -> WatchMeter:
        """Take in a leg."""
        return WatchMeter(self, self.policer.join(source, now, weight), leg.flow.counters)


class WatchMeter:
    """What a leg asks in a dry run: it always may, and what it moved is judged as datagrams are."""

    __slots__ = ("_counters", "_policed", "throttle")

    share = None  # each move is judged
    in_line = False
    held_by = Limit.LISTENER_BANDWIDTH  # nobody is

    def __init__(self, watch: Watch, policed: Policed, counters: ListenerCounters) -> None:
        self.throttle = watch
        self._policed = policed
        self._counters = counters

    def tell(self, owner: Owner) -> None:
        """There are no turns."""

    def ask(self, now: float) -> int:
        """As much as it likes."""
        return GRANT_MAX

    def spent(self, size: int, now: float) -> None:
        """Count if that is more than it would have been granted."""
        limit = self.throttle.policer.passes(self._policed, size, now)
        if limit is not None:
            self._counters.strikes(limit)

    def weigh(self, weight: int, now: float) -> None:
        """Have its source weigh so much from now on."""
        self.throttle.policer.weigh(self._policed, weight, now)

    def leave(self) -> None:
        """It moves nothing any more."""
        self.throttle.policer.leave(self._policed)


Meter: TypeAlias = "ShareMeter | WatchMeter | Toll"
