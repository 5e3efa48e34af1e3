"""Who waits and who is next, against a naive model that asks the gate for each in turn."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.core.admission import AdmissionLimits, Gate
from proxy.core.rate import Rate
from proxy.core.sources import Source
from proxy.core.waiting import REST, STALE_MAX, WaitingLines
from tests.core.test_admission import HOSTS, Passed, some_limits


class Waiter:
    """A client that waits."""

    def __init__(self, host: str) -> None:
        self.host = host


class WaitingModel(RuleBasedStateMachine):
    """Arrive, enter, give up, end, reload, wait. There is room for the sources of all hosts."""

    @initialize(limits=some_limits)
    def begin(self, limits: AdmissionLimits) -> None:
        self.now = 0.0
        self.gate = Gate(limits)
        self.lines: WaitingLines[Waiter] = WaitingLines(self.gate)
        self.gate.on_leave = self.lines.freed
        self.waiting: list[Waiter] = []
        self.live: list[Passed] = []
        self.serve()

    def may_enter(self) -> list[Waiter]:
        return [
            each for each in self.waiting if not self.gate.hits(self.gate.key(each.host), self.now)
        ]

    def serve(self) -> None:
        """Have all enter who may; each is the first of those."""
        while (client := self.lines.next(self.now)) is not None:
            assert client is self.may_enter()[0]
            self.waiting.remove(client)
            entered = self.gate.enter(self.gate.key(client.host), self.now)
            self.live.append(Passed(client.host, entered))
        assert self.may_enter() == []

    @rule(host=st.sampled_from(HOSTS))
    def arrive(self, host: str) -> None:
        client = Waiter(host)
        self.waiting.append(client)
        self.lines.join(client, self.gate.key(host))
        self.serve()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        client = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.lines.discard(client)
        self.lines.discard(client)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        flow = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.gate.leave(flow.source, self.now)
        self.serve()

    @rule(step=st.sampled_from([0.125, 0.5, 2.0, 64.0]))
    def wait(self, step: float) -> None:
        """Whoever may enter later may not before the moment that was told."""
        self.now += step
        if self.now < self.lines.look_at:
            assert self.may_enter() == []
        self.serve()

    @rule(limits=some_limits)
    def reload(self, limits: AdmissionLimits) -> None:
        self.gate.become(
            limits,
            self.now,
            ((flow, limits.key(flow.host)) for flow in self.live),
        )
        self.lines.settle(lambda client: self.gate.key(client.host))
        self.serve()

    @invariant()
    def the_lines_hold_who_waits_in_the_order_of_arrival(self) -> None:
        if hasattr(self, "lines"):
            assert list(self.lines) == self.waiting
            assert len(self.lines) == len(self.waiting)
            assert (
                self.lines.look_at <= self.now + REST
                or self.gate.limits.as_a_whole
                or (not self.waiting)
            )


class HastyModel(WaitingModel):
    """The same, with heaps that are built anew at every opportunity."""

    def __init__(self) -> None:
        super().__init__()
        self.hasty = mock.patch("proxy.core.waiting.STALE_MAX", -1000)
        self.hasty.start()

    def teardown(self) -> None:
        self.hasty.stop()


TestWaitingModel = WaitingModel.TestCase
TestHastyModel = HastyModel.TestCase
TestHastyModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestWaitingModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_who_only_comes_and_goes_leaves_nothing_behind() -> None:
    """Though the one at the head of all waits on, so that nothing behind it is looked at."""
    gate = Gate(AdmissionLimits(flows=1, source_flows=1))
    gate.enter(gate.key(HOSTS[0]), 0.0)
    lines: WaitingLines[Waiter] = WaitingLines(gate)
    first = Waiter(HOSTS[0])
    lines.join(first, gate.key(first.host))
    for number in range(10 * STALE_MAX):
        client = Waiter(f"10.0.{number // 256}.{number % 256}")
        lines.join(client, gate.key(client.host))
        assert lines.next(0.0) is None
        lines.discard(client)
        assert len(lines._heads) <= 2 * 2 + STALE_MAX
    assert list(lines) == [first]


def test_a_heap_that_is_built_anew_is_in_order() -> None:
    """A line whose head has gone stands behind others, though it was there before them."""
    gate = Gate(AdmissionLimits(flows=1, source_flows=1))
    flow = gate.enter(gate.key("192.0.2.1"), 0.0)
    lines: WaitingLines[Waiter] = WaitingLines(gate)
    clients = [Waiter(HOSTS[0]), Waiter(HOSTS[1]), Waiter(HOSTS[0])]
    with mock.patch("proxy.core.waiting.STALE_MAX", -1000):
        for client in clients:
            lines.join(client, gate.key(client.host))
        lines.discard(clients[0])
        gate.leave(flow, 0.0)
        assert lines.next(0.0) is clients[1]


def test_rests_that_are_noted_anew_end_in_order() -> None:
    gate = Gate(AdmissionLimits(source_rate=Rate(2.0, 1.0)))
    lines: WaitingLines[Waiter] = WaitingLines(gate)
    late, soon = (Waiter(host) for host in HOSTS[:2])
    gate.enter(gate.key(soon.host), 0.0)
    gate.enter(gate.key(late.host), 0.25)
    with mock.patch("proxy.core.waiting.STALE_MAX", -1000):
        for client in (late, soon):
            lines.join(client, gate.key(client.host))
        assert lines.next(0.25) is None
        assert lines.look_at == pytest.approx(0.5)
        assert lines.next(0.5) is soon


def test_a_line_that_rests_again_and_again_is_noted_once() -> None:
    gate = Gate(AdmissionLimits(source_flows=1))
    key = gate.key(HOSTS[0])
    source = gate.enter(key, 0.0)
    lines: WaitingLines[Waiter] = WaitingLines(gate)
    lines.join(Waiter(HOSTS[0]), key)
    for _ in range(10 * STALE_MAX):
        assert lines.next(0.0) is None
        lines.freed(source)  # of another flow, which the gate has not taken back
        assert len(lines._rests) <= 2 + STALE_MAX
    assert lines.next(0.0) is None
    assert lines.look_at == REST


def test_who_leaves_a_shared_source_may_have_been_of_any_line() -> None:
    """Of sources that overflow it is not known whose flow has ended, so that all are asked."""
    gate = Gate(AdmissionLimits(source_flows=1))
    lines: WaitingLines[Waiter] = WaitingLines(gate)
    keys = [gate.key(host) for host in HOSTS[:2]]
    flows = [gate.enter(key, 0.0) for key in keys]
    clients = [Waiter(host) for host in HOSTS[:2]]
    for client, key in zip(clients, keys, strict=True):
        lines.join(client, key)
    assert lines.next(0.0) is None
    for flow in flows:  # nobody is told: it is as if they had been of the overflow
        gate.leave(flow, 0.0)
    assert lines.next(0.0) is None
    lines.freed(Source(None))
    assert lines.next(0.0) is clients[0]
