"""Running aggregates: what the flows of one listener, or one endpoint, have done so far.

Plain ints, written as things happen, so that a scrape costs O(listeners) and never O(flows).

The four byte counters that people see (received and sent, on both legs) are kept as three, because
the pump pays for each: what was *received* is counted per event; what was *sent* is what was
received, less what waits in our buffers, less what was thrown away. Buffers and discards change
only off the fast path, so a byte that passes straight through costs one addition.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypedDict

from proxy.core.admission import ORDERED, Gate, Limit
from proxy.core.flow import CloseReason, CloseSide, Drop, Refusal, State
from proxy.core.histogram import BYTES_BOUNDS, CONNECT_BOUNDS, DURATION_BOUNDS, Histogram
from proxy.core.sample_counters import SampleCounters

if TYPE_CHECKING:
    from proxy.core.address import Transport
    from proxy.core.flow import Flow
    from proxy.core.histogram import HistogramSnapshot
    from proxy.core.sample_counters import SamplesSnapshot
    from proxy.core.sources import SourceKey

BY_PROXY: Final = CloseSide.PROXY

DOWN: Final = 10.0
"""Seconds an endpoint counts as down after a failed attempt; two scrapes see it."""


class DirectionCounters:
    """Payload of one direction (original or reply) of all flows of a listener."""

    __slots__ = (
        "buffered",
        "discarded",
        "flow_bytes",
        "moved",
        "moved_before",
        "packets",
        "packets_discarded",
        "received",
        "unsent",
    )

    def __init__(self) -> None:
        self.received = 0
        self.flow_bytes = Histogram(BYTES_BOUNDS)
        self.unsent = 0  # received, and not arrived when its flow ended; the kernel's part too
        self.buffered = 0  # received, waiting in our buffers; may fall
        self.discarded = 0  # received, and thrown away when the flow ended or the datagram dropped
        self.moved = 0  # what waited when flows came here from another worker, less when they went
        self.moved_before = (0, 0)  # in a worker that was killed: received, and waiting at its end
        self.packets = 0  # datagrams received; 0 for streams, whose packets the kernel hides
        self.packets_discarded = 0

    @property
    def sent(self) -> int:
        """Bytes handed to the other leg's socket."""
        return self.received + self.moved - self.buffered - self.discarded

    def arrived(self, size: int) -> None:
        """Have so many bytes wait that another worker has received; it counts them as unsent."""
        self.buffered += size
        self.moved += size

    def departed(self, size: int) -> None:
        """Have so many bytes wait elsewhere; they are not sent, and never will be from here."""
        self.buffered -= size
        self.moved -= size

    def returned(self, received: int, waited: int, waits: int) -> None:
        """Count a flow that went to a worker which has died, and arrives here again.

        Args:
            received: bytes that the other had received of it.
            waited: bytes that waited when it went.
            waits: bytes that wait now.

        """
        self.received += received
        self.moved += waited - waits

    def snapshot(self) -> DirectionSnapshot:
        """Return a copy as plain values."""
        return {
            "received": self.received,
            "sent": self.sent,
            "buffered": self.buffered,
            "packets_received": self.packets,
            "packets_sent": self.packets - self.packets_discarded,
            "flow_bytes": self.flow_bytes.snapshot(),
            "unsent": self.unsent,
            "moved_before": self.moved_before,
        }


