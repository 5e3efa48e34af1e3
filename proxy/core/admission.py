"""Admission: whether a listener may take another flow, of the listener's and the source's limits.

Decide, then do: ``refusal`` asks and changes nothing; ``enter`` books a flow that is admitted, and
its source goes with the flow until ``leave``, exactly once. What is counted and what is done with
who was refused is the caller's affair. Access lists and the flow table are asked elsewhere.

Costs nothing that is not limited: without a limit by source no source is kept, and a ceiling that
is not there is one that is never reached, so that the way through is the same for all.

Several workers. The listener's own ceilings hold over all of them together:

*   Flows: a worker first *tells* of the flow it is about to admit and then looks at what the
    others told. Of two that reach for the last place at once, whoever looks later sees the other;
    so the sum of what is admitted is never more than the ceiling. Both may see each other, and
    then neither takes the place: it is free for the next one.
*   Rate: each has a replica of the common bucket, from which it also takes what the others have
    admitted since it looked last. It takes that as of now, though it was earlier, which errs by
    what the bucket wins between two looks, on the safe side; hence ``look``, every tick. Workers
    that reach for the last token within the same microseconds may each have it: the rate is
    surpassed by one flow for each of them at such a moment, the ceiling of flows never.

The limits of a source hold in each worker: the kernel deals a source's flows out among them.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Final, NamedTuple, Protocol

from proxy.core.prefix import V4_BITS
from proxy.core.rate import Rate
from proxy.core.sources import Source, SourceKey, SourceTable, source_key

IDLE_MAX: Final = 65536
"""Sources of a listener that have no flow and owe something, some 20 MiB."""

NO_SOURCE: Final = Source(None)
"""The source of every flow where sources are not told apart; nothing is booked on it."""


class Limit(StrEnum):
    """What was reached: the same word in log, table, event and metric label."""

    LISTENER_FLOWS = "listener_flows"
    LISTENER_RATE = "listener_rate"
    SOURCE_FLOWS = "source_flows"
    SOURCE_RATE = "source_rate"
    LISTENER_BANDWIDTH = "listener_bandwidth"
    SOURCE_BANDWIDTH = "source_bandwidth"
    FLOW_BANDWIDTH = "flow_bandwidth"
    DATAGRAM_RATE = "datagram_rate"
    BYTE_BUDGET = "byte_budget"
    AMPLIFICATION = "amplification"
    ORDERED_FLOWS = "ordered_flows"  # those of orders; see ``core.live_limit``
    ORDERED_BANDWIDTH = "ordered_bandwidth"
    ORDERED_BYTES = "ordered_bytes"


ORDERED: Final = frozenset({Limit.ORDERED_FLOWS, Limit.ORDERED_BANDWIDTH, Limit.ORDERED_BYTES})
"""What an operator has ordered on the running sockpair, which no dry run of the file undoes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """What a listener admits. A limit that is None does not restrict.

    Attributes:
        flows: live ones of the listener.
        flow_rate: new ones of the listener.
        source_flows: live ones of each source.
        source_rate: new ones of each source.
        prefix_v4: so many bits of an IPv4 address make a source.
        prefix_v6: the same for IPv6.
        dry_run: refuse nobody.

    """

    flows: int | None = None
    flow_rate: Rate | None = None
    source_flows: int | None = None
    source_rate: Rate | None = None
    prefix_v4: int = 32
    prefix_v6: int = 64
    dry_run: bool = False

    def __post_init__(self) -> None:
        for rate in (self.flow_rate, self.source_rate):
            assert rate is None or rate.burst >= 1, f"never lets one pass: {rate}"

    @property
    def as_a_whole(self) -> bool:
        """Whether the listener as a whole has a ceiling, which holds over all workers."""
        return self.flows is not None or self.flow_rate is not None

    @property
    def by_source(self) -> bool:
        """Whether sources are told apart."""
        return self.source_flows is not None or self.source_rate is not None

    def key(self, host: str) -> SourceKey:
        """The key of the source that a client belongs to."""
        return source_key(host, self.prefix_v4, self.prefix_v6)


UNLIMITED: Final = AdmissionLimits()


class Elsewhere(Protocol):
    """The same listener in the other workers, as a memory that all of them see at once.

    What one tells is seen by whoever looks afterwards: a store is not put off behind later loads.
    """

    def flows(self) -> int:
        """How many flows the others have told of."""
        ...

    def admitted(self) -> int:
        """How many flows they have admitted so far; it only grows."""
        ...

    def tell(self, flows: int, admitted: int) -> None:
        """Tell them the same of this worker."""
        ...

    def waits_since(self, not_before: float) -> float:
        """Since when the first of those has waited whom the listener keeps out there; inf: nobody.

        What was told of before that moment is passed over.
        """
        ...

    def tell_waiting(self, since: float) -> None:
        """Tell them the same of this worker."""
        ...


