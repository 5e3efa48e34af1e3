"""The gate of a listener against a naive model that keeps every flow and every moment it passed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.core.admission import NO_SOURCE, AdmissionLimits, Gate, Limit, Nobody
from proxy.core.flow import Refusal
from proxy.core.rate import Rate
from proxy.core.sources import Source, SourceKey

HOSTS = ["192.0.2.1", "192.0.2.2", "192.0.2.130", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]

# Rates and steps that floats hold exactly: gate and model may not differ by a rounding.
rates = st.none() | st.builds(Rate, st.sampled_from([0.5, 2.0, 8.0]), st.sampled_from([1.0, 3.0]))
counts = st.none() | st.integers(0, 4)
some_limits = st.builds(
    AdmissionLimits,
    flows=counts,
    flow_rate=rates,
    source_flows=counts,
    source_rate=rates,
    prefix_v4=st.sampled_from([0, 24, 25, 32]),
    prefix_v6=st.sampled_from([48, 64, 128]),
)


class Passed:
    """A flow that has been admitted, as the engine has one."""

    def __init__(self, host: str, source: Source) -> None:
        self.host = host
        self.source = source


class Tokens:
    """A bucket in the other way: it holds tokens. Without a rate it never runs out."""

    def __init__(self, rate: Rate | None, now: float) -> None:
        self.rate = rate
        self.now = now
        self.tokens = inf if rate is None else rate.burst

    def allows(self, now: float) -> bool:
        if self.rate is not None:
            filled = self.tokens + (now - self.now) * self.rate.per_second
            self.tokens = min(self.rate.burst, filled)
        self.now = now
        return self.tokens >= 1

    def become(self, rate: Rate | None, now: float) -> None:
        """Keep the time until it is full, but be no emptier than empty."""
        self.allows(now)
        left = 0.0 if self.rate is None else (self.rate.burst - self.tokens) / self.rate.per_second
        self.rate = rate
        self.tokens = inf if rate is None else max(0.0, rate.burst - left * rate.per_second)


class GateModel(RuleBasedStateMachine):
    """Open, refuse, close, reload, wait. There is room for the sources of all hosts."""

    @initialize(limits=some_limits)
    def begin(self, limits: AdmissionLimits) -> None:
        self.now = 0.0
        self.gate = Gate(limits)
        self.live: list[Passed] = []
        self.listener = Tokens(limits.flow_rate, 0.0)
        self.by_key: dict[SourceKey, Tokens] = {}

    def tokens_of(self, key: SourceKey) -> Tokens:
        return self.by_key.setdefault(key, Tokens(self.gate.limits.source_rate, self.now))

    def expected(self, host: str) -> list[Limit]:
        limits = self.gate.limits
        key = limits.key(host)
        of_source = sum(limits.key(flow.host) == key for flow in self.live)
        reached = [
            (Limit.LISTENER_FLOWS, limits.flows is not None and len(self.live) >= limits.flows),
            (Limit.LISTENER_RATE, not self.listener.allows(self.now)),
            (
                Limit.SOURCE_FLOWS,
                limits.source_flows is not None and of_source >= limits.source_flows,
            ),
            (Limit.SOURCE_RATE, not self.tokens_of(key).allows(self.now)),
        ]
        return [limit for limit, is_reached in reached if is_reached]

    @rule(host=st.sampled_from(HOSTS))
    def arrive(self, host: str) -> None:
        limits = self.gate.limits
        key = limits.key(host)
        expected = self.expected(host)
        assert self.gate.hits(key, self.now) == expected
        refusal = self.gate.refusal(key, self.now)
        if limits.dry_run:
            assert refusal is None
        else:
            assert refusal == (expected[0] if expected else None)
        if refusal is not None:
            return
        self.live.append(Passed(host, self.gate.enter(key, self.now)))
        if not expected:
            self.listener.tokens -= 1
            self.tokens_of(key).tokens -= 1

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        flow = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.gate.leave(flow.source, self.now)

    @rule(step=st.sampled_from([0.0, 0.125, 0.5, 2.0, 64.0]))
    def wait(self, step: float) -> None:
        self.now += step

    @rule(limits=some_limits, dry_run=st.booleans())
    def become(self, limits: AdmissionLimits, dry_run: bool) -> None:
        self.reload(replace(limits, dry_run=dry_run))

    @rule(flows=counts, flow_rate=rates, source_flows=counts, source_rate=rates)
    def become_in_part(
        self,
        flows: int | None,
        flow_rate: Rate | None,
        source_flows: int | None,
        source_rate: Rate | None,
    ) -> None:
        self.reload(
            replace(
                self.gate.limits,
                flows=flows,
                flow_rate=flow_rate,
                source_flows=source_flows,
                source_rate=source_rate,
            )
        )

    def reload(self, limits: AdmissionLimits) -> None:
        before = self.gate.limits
        held = {limits.key(flow.host): 0.0 for flow in self.live}
        for flow in self.live:
            key = limits.key(flow.host)
            held[key] = max(held[key], self.debt_of(before.key(flow.host)))
        self.gate.become(limits, self.now, ((flow, limits.key(flow.host)) for flow in self.live))
        self.listener.become(limits.flow_rate, self.now)
        same = (before.prefix_v4, before.prefix_v6) == (limits.prefix_v4, limits.prefix_v6)
        if not limits.by_source:
            self.by_key.clear()
        elif before.by_source and same:
            for tokens in self.by_key.values():
                tokens.become(limits.source_rate, self.now)
        else:
            self.by_key = {key: self.owing(limits.source_rate, debt) for key, debt in held.items()}

    def debt_of(self, key: SourceKey) -> float:
        """Seconds until the bucket of a source is full."""
        tokens = self.by_key.get(key)
        if tokens is None or tokens.rate is None:
            return 0.0
        tokens.allows(self.now)
        return (tokens.rate.burst - tokens.tokens) / tokens.rate.per_second

    def owing(self, rate: Rate | None, debt: float) -> Tokens:
        tokens = Tokens(rate, self.now)
        if rate is not None:
            tokens.tokens = max(0.0, rate.burst - debt * rate.per_second)
        return tokens

    @invariant()
    def every_flow_is_on_the_books_once(self) -> None:
        assert self.gate.flows == len(self.live)
        booked = [flow.source for flow in self.live if flow.source is not NO_SOURCE]
        assert sum(source.flows for source in self.gate.sources) == len(booked)
        if self.gate.limits.by_source:
            assert len(booked) == len(self.live)
        assert NO_SOURCE.flows == 0

    def teardown(self) -> None:
        if not hasattr(self, "gate"):
            return
        for flow in self.live:
            self.gate.leave(flow.source, self.now)
        assert self.gate.flows == 0
        assert not any(source.flows for source in self.gate.sources)


TestGateModel = GateModel.TestCase
TestGateModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class OverflowModel(RuleBasedStateMachine):
    """With no room for idle sources, what is admitted is released all the same, and bounded."""

    @initialize(idle_max=st.integers(0, 2))
    def begin(self, idle_max: int) -> None:
        self.now = 0.0
        self.limits = AdmissionLimits(
            flows=8, source_flows=2, source_rate=Rate(0.5, 2.0), prefix_v6=128
        )
        self.gate = Gate(self.limits, idle_max=idle_max)
        self.live: list[Passed] = []
        self.entered: dict[str, list[float]] = {}

    @rule(host=st.sampled_from(HOSTS))
    def arrive(self, host: str) -> None:
        key = self.limits.key(host)
        refusal = self.gate.refusal(key, self.now)
        assert self.gate.hits(key, self.now)[:1] == ([refusal] if refusal else [])
        if refusal is None:
            self.live.append(Passed(host, self.gate.enter(key, self.now)))
            self.entered.setdefault(host, []).append(self.now)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        flow = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.gate.leave(flow.source, self.now)

    @rule(step=st.sampled_from([0.0, 0.5, 2.0, 8.0]))
    def wait(self, step: float) -> None:
        self.now += step

    @rule(prefix_v4=st.sampled_from([24, 32]))
    def become(self, prefix_v4: int) -> None:
        if prefix_v4 != self.limits.prefix_v4:
            self.entered.clear()  # debts of sources without flows are forgotten
        self.limits = replace(self.limits, prefix_v4=prefix_v4)
        live = ((flow, self.limits.key(flow.host)) for flow in self.live)
        self.gate.become(self.limits, self.now, live)

    @invariant()
    def the_books_are_right(self) -> None:
        assert self.gate.flows == len(self.live) <= 8
        assert sum(source.flows for source in self.gate.sources) == len(self.live)
        for source in self.gate.sources:
            assert source.flows == sum(flow.source is source for flow in self.live)

    @invariant()
    def nobody_gets_more_than_a_bucket_of_his_own_and_a_shared_one(self) -> None:
        """Once told apart and once not: twice the ceiling, and never a fresh bucket again."""
        for passed in self.entered.values():
            for first, start in enumerate(passed):
                for count, when in enumerate(passed[first:], 1):
                    assert count <= 2 * (2 + 0.5 * (when - start))


TestOverflowModel = OverflowModel.TestCase
TestOverflowModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class Board:
    """What the workers tell each other; a test makes one for all of them."""

    def __init__(self, workers: int) -> None:
        self.told = [(0, 0)] * workers


def nobody() -> None:
    pass


class Others(Nobody):
    """The board as one worker sees it. A rival may come between telling and looking, and after."""

    def __init__(self, board: Board, me: int) -> None:
        self.board = board
        self.me = me
        self.before_look = self.after_look = nobody

    def flows(self) -> int:
        before, after = self.before_look, self.after_look
        self.before_look = self.after_look = nobody
        before()
        seen = sum(flows for place, (flows, _) in enumerate(self.board.told) if place != self.me)
        after()
        return seen

    def admitted(self) -> int:
        return sum(count for place, (_, count) in enumerate(self.board.told) if place != self.me)

    def tell(self, flows: int, admitted: int) -> None:
        self.board.told[self.me] = (flows, admitted)


def workers(limits: AdmissionLimits, count: int = 2) -> tuple[list[Gate], list[Others]]:
    board = Board(count)
    others = [Others(board, me) for me in range(count)]
    return [Gate(limits, each) for each in others], others


def admit(gate: Gate, now: float, host: str = "192.0.2.1") -> Source | None:
    key = gate.limits.key(host)
    return gate.enter(key, now) if gate.refusal(key, now) is None else None


moves = st.lists(
    st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from(["", "before", "after"])),
    max_size=40,
)


@given(st.integers(0, 5), moves)
def test_all_workers_together_never_exceed_the_ceiling_whoever_comes_between(
    ceiling: int, moves: list[tuple[int, bool, str]]
) -> None:
    gates, others = workers(AdmissionLimits(flows=ceiling), 3)
    live: list[tuple[Gate, Source]] = []

    def arrive(worker: int) -> None:
        source = admit(gates[worker], 0.0)
        if source is not None:
            live.append((gates[worker], source))

    for worker, ends, between in moves:
        if ends and live:
            gate, source = live.pop()
            gate.leave(source, 0.0)
        elif between:
            rival = (worker + 1) % 3
            others[worker].before_look = partial(arrive, rival) if between == "before" else nobody
            others[worker].after_look = partial(arrive, rival) if between == "after" else nobody
            arrive(worker)
        else:
            room = len(live) < ceiling
            before = len(live)
            arrive(worker)
            assert (len(live) > before) is room, "alone, it is exact"
        assert sum(gate.flows for gate in gates) == len(live) <= ceiling
        assert [flows for flows, _ in others[0].board.told] == [gate.flows for gate in gates]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.25, 1.0])), max_size=60))
def test_the_listeners_rate_holds_over_all_workers(arrivals: list[tuple[int, float]]) -> None:
    """Those who look every tick decide as one gate would, but for what a tick brings."""
    rate = Rate(2.0, 3.0)
    gates, _ = workers(AdmissionLimits(flow_rate=rate), 3)
    now, passed = 0.0, []
    for worker, step in arrivals:
        for _ in range(int(step * 8)):
            now += 0.125
            for gate in gates:
                gate.look(now)
        if admit(gates[worker], now) is not None:
            passed.append(now)
        for first, start in enumerate(passed):
            for count, when in enumerate(passed[first:], 1):
                assert count <= rate.burst + rate.per_second * (when - start) + 1e-6


def test_a_worker_that_did_not_look_for_long_finds_the_bucket_empty_and_not_in_debt() -> None:
    (busy, lazy), _ = workers(AdmissionLimits(flow_rate=Rate(1.0, 2.0)))
    for second in range(1000):
        assert admit(busy, float(second)) is not None
    assert admit(lazy, 1000.0) is None
    assert admit(lazy, 1001.0) is not None


def test_a_worker_that_comes_later_does_not_bring_a_full_bucket() -> None:
    board = Board(2)
    limits = AdmissionLimits(flow_rate=Rate(1.0, 2.0))
    first = Gate(limits, Others(board, 0))
    assert admit(first, 0.0) is not None
    assert admit(first, 0.0) is not None
    assert admit(Gate(limits, Others(board, 1)), 0.0) is None


def test_a_look_may_be_taken_when_there_is_no_rate_and_before_there_is_one() -> None:
    (one, other), _ = workers(AdmissionLimits())
    for _ in range(5):
        admit(one, 0.0)
    other.look(0.0)
    other.become(AdmissionLimits(flow_rate=Rate(1.0, 2.0)), 0.0)
    assert admit(other, 0.0) is not None


def test_who_asked_and_stays_outside_takes_it_back() -> None:
    (one, other), _ = workers(AdmissionLimits(flows=1))
    assert one.refusal("a", 0.0) is None
    assert other.refusal("a", 0.0) is Limit.LISTENER_FLOWS
    one.tell()
    assert other.refusal("a", 0.0) is None


def test_without_limits_by_source_no_source_is_kept() -> None:
    gate = Gate(AdmissionLimits(flows=10, flow_rate=Rate(100.0, 100.0)))
    source = admit(gate, 0.0)
    assert source is NO_SOURCE
    assert len(gate.sources) == 0
    gate.leave(source, 0.0)
    assert gate.flows == 0


def test_a_ceiling_below_what_is_live_refuses_only_new_ones() -> None:
    gate = Gate(AdmissionLimits(flows=3))
    sources = [gate.enter("a", 0.0) for _ in range(3)]
    gate.become(AdmissionLimits(flows=1), 0.0)
    for source in sources:
        assert gate.refusal("a", 0.0) is Limit.LISTENER_FLOWS
        gate.leave(source, 0.0)
    assert gate.refusal("a", 0.0) is None


def test_a_flow_that_leaves_twice_is_a_fault() -> None:
    gate = Gate(AdmissionLimits(source_flows=2))
    source = gate.enter("a", 0.0)
    gate.leave(source, 0.0)
    with pytest.raises(AssertionError):
        gate.leave(source, 0.0)


def test_a_flow_that_the_caller_forgot_to_name_is_a_fault() -> None:
    gate = Gate(AdmissionLimits(source_flows=2))
    gate.enter("192.0.2.1", 0.0)
    with pytest.raises(AssertionError, match="0 of 1 flows"):
        gate.become(AdmissionLimits(source_flows=2, prefix_v4=24), 0.0, ())


def test_flows_are_looked_at_only_if_sources_are_told_apart_in_another_way() -> None:
    gate = Gate(AdmissionLimits(source_flows=2))
    gate.enter("192.0.2.1", 0.0)
    gate.become(AdmissionLimits(source_flows=5), 0.0)
    gate.become(AdmissionLimits(flows=5), 0.0)
    assert gate.flows == 1


def test_a_raised_rate_does_not_leave_anybody_waiting_for_the_old_one() -> None:
    gate = Gate(AdmissionLimits(flow_rate=Rate(0.001, 5.0), source_rate=Rate(0.001, 5.0)))
    for _ in range(5):
        assert admit(gate, 0.0) is not None
    assert admit(gate, 1.0) is None
    gate.become(AdmissionLimits(flow_rate=Rate(10.0, 5.0), source_rate=Rate(10.0, 5.0)), 1.0)
    assert admit(gate, 1.0) is None
    assert admit(gate, 1.1) is not None


def test_a_dry_run_counts_what_would_be_refused_at_that_rate_and_lets_it_pass() -> None:
    """Twenty a second against ten a second: every second one, for as long as it goes on."""
    gate = Gate(AdmissionLimits(flow_rate=Rate(10.0, 1.0), dry_run=True))
    hits = 0
    for step in range(2000):
        now = step / 20
        assert gate.refusal("a", now) is None
        hits += len(gate.hits("a", now))
        gate.enter("a", now)
    assert (hits, gate.flows, gate.admitted) == (1000, 2000, 1000)


def test_a_dry_run_tells_all_limits_that_are_reached() -> None:
    tight = Rate(0.5, 1.0)
    limits = AdmissionLimits(flows=1, flow_rate=tight, source_flows=1, source_rate=tight)
    gate = Gate(replace(limits, dry_run=True))
    gate.enter("a", 0.0)
    assert gate.hits("a", 0.0) == [
        Limit.LISTENER_FLOWS,
        Limit.LISTENER_RATE,
        Limit.SOURCE_FLOWS,
        Limit.SOURCE_RATE,
    ]
    assert gate.hits("b", 2.0) == [Limit.LISTENER_FLOWS]


def test_a_rate_that_lets_nobody_pass_is_a_fault_of_the_configuration() -> None:
    with pytest.raises(AssertionError, match="never lets one pass"):
        AdmissionLimits(source_rate=Rate(1.0, 0.5))


def test_what_refuses_a_flow_has_the_word_of_the_refusal() -> None:
    words = [
        Limit.LISTENER_FLOWS,
        Limit.LISTENER_RATE,
        Limit.SOURCE_FLOWS,
        Limit.SOURCE_RATE,
    ]
    assert [Refusal(word.value) for word in words]
