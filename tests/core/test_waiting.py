"""Who waits and who is next, against a naive model that asks the gate for each in turn."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.core.admission import AdmissionLimits, Gate
from proxy.core.waiting import REST, WaitingLines
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


TestWaitingModel = WaitingModel.TestCase
TestWaitingModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