class Nobody:
    """There are no other workers."""

    def flows(self) -> int:
        """None."""
        return 0

    def admitted(self) -> int:
        """None."""
        return 0

    def tell(self, flows: int, admitted: int) -> None:
        """Nobody listens."""

    def waits_since(self, not_before: float) -> float:
        """Nobody does."""
        return inf

    def tell_waiting(self, since: float) -> None:
        """Nobody listens."""


NOBODY: Final = Nobody()


class GateLevel(NamedTuple):
    """How near one ceiling is.

    Attributes:
        limit: which.
        level: live flows; of a rate, what of its burst is spent.
        ceiling: as many as there may be; of a rate, its burst.
        is_reached: whether it would refuse a new flow.
        per_second: of a rate; None of a ceiling of flows.

    """

    limit: Limit
    level: float
    ceiling: float
    is_reached: bool
    per_second: float | None = None


class Booked(Protocol):
    """A flow that has been admitted; it keeps its source until it leaves."""

    source: Source


class Gate:
    """The admission of one listener.

    Args:
        limits: see there.
        elsewhere: the same listener in other workers.
        idle_max: see ``SourceTable``.

    Attributes:
        limits: in force; changed by ``become``.
        flows: how many are live here.
        admitted: how many have been taken from the buckets so far.
        sources: those that are kept.
        on_leave: told of the source of each flow that leaves; None where nobody waits for that.
        is_free: whether nothing is limited or told, so that there is no need to ask.

    """

    __slots__ = (
        "_by_source",
        "_dry_run",
        "_elsewhere",
        "_flow_max",
        "_flow_slack",
        "_flow_step",
        "_full_at",
        "_idle_max",
        "_seen",
        "_source_max",
        "_source_slack",
        "_source_step",
        "_whole_hosts",
        "admitted",
        "flows",
        "is_free",
        "limits",
        "on_leave",
        "sources",
    )

    def __init__(
        self,
        limits: AdmissionLimits = UNLIMITED,
        elsewhere: Elsewhere = NOBODY,
        idle_max: int = IDLE_MAX,
    ) -> None:
        self.flows = 0
        self.admitted = 0
        self.sources = SourceTable(idle_max)
        self.on_leave: Callable[[Source], None] | None = None
        self._idle_max = idle_max
        self._full_at = 0.0
        self._elsewhere = None if elsewhere is NOBODY else elsewhere
        self._seen = 0  # a worker that comes later finds the bucket as empty as it can be
        self._set(limits)

    def key(self, host: str) -> SourceKey:
        """The key of the source that a client belongs to; empty where nobody asks for it."""
        if not self._by_source:
            return ""
        if self._whole_hosts and ":" not in host:
            return host  # as ``source_key`` does, without its calls
        return self.limits.key(host)

    def refusal(self, key: SourceKey, now: float) -> Limit | None:
        """The limit that keeps a new flow out; None if it may enter, which it then does at once.

        A caller that leaves it at that calls ``tell``. A dry run refuses nobody.

        Args:
            key: of the client's source; any, if sources are not told apart.
            now: monotonic seconds.

        """
        if self._dry_run:
            return None
        if self._elsewhere is not None:
            return self._refusal_beside(self._elsewhere, key, now)
        if self.flows >= self._flow_max:
            return Limit.LISTENER_FLOWS
        if self._full_at - now > self._flow_slack:
            return Limit.LISTENER_RATE
        if not self._by_source:
            return None
        source = self.sources.get(key)
        if (
            source is not None  # the way of most, without a call
            and source.flows < self._source_max
            and source.full_at - now <= self._source_slack
        ):
            return None
        return self._refusal_of_source(key, now)

    def hits(self, key: SourceKey, now: float) -> list[Limit]:
        """Every limit that would refuse a new flow, in order; what a dry run counts."""
        self.look(now)
        others = 0 if self._elsewhere is None else self._elsewhere.flows()
        source = self.sources.find(key, now) if self._by_source else None
        reached = {
            Limit.LISTENER_FLOWS: self.flows + others >= self._flow_max,
            Limit.LISTENER_RATE: self._full_at - now > self._flow_slack,
            Limit.SOURCE_FLOWS: (source.flows if source else 0) >= self._source_max,
            Limit.SOURCE_RATE: (source.full_at if source else 0.0) - now > self._source_slack,
        }
        return [limit for limit, is_reached in reached.items() if is_reached]

    def levels(self, key: SourceKey, now: float) -> list[GateLevel]:
        """Every ceiling that there is, and how near it is; changes nothing and tells nobody.

        Those that are reached are what ``hits`` would say.

        Args:
            key: of the client's source; any, if sources are not told apart.
            now: monotonic seconds.

        """
        limits = self.limits
        others = self._elsewhere or NOBODY
        source = self.sources.peek(key, now) if self._by_source else None
        flows, full_at = (source.flows, source.full_at) if source else (0, 0.0)
        whole_at = self._full_with(others.admitted(), now)
        return [
            *_flow_level(Limit.LISTENER_FLOWS, limits.flows, self.flows + others.flows()),
            *_rate_level(Limit.LISTENER_RATE, limits.flow_rate, whole_at, now),
            *_flow_level(Limit.SOURCE_FLOWS, limits.source_flows, flows),
            *_rate_level(Limit.SOURCE_RATE, limits.source_rate, full_at, now),
        ]

    def enter(self, key: SourceKey, now: float) -> Source:
        """Book a flow that is admitted, on the listener and on its source.

        In a dry run one that would have been refused is live like any other, but takes nothing
        from the buckets, as it would not have: otherwise their debt grew with every one, and soon
        all would seem too many.

        Returns:
            What is to be given to ``leave``, exactly once.

        """
        spends = not self._dry_run or not self.hits(key, now)
        self.flows += 1
        self.admitted += spends
        if spends:
            full_at = self._full_at
            full_at = full_at if full_at > now else now  # noqa: FURB136 - max() is a slow call
            self._full_at = full_at + self._flow_step
        if self._elsewhere is not None:
            self.tell()
        if not self._by_source:
            return NO_SOURCE
        sources = self.sources
        source = sources.get(key) or NO_SOURCE
        if source.flows:  # it is there, and not idle
            source.flows += 1
        else:
            source = sources.enter(key, now)
        if spends:
            full_at = source.full_at
            full_at = full_at if full_at > now else now  # noqa: FURB136
            source.full_at = full_at + self._source_step
        return source

    def leave(self, source: Source, now: float) -> None:
        """Take a flow from the books, whichever way it ended."""
        assert self.flows > 0, "a flow has left twice"
        self.flows -= 1
        if source.flows > 1:
            source.flows -= 1
        elif source is not NO_SOURCE:
            self.sources.leave(source, now)
        if self._elsewhere is not None:
            self.tell()
        if self.on_leave is not None:
            self.on_leave(source)

    def admits_at(self, limit: Limit, key: SourceKey) -> float:
        """When the limit that has just refused a flow has a token; infinite if nobody can tell."""
        if limit is Limit.LISTENER_RATE:
            return self._full_at - self._flow_slack
        if limit is Limit.SOURCE_RATE:
            source = self.sources.get(key)
            return inf if source is None else source.full_at - self._source_slack
        return inf

    def become(
        self, limits: AdmissionLimits, now: float, live: Iterable[tuple[Booked, SourceKey]] = ()
    ) -> None:
        """Have other limits from now on. Flows that exist stay, whatever the ceilings.

        No bucket owes more than an empty one of its new rate does. Where the sources are told
        apart in another way than before, every flow is booked anew; the debts of sources that
        have no flow are forgotten then, as nobody can tell whose they are.

        Args:
            limits: those to come.
            now: monotonic seconds.
            live: all flows that have entered and not left, with their keys by the new limits; only
                looked at if it must be.

        """
        before = self.limits
        self._set(limits)
        self._full_at = min(self._full_at, _empty(limits.flow_rate, now))
        if limits.by_source and _ways(limits) != _ways(before):
            self._book_anew(live, now)
        self.sources.forgive(_empty(limits.source_rate, now))

    def look(self, now: float) -> None:
        """Take from the listener's bucket what others have admitted; every tick, if there are any.

        No more than there is, as whoever admits a flow has seen a token for it.
        """
        if self._elsewhere is None:
            return
        admitted = self._elsewhere.admitted()
        self._full_at = self._full_with(admitted, now)
        self._seen = admitted

    def join(self, elsewhere: Elsewhere) -> None:
        """Have other workers, or none, from now on; what they admitted before counts at once."""
        self._elsewhere = None if elsewhere is NOBODY else elsewhere
        self._seen = 0
        self._set(self.limits)
        self.tell()

    def tell(self) -> None:
        """Tell the others how it is here."""
        if self._elsewhere is not None:
            self._elsewhere.tell(self.flows, self.admitted)

    def others_wait_since(self, not_before: float) -> float:
        """Since when somebody has waited at another worker; see ``Elsewhere.waits_since``."""
        return (self._elsewhere or NOBODY).waits_since(not_before)

    def tell_waiting(self, since: float) -> None:
        """Tell the others since when the first here waits for the listener as a whole."""
        (self._elsewhere or NOBODY).tell_waiting(since)

    def _refusal_beside(self, elsewhere: Elsewhere, key: SourceKey, now: float) -> Limit | None:
        """Tell of the flow as if it were here, then look, and take it back if it may not enter."""
        elsewhere.tell(self.flows + 1, self.admitted)
        self.look(now)
        limit: Limit | None = None
        if self.flows + elsewhere.flows() >= self._flow_max:
            limit = Limit.LISTENER_FLOWS
        elif self._full_at - now > self._flow_slack:
            limit = Limit.LISTENER_RATE
        elif self._by_source:
            limit = self._refusal_of_source(key, now)
        if limit is not None:
            self.tell()
        return limit

    def _refusal_of_source(self, key: SourceKey, now: float) -> Limit | None:
        source = self.sources.get(key) or self.sources.find(key, now)
        if source is None:
            return Limit.SOURCE_FLOWS if self._source_max <= 0 else None
        if source.flows >= self._source_max:
            return Limit.SOURCE_FLOWS
        if source.full_at - now > self._source_slack:
            return Limit.SOURCE_RATE
        return None

    def _full_with(self, admitted: int, now: float) -> float:
        """When the bucket will be full, if others have admitted so many so far."""
        rate = self.limits.flow_rate
        if rate is None or admitted <= self._seen:
            return self._full_at
        spent = rate.spend(self._full_at, admitted - self._seen, now)
        return max(self._full_at, min(spent, _empty(rate, now)))

    def _set(self, limits: AdmissionLimits) -> None:
        self.limits = limits
        self._dry_run = limits.dry_run
        self._by_source = limits.by_source
        self._whole_hosts = limits.prefix_v4 == V4_BITS
        self._flow_max = inf if limits.flows is None else limits.flows
        self._source_max = inf if limits.source_flows is None else limits.source_flows
        self._flow_slack, self._flow_step = _pace(limits.flow_rate)
        self._source_slack, self._source_step = _pace(limits.source_rate)
        restricts = limits.as_a_whole or limits.by_source or limits.dry_run
        self.is_free = self._elsewhere is None and not restricts

    def _book_anew(self, live: Iterable[tuple[Booked, SourceKey]], now: float) -> None:
        """Make the table of sources from the flows; a source owes what any of its flows' did."""
        self.sources = SourceTable(self._idle_max)
        booked = 0
        for flow, key in live:
            source = self.sources.enter(key, now)
            source.full_at = max(source.full_at, flow.source.full_at)
            flow.source = source
            booked += 1
        assert booked == self.flows, f"{booked} of {self.flows} flows booked anew"


def _pace(rate: Rate | None) -> tuple[float, float]:
    """How far ahead a bucket may be full and one flow yet be admitted, and how much one adds."""
    if rate is None:
        return inf, 0.0
    return -rate.ready_at(0.0, 1), rate.spend(0.0, 1, 0.0)


def _flow_level(limit: Limit, ceiling: int | None, flows: int) -> Iterator[GateLevel]:
    if ceiling is not None:
        yield GateLevel(limit, flows, ceiling, flows >= ceiling)


def _rate_level(limit: Limit, rate: Rate | None, full_at: float, now: float) -> Iterator[GateLevel]:
    """What of the burst is spent; as much as leaves no token for one more is too much."""
    if rate is not None:
        spent = rate.burst - rate.tokens(full_at, now)
        slack, _ = _pace(rate)
        yield GateLevel(limit, spent, rate.burst, full_at - now > slack, rate.per_second)


def _empty(rate: Rate | None, now: float) -> float:
    """When a bucket will be full that is empty now; without a rate there is no debt."""
    return now if rate is None else rate.spend(now, rate.burst, now)


def _ways(limits: AdmissionLimits) -> tuple[bool, int, int]:
    """How sources are told apart."""
    return limits.by_source, limits.prefix_v4, limits.prefix_v6
