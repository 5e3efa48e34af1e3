"""Datagram flows that count: so many answers to a datagram, so many datagrams to an endpoint.

``responses = 1`` is the way of DNS: each question has one answer, and when as many answers as
questions have passed the flow is finished, in place of holding a socket until it is idle.

``datagrams = N`` spreads the datagrams of one client. A flow that has taken N of them is *spent*:
it leaves the index by which clients are looked up, so that the next datagram opens another flow
at the next endpoint, with the same client's pair. The spent flow lives on in the table with its
socket, because its answers still come; since no datagram of the client can refresh it any more,
it ends by the unreplied clock, or sooner by ``responses``, which counts once the flow is spent.

Only listeners with one of these keys have such flows; the others do not pay for the counting.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from proxy.core.flow import CloseReason, CloseSide
from proxy.engine.datagram import DatagramFlow

if TYPE_CHECKING:
    from proxy.core.expiry import FlowLimits
    from proxy.engine.datagram_options import DatagramOptions


class CountedFlow(DatagramFlow):
    """A flow that ends, or takes no more, by number."""

    __slots__ = ()

    @property
    def limits(self) -> FlowLimits:
        """The clocks in force: those of a spent flow are shorter."""
        limits = self.listener.terms.limits
        return _spent_limits(limits) if self._spent else limits

    def ready(self, mask: int, now: float) -> None:
        """Receive one answer; the last one ends the flow."""
        super().ready(mask, now)
        self._finish(now)

    def take_reply(self, size: int, now: float) -> None:
        """Pass on an answer; the last one ends the flow."""
        super().take_reply(size, now)
        self._finish(now)

    def send(self, data: memoryview, now: float) -> None:
        """Pass on a datagram; the last one leaves the client to another flow."""
        super().send(data, now)
        if self._spent:
            self.leave_index()

    @property
    def _spent(self) -> bool:
        datagrams = self.listener.options.datagrams
        return 0 < datagrams <= self.original.packets

    def _finish(self, now: float) -> None:
        options = self.listener.options
        expected = options.responses * self.original.packets
        if 0 < expected <= self.reply.packets and (not options.datagrams or self._spent):
            self.abort(CloseReason.FINISHED, CloseSide.ENDPOINT, now)


def flow_type_of(options: DatagramOptions) -> type[DatagramFlow]:
    """The class of a listener's flows."""
    return CountedFlow if options.responses or options.datagrams else DatagramFlow


@lru_cache(maxsize=1024)
def _spent_limits(limits: FlowLimits) -> FlowLimits:
    return replace(limits, idle=min(limits.idle, limits.unreplied))
