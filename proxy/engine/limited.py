"""Datagram flows that are limited: what is over a limit is dropped and counted, never queued.

Three limits are each flow's own: datagrams a second from its client, bytes in its life, and the
*amplification*, how many bytes go out for each that came in. The last is for services that could be
made to send to a stranger: a datagram's source can be forged, so the client is not proven until it
has sent again after it has been answered. Bandwidth is shared with the listener's other flows; see
``proxy.core.police``.

A reload, or an order, may limit a flow that lives already: then it becomes one of this class.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Final

from proxy.core.admission import Limit
from proxy.core.ceiling import LEASES_A_BURST
from proxy.core.flow import CloseReason, CloseSide, Drop, State
from proxy.core.lease import BUDGET_ROOM
from proxy.core.live_limit import FREE
from proxy.core.police import Policer
from proxy.engine.counted import CountedFlow
from proxy.engine.datagram import DatagramFlow
from proxy.engine.sources import source_key_of, weight_of
from proxy.engine.specs import UNRESTRICTED
from proxy.engine.trains import ask_for_trains

if TYPE_CHECKING:
    from proxy.core.live_limit import Restraint
    from proxy.core.police import Policed
    from proxy.core.rate import Rate
    from proxy.core.sources import SourceKey
    from proxy.core.upstream import Choice
    from proxy.engine.outbound import Connect
    from proxy.engine.specs import BandwidthLimits
    from proxy.engine.terms import Terms

ASSURED: Final = State.ASSURED

LONGEST: Final = 1 << 16
"""Bytes; no datagram is as long."""

LEASE_DATAGRAMS: Final = 1024
"""At most; a look at the limits for so many costs nothing that could be measured."""


class Policing:
    """The bandwidth of a listener's datagram flows: a policer for each direction.

    Args:
        limits: at the start.
        now: monotonic seconds.

    """

    def __init__(self, limits: BandwidthLimits, now: float) -> None:
        self.original = Policer(limits.original, now)
        self.reply = Policer(limits.reply, now)
        self.weights = limits.weights

    def become(self, limits: BandwidthLimits) -> None:
        """Have other ceilings, for the flows that exist too."""
        self.original.become(limits.original)
        self.reply.become(limits.reply)
        self.weights = limits.weights

    def waiting(self, now: float) -> tuple[float, float]:
        """The weight of the sources that want more than their part, by direction."""
        return self.original.waiting(now), self.reply.waiting(now)


class OrderedPart:
    """A flow's part of what an order allows, in one direction.

    Args:
        policer: of the order.
        policed: the flow, as that sees it.

    """

    __slots__ = ("_policed", "_policer")

    def __init__(self, policer: Policer, policed: Policed) -> None:
        self._policer = policer
        self._policed = policed

    def passes(self, size: int, now: float) -> bool:
        """Whether a datagram may pass; then it is booked."""
        return self._policer.passes(self._policed, size, now) is None

    def leave(self) -> None:
        """The flow has ended, or the order."""
        self._policer.leave(self._policed)


class Ordered:
    """What orders allow one flow; see ``orders``.

    A datagram that one order lets pass and the next one drops is booked on the first: that errs on
    the safe side.
    """

    __slots__ = ("_original", "_reply", "restraint")

    def __init__(
        self, restraint: Restraint, parts: Sequence[tuple[OrderedPart, OrderedPart]]
    ) -> None:
        self.restraint = restraint
        self._original = [original for original, _ in parts]
        self._reply = [reply for _, reply in parts]

    def passes_original(self, size: int, now: float) -> bool:
        """Whether a client's datagram may pass."""
        return all(part.passes(size, now) for part in self._original)

    def passes_reply(self, size: int, now: float) -> bool:
        """Whether an answer may pass."""
        return all(part.passes(size, now) for part in self._reply)

    def leave(self) -> None:
        """The flow has ended, or other orders are for it."""
        for part in (*self._original, *self._reply):
            part.leave()


