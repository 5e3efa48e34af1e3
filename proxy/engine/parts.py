"""A listener's bandwidth, held by several workers together: each has a part, told anew every tick.

A worker tells the others what it wants and reads what they do, in the memory that they share; then
it holds its own flows to its part. See ``proxy.core.parts`` for how much that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.ceiling import ShapeRates, shaping_rate
from proxy.core.parts import Want, part_of

if TYPE_CHECKING:
    from proxy.core.counters import DirectionCounters, ListenerCounters
    from proxy.core.rate import Rate
    from proxy.engine.commons import Row
    from proxy.engine.limited import Policing
    from proxy.engine.specs import BandwidthLimits
    from proxy.engine.throttle import Bandwidth


class BandwidthPart:
    """A worker's part of one listener's bandwidth.

    Args:
        row: the listener in all workers, as this one sees it.
        shared: what its flows here share.
        limits: of all workers together.
        counters: of the listener here.
        now: monotonic seconds.

    """

    def __init__(
        self,
        row: Row,
        shared: Bandwidth | Policing,
        limits: BandwidthLimits,
        counters: ListenerCounters,
        now: float,
    ) -> None:
        self._row = row
        self._shared = shared
        self._limits = limits
        self._meters = [_Flowmeter(each, now) for each in (counters.original, counters.reply)]

    def look(self, now: float) -> None:
        """Tell what is wanted here, and take the part that this leaves."""
        weights = self._shared.waiting(now)
        wants = [
            Want(weight, meter.read(now))
            for weight, meter in zip(weights, self._meters, strict=True)
        ]
        self._row.tell_wants(wants)
        original, reply = (
            self._narrowed(rates, own, self._row.wants(index))
            for index, (rates, own) in enumerate(
                zip((self._limits.original, self._limits.reply), wants, strict=True)
            )
        )
        self._shared.become(self._limits._replace(original=original, reply=reply))

    def _narrowed(self, rates: ShapeRates, own: Want, others: list[Want]) -> ShapeRates:
        whole: Rate | None = rates.listener
        if whole is None:
            return rates
        part = part_of(whole.per_second, own, others)
        return ShapeRates(listener=shaping_rate(part), source=rates.source, flow=rates.flow)


class _Flowmeter:
    """How many bytes a second a direction of a listener has sent on since it was last read."""

    def __init__(self, counters: DirectionCounters, now: float) -> None:
        self._counters = counters
        self._sent = counters.sent
        self._at = now

    def read(self, now: float) -> float:
        sent, span = self._counters.sent, now - self._at
        rate = (sent - self._sent) / span if span > 0 else 0.0
        self._sent, self._at = sent, now
        return max(0.0, rate)
