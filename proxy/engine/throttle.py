"""Bandwidth of streams: who has had its part is not read, and the kernel's window pushes back.

A listener has a *throttle* for each direction, which asks the shaper (``proxy.core.shaper``) who
may move how much. A leg whose listener is limited has a *meter*, by which it asks before it
receives. When it gets nothing it is not read; the throttle has it move what it was granted when its
turn has come, before the next one. Turns are an affair of milliseconds, so they are alarms.

A leg without a meter knows nothing of all this.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import structlog

from proxy.core.shaper import Shaper, Share
from proxy.engine.sources import source_key_of

if TYPE_CHECKING:
    from proxy.core.ceiling import ShapeRates
    from proxy.core.sources import SourceKey
    from proxy.engine.alarms import Alarms
    from proxy.engine.leg import StreamLeg
    from proxy.engine.specs import BandwidthLimits
    from proxy.engine.stream import StreamFlow

GRANTS_PER_TURN: Final = 16
"""Grants until other sockets get their turn: two megabytes, or a thousandth of a second."""

log = structlog.get_logger()


class Bandwidth:
    """The bandwidth of a listener's stream flows: a throttle for each direction.

    Args:
        alarms: of the pump.
        limits: at the start.
        now: monotonic seconds.

    """

    def __init__(self, alarms: Alarms, limits: BandwidthLimits, now: float) -> None:
        self._original = Throttle(alarms, limits.original, now)
        self._reply = Throttle(alarms, limits.reply, now)

    def become(self, limits: BandwidthLimits) -> None:
        """Have other ceilings, for the flows that exist too."""
        self._original.become(limits.original)
        self._reply.become(limits.reply)

    def meter(self, flow: StreamFlow, now: float) -> None:
        """Have both legs of a flow ask from now on."""
        source = source_key_of(flow, flow.counters.gate.limits)
        flow.original.use_meter(self._original.meter(flow.original, source, now))
        flow.reply.use_meter(self._reply.meter(flow.reply, source, now))


class Throttle:
    """The bandwidth of one direction of a listener's flows; a ``Sleeper``.

    Args:
        alarms: wake it for the next turn.
        rates: the ceilings at the start.
        now: monotonic seconds.

    """

    __slots__ = ("_alarms", "_shaper", "alarm")

    def __init__(self, alarms: Alarms, rates: ShapeRates, now: float) -> None:
        self.alarm = inf
        self._alarms = alarms
        self._shaper = Shaper(rates, now)

    def become(self, rates: ShapeRates) -> None:
        """Have other ceilings, for the flows that exist too."""
        self._shaper.become(rates)

    def meter(self, leg: StreamLeg, source: SourceKey, now: float) -> Meter:
        """Take in a leg."""
        share = self._shaper.join(source, now)
        share.owner = leg
        return Meter(self, share)

    def leave(self, share: Share) -> None:
        """Let go of a leg, wherever it stands."""
        self._shaper.leave(share)

    def ask(self, share: Share, now: float) -> int:
        """How many bytes a leg may move now; 0: it will be told when."""
        grant = self._shaper.ask(share, now)
        if not grant:
            self._alarms.set(self, self._shaper.next_at())
        return grant

    def spent(self, share: Share, size: int, now: float) -> None:
        """Book what it moved."""
        self._shaper.spent(share, size, now)

    def wake(self, now: float) -> None:
        """Have those whose turn it is move what they are granted."""
        turns = GRANTS_PER_TURN
        for share, grant in self._shaper.serve(now):
            share.owner.granted(grant, now)
            turns -= 1
            if not turns:
                break
        self._alarms.set(self, self._shaper.next_at())

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours, and go on."""
        log.error("throttle_crashed", exc_info=error)
        self._alarms.set(self, self._shaper.next_at())


class Meter:
    """What a leg asks before it receives."""

    __slots__ = ("_share", "_throttle")

    def __init__(self, throttle: Throttle, share: Share) -> None:
        self._throttle = throttle
        self._share = share

    @property
    def in_line(self) -> bool:
        """Whether the throttle will have the leg move, when its turn has come."""
        return self._share.line is not None

    def ask(self, now: float) -> int:
        """How many bytes the leg may move now; 0: it is in line."""
        return self._throttle.ask(self._share, now)

    def spent(self, size: int, now: float) -> None:
        """Book what it moved."""
        self._throttle.spent(self._share, size, now)

    def leave(self) -> None:
        """It moves nothing any more."""
        self._throttle.leave(self._share)