class Allowance:
    """What one flow may still do.

    Attributes:
        original: its client's part of the bandwidth, and its lease.
        reply: the same of its answers.
        free: whether it may go by these leases: nothing else needs to be looked at just now.
        left: datagrams of its client that may pass before they are counted; 0 if it is not free.
        ordered: what orders allow; None if none is for it.
        answered: bytes that went out to its client until it was proven.
        proven: whether the client has spoken again after it was answered.

    Args:
        policing: what it shares bandwidth by.
        source: of its client.
        weight: of that source.
        now: monotonic seconds.
        before: what it had, which ends; its orders are told anew.

    """

    __slots__ = (
        "_full_at",
        "_lent",
        "_policing",
        "answered",
        "free",
        "left",
        "ordered",
        "original",
        "proven",
        "reply",
    )

    def __init__(
        self,
        policing: Policing,
        source: SourceKey,
        weight: int,
        now: float,
        before: Allowance | None = None,
    ) -> None:
        self._policing = policing
        self.original: Policed = policing.original.join(source, now, weight)
        self.reply: Policed = policing.reply.join(source, now, weight)
        self.ordered: Ordered | None = None
        self.free = False
        self.left = self._lent = 0
        self._full_at = now  # its bucket of datagrams; see ``Rate``
        self.answered = 0
        self.proven = False
        if before is not None:
            self._full_at, self.answered = before._full_at, before.answered
            self.left, self._lent = before.left, before._lent
            self.proven = before.proven
            self.call_in()
            before.leave()

    def is_of(self, policing: Policing) -> bool:
        """Whether the bandwidth is shared there."""
        return self._policing is policing

    def passes_original(self, size: int, rate: Rate | None, now: float) -> Limit | None:
        """Which limit drops a client's datagram; or None, and it is booked.

        Args:
            size: of the datagram.
            rate: of datagrams.
            now: monotonic seconds.

        """
        if rate is None:
            return self._policing.original.passes(self.original, size, now)
        passed = self._lent - self.left
        if passed:
            self._full_at = rate.spend(self._full_at, passed, now)
            self._lent = self.left
        if not rate.allows(self._full_at, 1, now):
            return Limit.DATAGRAM_RATE
        limit = self._policing.original.passes(self.original, size, now)
        if limit is None:
            self._full_at = rate.spend(self._full_at, 1, now)
        return limit

    def passes_reply(self, size: int, now: float) -> Limit | None:
        """Which bandwidth drops an answer; or None, and it is booked."""
        return self._policing.reply.passes(self.reply, size, now)

    def lend(self, flow: LimitedFlow, now: float) -> None:
        """Have a flow go by leases while all else that it is held to is far away.

        For the datagram rate there is a lease too, in datagrams.
        """
        limits, rate = flow.limits, flow.limits.datagrams
        self.free = (
            self.ordered is None
            and (self.proven or limits.amplification == inf)
            and limits.bytes - flow.bytes >= BUDGET_ROOM
            and not flow.listener.counts
        )
        most = LEASE_DATAGRAMS
        if rate is not None:
            most = min(most, int(rate.burst / LEASES_A_BURST))
            if rate.tokens(self._full_at, now) < most:
                most = 0
        self.left = self._lent = most if self.free else 0

    def call_in(self) -> None:
        """Look at everything again from the next datagram on."""
        self.free = False
        self._lent -= self.left
        self.left = 0

    def bucket(self) -> tuple[float, int]:
        """When the client's bucket is full again, and how many have passed since; ends leases."""
        self.call_in()
        return self._full_at, self._lent

    def restore(self, bucket: tuple[float, int]) -> None:
        """Go on with the bucket that the client had."""
        self.call_in()
        self._full_at, self._lent = bucket

    def weigh(self, weight: int, now: float) -> None:
        """Have the flow's source weigh so much from now on."""
        self._policing.original.weigh(self.original, weight, now)
        self._policing.reply.weigh(self.reply, weight, now)

    def leave(self) -> None:
        """The flow has ended."""
        self._policing.original.leave(self.original)
        self._policing.reply.leave(self.reply)
        if self.ordered is not None:
            self.ordered.leave()