class ListenerCounters:
    """What the flows of one listener have done so far, and the gate that they come by.

    Attributes:
        gate: knows how many flows there may be.
        first: flows that ended, by who moved first.
        half_closed: seconds in which one side of a flow had ended.
        hits: how often each limit struck.
        dry_run_hits: how often it would have.
        waiting: clients that wait now.
        waited: clients that had to wait.
        abandoned: those of them that went away meanwhile.
        taken_over: flows that lived in another process before.
        lost: flows that should have been taken over, and could not.
        finished_before: flows that had finished in order in a worker that was killed; None if that
            is not known.

    """

    __slots__ = (
        "abandoned",
        "closed",
        "connect_duration",
        "dropped",
        "dry_run_hits",
        "duration",
        "finished_before",
        "first",
        "gate",
        "half_closed",
        "hits",
        "listener",
        "live",
        "lost",
        "opened",
        "original",
        "refused",
        "reply",
        "samples",
        "taken_over",
        "transport",
        "upstream",
        "waited",
        "waiting",
    )

    def __init__(self, listener: str, transport: Transport, upstream: str) -> None:
        self.listener = listener
        self.transport = transport
        self.upstream = upstream
        self.live = dict.fromkeys(states_of(transport), 0)
        self.opened = 0
        self.closed = dict.fromkeys(CloseReason, 0)
        self.first = dict.fromkeys(CloseSide, 0)
        self.half_closed = 0.0
        self.refused = dict.fromkeys(Refusal, 0)
        self.dropped = dict.fromkeys(Drop, 0)
        self.gate = Gate()
        self.hits = dict.fromkeys(Limit, 0)
        self.dry_run_hits = dict.fromkeys(Limit, 0)
        self.waiting = 0
        self.waited = 0
        self.abandoned = 0
        self.taken_over = 0
        self.lost = 0
        self.finished_before: int | None = None
        self.original = DirectionCounters()
        self.reply = DirectionCounters()
        self.duration = Histogram(DURATION_BOUNDS)
        self.connect_duration = Histogram(CONNECT_BOUNDS)
        self.samples = SampleCounters()

    @property
    def is_busy(self) -> bool:
        """Whether any flow is live."""
        return self.flows > 0

    @property
    def flows(self) -> int:
        """How many are live."""
        return sum(self.live.values())

    def ceiling(self, source_key: SourceKey, now: float) -> Refusal | None:
        """Why the gate does not admit a further flow of this source; or None. Counts the hits."""
        gate = self.gate
        if gate.limits.dry_run:
            for limit in gate.hits(source_key, now):
                self.dry_run_hits[limit] += 1
            return None
        hit = gate.refusal(source_key, now)
        return None if hit is None else self.hit(hit)

    def hit(self, limit: Limit) -> Refusal:
        """Count that a limit refuses a flow; return the word for it."""
        self.hits[limit] += 1
        return Refusal(limit)

    def strikes(self, limit: Limit) -> bool:
        """Count that a limit struck; false in a dry run, when it only would have."""
        if self.gate.limits.dry_run and limit not in ORDERED:
            self.dry_run_hits[limit] += 1
            return False
        self.hits[limit] += 1
        return True

    def flow_arrived(self, first: State, state: State) -> None:
        """Take back that a flow was opened: it lived already, elsewhere, and is in this state."""
        self.opened -= 1
        self.taken_over += 1
        self.flow_moved(first, state)

    def flow_departed(self, state: State) -> None:
        """Know that a flow lives on elsewhere."""
        self.live[state] -= 1

    def flow_resumed(self) -> None:
        """Take back that a flow was opened: it had been before, by a worker that was killed."""
        self.opened -= 1
        self.taken_over += 1

    def flow_lost(self) -> None:
        """Count the end of a flow that should have arrived, and could not live here."""
        self.lost += 1
        self.closed[CloseReason.INTERNAL] += 1
        self.first[BY_PROXY] += 1

    def flow_finished(self) -> None:
        """Count the end of a flow that has finished in a worker which could not count it."""
        self.closed[CloseReason.FINISHED] += 1
        self.first[BY_PROXY] += 1

    def flow_moved(self, old: State, new: State) -> None:
        """Count a flow that changed its state."""
        self.live[old] -= 1
        self.live[new] += 1

    def flow_closed(self, flow: Flow, reason: CloseReason) -> None:
        """Count a flow that has ended."""
        id, now = flow.id, flow.closed
        self.live[flow.state] -= 1
        self.closed[reason] += 1
        self.first[flow.close_side or BY_PROXY] += 1
        self.duration.observe(now - flow.opened, id, now)
        self.original.flow_bytes.observe(flow.original.bytes, id, now)
        self.reply.flow_bytes.observe(flow.reply.bytes, id, now)

    def snapshot(self) -> ListenerSnapshot:
        """Return a copy as plain values, fit to cross a process."""
        return {
            "listener": self.listener,
            "transport": self.transport.value,
            "upstream": self.upstream,
            "live": {state.value: count for state, count in self.live.items()},
            "opened": self.opened,
            "closed": {reason.value: count for reason, count in self.closed.items()},
            "first": {side.value: count for side, count in self.first.items()},
            "half_closed": self.half_closed,
            "refused": {reason.value: count for reason, count in self.refused.items()},
            "dropped": {reason.value: count for reason, count in self.dropped.items()},
            "hits": {limit.value: count for limit, count in self.hits.items()},
            "dry_run_hits": {limit.value: count for limit, count in self.dry_run_hits.items()},
            "waiting": self.waiting,
            "waited": self.waited,
            "abandoned": self.abandoned,
            "taken_over": self.taken_over,
            "lost": self.lost,
            "finished_before": self.finished_before,
            "original": self.original.snapshot(),
            "reply": self.reply.snapshot(),
            "duration": self.duration.snapshot(),
            "connect_duration": self.connect_duration.snapshot(),
            "samples": self.samples.snapshot(),
        }


