"""The sampler: asks the kernel about the flows of a worker, so many a second, in turn.

Strategy: it goes through the table again and again, in the order of ids, so that whoever was
sampled longest ago is next and nobody is left out; a round begins once a second at most. It is an
errand of the pump, which serves the relay between two looks. Nothing is added to what a flow does
by itself: a round begins with the ids that are in the table then, and an id that is gone is passed
over.

A flow that has been still for long has nothing new to tell, and costs a microsecond.

Costs: 11 microseconds a sample, both sockets together, and one for a flow that is passed over; at
the default rate that is one to two hundredths of a core, however many flows there are.
Source: tcp(7) TCP_INFO and FIONREAD; the offsets are those of struct tcp_info in linux/tcp.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from socket import IPPROTO_TCP, TCP_INFO
from time import monotonic
from typing import TYPE_CHECKING, Final

import trio

from proxy.core.sample import (
    NO_INFO,
    PATIENCE,
    STILL,
    Sample,
    Stalled,
    TcpInfo,
    retimed,
    under_way,
    unpack,
    waits_between,
)
from proxy.engine.stream import StreamFlow
from proxy.engine.tcp import CLOSED, bytes_to_read

if TYPE_CHECKING:
    from proxy.engine.leg import StreamLeg
    from proxy.engine.relay import Relay

TICK: Final = 0.05
"""Seconds between two errands: at the default rate one takes half a millisecond, or as much as
three where many flows are passed over."""

ROUND: Final = 1.0
"""Seconds from the beginning of a round to that of the next, at least."""

PASSED_OVER: Final = 4
"""Flows that may be passed over for each that may be sampled; that takes half as long."""

SAMPLE_RATE: Final = 1000.0
"""Flows a second: a good hundredth of a core."""

INFO: Final = struct.Struct("=24xI16xI4xI12xI28xI44xI8x4Q")
"""Of struct tcp_info: unacked, last_data_sent, last_data_recv, rtt, total_retrans, min_rtt,
delivery_rate, busy_time, rwnd_limited and sndbuf_limited (Linux 4.10), in this order."""


class Sampler:
    """Samples the flows of one worker.

    Args:
        relay: whose table it goes through.

    Attributes:
        rate: flows a second at most.

    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.rate = SAMPLE_RATE
        self._left: Iterator[int] = iter(())
        self._begun = 0.0
        self._through = False  # whether the round has come to its end before its time
        self._credit = 0.0
        self._looks = 0

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await trio.sleep(self.pause(monotonic()))
            self.earn()
            await self._relay.errands.run(iter(lambda: self.look_on(monotonic()), False))

    def pause(self, now: float) -> float:
        """Seconds until there is something to look at: few flows shall not wake us up often."""
        if not len(self._relay.table):
            return ROUND
        return max(TICK, self._begun + ROUND - now) if self._through else TICK

    def earn(self) -> None:
        """Know that a tick has gone by, and allows so many looks more."""
        earned = self.rate * TICK
        self._credit = min(self._credit + earned, max(1.0, earned))
        self._looks = int(self._credit) * (1 + PASSED_OVER)

    def look_on(self, now: float) -> bool:
        """Look at the next flow; false if the tick allows no more, or the round is through."""
        if self._credit < 1 or not self._looks:
            return False
        self._looks -= 1
        id = next(self._left, None)
        if id is None:
            self._through = now < self._begun + ROUND
            if not self._through:
                self._begun, self._left = now, iter(self._relay.table.ids())
            return not self._through
        flow = self._relay.table.get(id)
        if isinstance(flow, StreamFlow) and self.look(flow, now):
            self._credit -= 1
        return True

    def look(self, flow: StreamFlow, now: float) -> bool:
        """Sample a flow; false if there is nothing new to learn."""
        client, endpoint = flow.original.socket, flow.reply.socket
        if client is CLOSED or endpoint is CLOSED:  # it is connecting, or closing
            return False
        if flow.active <= now - PATIENCE and _is_still(flow, now):
            return False
        before = None if flow.sample is None else unpack(flow.sample)
        sample = Sample(
            now,
            flow.original.bytes,
            flow.reply.bytes,
            _stalled(flow.original, now),
            _stalled(flow.reply, now),
            tcp_info(flow.original),
            tcp_info(flow.reply),
        )
        flow.sample = _account(flow, before, sample).pack()
        return True


def tcp_info(leg: StreamLeg) -> TcpInfo:
    """Ask the kernel about a leg's socket."""
    try:
        raw = leg.socket.getsockopt(IPPROTO_TCP, TCP_INFO, INFO.size)
    except OSError:  # EOPNOTSUPP: a Unix socket
        return NO_INFO
    if len(raw) < INFO.size:  # an older kernel
        return NO_INFO
    return TcpInfo._make(INFO.unpack(raw))


def _account(flow: StreamFlow, before: Sample | None, sample: Sample) -> Sample:
    """Write into the books of the listener what a sample tells; return it with its verdict."""
    books = flow.counters.samples
    books.taken += 1
    if sample.client is not NO_INFO:
        books.client.observe(sample.client.rtt / 1e6, flow.id, sample.when)
    if sample.endpoint is not NO_INFO:
        books.endpoint.observe(sample.endpoint.rtt / 1e6, flow.id, sample.when)
    if before is None:
        books.client_retransmits += sample.client.retransmits
        books.endpoint_retransmits += sample.endpoint.retransmits
        return sample
    books.client_retransmits += sample.client.retransmits - before.client.retransmits
    books.endpoint_retransmits += sample.endpoint.retransmits - before.endpoint.retransmits
    waits = waits_between(before, sample, behind=_is_behind(flow))
    books.add(waits)
    return sample._replace(waits=before.waits.then(waits, sample.when - before.when))


def _is_still(flow: StreamFlow, now: float) -> bool:
    """Whether nothing has happened since it was sampled, or is under way; then time goes on."""
    if flow.sample is None or flow.original.pending or flow.reply.pending:
        return False
    when, to_client, to_endpoint = under_way(flow.sample)
    if flow.active > when or to_client or to_endpoint:
        return False
    flow.sample = retimed(flow.sample, now)
    return True


def _is_behind(flow: StreamFlow) -> bool:
    """Whether bytes lie in a socket that nothing but ourselves keeps from going on."""
    return any(
        leg.pending is None and not leg.ended and bytes_to_read(leg.socket.fileno())
        for leg in (flow.original, flow.reply)
    )


def _stalled(leg: StreamLeg, now: float) -> Stalled:
    return STILL if leg.stalls is None else leg.stalls.until(now)