class LimitedFlow(CountedFlow):
    """A datagram flow that looks at its limits for every datagram, unless it goes by leases.

    Its class may be given to a flow that exists, so it has no slots of its own.
    """

    __slots__ = ()

    def start(self, upstream: Choice, connect: Connect, now: float) -> bool:
        """Enter the table and connect; false if no endpoint could be reached."""
        policing = self.listener.terms.policing
        if policing is not None:
            self.allow(policing, now)
        return super().start(upstream, connect, now)

    def allow(self, policing: Policing, now: float) -> None:
        """Be limited from now on, with the weight that is in force."""
        before = self.allowance
        weight = weight_of(self, policing.weights)
        if before is None or not before.is_of(policing):
            source = source_key_of(self, self.counters.gate.limits)
            self.allowance = Allowance(policing, source, weight, now, before)
        else:
            before.weigh(weight, now)  # other ceilings have ended its leases

    def ready(self, mask: int, now: float) -> None:
        """Receive one answer, and pass it on if it may.

        Where the leases suffice for the longest answer there can be, it is received as it is where
        nothing is limited, which is one call less.
        """
        allowance = self.allowance
        if allowance is not None and allowance.free:
            lease = allowance.reply
            source, whole = lease.source, lease.whole
            if lease.left > LONGEST and source.left > LONGEST and whole.left > LONGEST:
                try:
                    size = self.listener.replies.receive(self, now)
                except OSError as error:
                    self.receive_failed(mask, error)
                    return
                lease.left -= size
                source.left -= size
                whole.left -= size
                self.count_reply(size)
                return
        self._receive(mask, now)

    def _receive(self, mask: int, now: float) -> None:
        """Do so where each answer is looked at once its size is known."""
        try:
            size = self.socket.recv_into(self.listener.replies.room(self.fd, now))
        except OSError as error:
            self.receive_failed(mask, error)
            return
        allowance = self.allowance
        if allowance is not None and allowance.free:
            lease = allowance.reply
            source, whole = lease.source, lease.whole
            if lease.left > size and source.left > size and whole.left > size:
                lease.left -= size
                source.left -= size
                whole.left -= size
                self.count_reply(size)
                self.listener.replies.put(self, size)
                return
        self.take_reply(size, now)

    def take_reply(self, size: int, now: float) -> None:
        """Pass on an answer that has been received into the batch, if it may."""
        allowance = self.allowance
        limit = None if allowance is None else self._reply_limit(allowance, size, now)
        if limit is not None and self.counters.strikes(limit):
            self._struck(limit)
            self.count_reply(size)
            self.reply_dropped(size, Drop.LIMITED)
            self._end_if_overdrawn(limit, now)
            return
        if allowance is not None:
            allowance.answered += size
        super().take_reply(size, now)

    def send(self, data: memoryview, now: float) -> None:
        """Pass a client's datagram on, if it may."""
        allowance, size = self.allowance, len(data)
        if allowance is not None and allowance.left > 0:
            lease = allowance.original
            source, whole = lease.source, lease.whole
            if lease.left > size and source.left > size and whole.left > size:
                allowance.left -= 1
                lease.left -= size
                source.left -= size
                whole.left -= size
                DatagramFlow.send(self, data, now)
                return
        limit = None if allowance is None else self._original_limit(allowance, size, now)
        if limit is not None and self.counters.strikes(limit):
            self._struck(limit)
            self.count_request(size, now)
            self.request_dropped(size, Drop.LIMITED)
            self._end_if_overdrawn(limit, now)
            return
        super().send(data, now)

    def abort(self, reason: CloseReason, side: CloseSide, now: float) -> None:
        """End the flow, and let go of its part."""
        super().abort(reason, side, now)
        if self.allowance is not None:
            self.allowance.leave()
            self.allowance = None

    def _struck(self, limit: Limit) -> None:
        """Tell who watches that a limit drops the flow's datagrams."""
        watch = self.listener.relay.watch
        if watch is not None:
            watch.struck(self, limit)

    def _original_limit(self, allowance: Allowance, size: int, now: float) -> Limit | None:
        limits, ordered = self.limits, allowance.ordered
        if ordered is not None and self.bytes + size > ordered.restraint.bytes:
            return Limit.ORDERED_BYTES
        if self.bytes + size > limits.bytes:
            return Limit.BYTE_BUDGET
        allowance.proven = allowance.proven or self.state is ASSURED
        if ordered is not None and not ordered.passes_original(size, now):
            return Limit.ORDERED_BANDWIDTH
        limit = allowance.passes_original(size, limits.datagrams, now)
        if limit is None:
            allowance.lend(self, now)
        return limit

    def _reply_limit(self, allowance: Allowance, size: int, now: float) -> Limit | None:
        limits, ordered = self.limits, allowance.ordered
        if ordered is not None and self.bytes + size > ordered.restraint.bytes:
            return Limit.ORDERED_BYTES
        if self.bytes + size > limits.bytes:
            return Limit.BYTE_BUDGET
        if not allowance.proven:
            most = limits.amplification * self.original.bytes
            if allowance.answered + size > most:
                return Limit.AMPLIFICATION
        if ordered is not None and not ordered.passes_reply(size, now):
            return Limit.ORDERED_BANDWIDTH
        limit = allowance.passes_reply(size, now)
        if allowance.free and limits.bytes - self.bytes < BUDGET_ROOM:
            allowance.call_in()
        return limit

    def _end_if_overdrawn(self, limit: Limit, now: float) -> None:
        if limit in {Limit.BYTE_BUDGET, Limit.ORDERED_BYTES}:
            self.abort(CloseReason.BYTE_BUDGET, CloseSide.PROXY, now)


def limit_live(flow: DatagramFlow, terms: Terms, now: float) -> None:
    """Have a flow that lives look at its limits from now on."""
    if terms.policing is not None:
        _limit(flow, terms.policing, now)


def order_live(
    flow: DatagramFlow,
    restraint: Restraint,
    parts: Sequence[tuple[OrderedPart, OrderedPart]],
    now: float,
) -> None:
    """Have a flow that lives kept to orders from now on, in place of any others."""
    if flow.allowance is None:
        if restraint == FREE:
            return
        listener = flow.listener
        if listener.trains:
            listener.look_at_each()
        _limit(flow, listener.terms.policing or Policing(UNRESTRICTED, now), now)
    assert flow.allowance is not None
    if flow.allowance.ordered is not None:
        flow.allowance.ordered.leave()
    flow.allowance.call_in()
    flow.allowance.ordered = None if restraint == FREE else Ordered(restraint, parts)


def _limit(flow: DatagramFlow, policing: Policing, now: float) -> None:
    if not isinstance(flow, LimitedFlow):
        flow.__class__ = LimitedFlow
    assert isinstance(flow, LimitedFlow)
    flow.allow(policing, now)
    pump, fd = flow.listener.relay.pump, flow.socket.fileno()
    if flow.answers is None and not pump.serves(fd, flow):  # it is read many at a time
        ask_for_trains(flow.socket, wanted=False)
        pump.hand_over(fd, flow)