class EndpointCounters:
    """What one endpoint of an upstream has been asked, and how it answered.

    An endpoint whose last attempt failed counts as down for ``DOWN`` seconds, and then as up until
    somebody has tried it again: otherwise one without traffic could never come back.

    Attributes:
        draining: whether it gets no new flows: by order, or because no upstream has it any more.

    """

    __slots__ = (
        "attempts",
        "down_until",
        "draining",
        "ejections",
        "endpoint",
        "failures",
        "flows",
        "upstream",
    )

    def __init__(self, upstream: str, endpoint: str) -> None:
        self.upstream = upstream
        self.endpoint = endpoint
        self.down_until = 0.0
        self.draining = False
        self.flows = 0
        self.attempts = 0
        self.ejections = 0
        self.failures = dict.fromkeys(CONNECT_FAILURES, 0)

    @property
    def is_busy(self) -> bool:
        """Whether any flow is live."""
        return self.flows > 0

    def attempt_failed(self, reason: CloseReason, now: float) -> None:
        """Count a connection attempt that ended without a connection."""
        self.failures[reason] += 1
        self.down_until = now + DOWN

    def answered(self) -> None:
        """Know that the endpoint is there: it accepted a connection, or replied."""
        self.down_until = 0.0

    def up(self, now: float) -> bool:
        """Whether the endpoint can be expected to answer."""
        return now >= self.down_until

    def snapshot(self, now: float, addresses: Iterable[AddressSnapshot] = ()) -> EndpointSnapshot:
        """Return a copy as plain values, with these addresses."""
        return {
            "upstream": self.upstream,
            "endpoint": self.endpoint,
            "up": self.up(now),
            "draining": self.draining,
            "flows": self.flows,
            "attempts": self.attempts,
            "failures": {reason.value: count for reason, count in self.failures.items()},
            "ejections": self.ejections,
            "addresses": list(addresses),
        }


CONNECT_FAILURES: Final = (
    CloseReason.CONNECT_REFUSED,
    CloseReason.CONNECT_TIMEOUT,
    CloseReason.UNREACHABLE,
)


def states_of(transport: Transport) -> tuple[State, ...]:
    """The states that a live flow of this transport can be in."""
    if transport.is_datagram:
        return (State.UNREPLIED, State.ASSURED)
    return (
        State.CONNECTING,
        State.ESTABLISHED,
        State.CLIENT_CLOSED,
        State.ENDPOINT_CLOSED,
        State.CLOSING,
    )


class DirectionSnapshot(TypedDict):
    """Bytes and datagrams of one direction; ``buffered`` is a level, the rest only grow.

    ``moved_before`` is what a worker that was killed had received in its life, and what of it
    waited at its end.
    """

    received: int
    sent: int
    buffered: int
    packets_received: int
    packets_sent: int
    flow_bytes: HistogramSnapshot
    unsent: int
    moved_before: tuple[int, int]


class ListenerSnapshot(TypedDict):
    """``ListenerCounters`` as plain values; the keys of the maps are the enums' words."""

    listener: str
    transport: str
    upstream: str
    live: dict[str, int]
    opened: int
    closed: dict[str, int]
    first: dict[str, int]
    half_closed: float
    refused: dict[str, int]
    dropped: dict[str, int]
    hits: dict[str, int]
    dry_run_hits: dict[str, int]
    waiting: int
    waited: int
    abandoned: int
    taken_over: int
    lost: int
    finished_before: int | None
    original: DirectionSnapshot
    reply: DirectionSnapshot
    duration: HistogramSnapshot
    connect_duration: HistogramSnapshot
    samples: SamplesSnapshot


class AddressSnapshot(TypedDict):
    """One address of an endpoint: how it is, and since when (Unix seconds; None if ever).

    ``reason`` is why, where it is ejected or down. ``share`` is its weight as it is now, in
    per cent. ``ejections`` followed upon each other, the last of which has ``seconds_left``.
    """

    address: str
    condition: str
    since: float | None
    reason: str
    weight: int
    share: int
    backup: bool
    flows: int
    ceiling: int | None
    ejections: int
    seconds_left: float | None


class EndpointSnapshot(TypedDict):
    """``EndpointCounters`` as plain values, with the addresses that the endpoint has now."""

    upstream: str
    endpoint: str
    up: bool
    draining: bool
    flows: int
    attempts: int
    failures: dict[str, int]
    ejections: int
    addresses: list[AddressSnapshot]
