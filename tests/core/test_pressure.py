"""Who goes when the table is full, against a naive model that looks at every flow each time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.counters import ListenerCounters
from proxy.core.flow import TRANSITIONS, CloseReason, CloseSide, Direction, Flow, State
from proxy.core.pressure import (
    ANSWER_TIME,
    HALF_CLOSED,
    IDLE_TIME,
    LOOKS,
    SPARE,
    STRANGER,
    EvictionClass,
    IdleHeap,
    Pressure,
    class_of,
    holder_key,
)
from proxy.core.table import NEARLY, SURVEYED, FlowTable

LOCAL = ("198.51.100.1", 443)
HOSTS = [f"192.0.2.{number}" for number in range(1, 6)]
hosts = st.sampled_from(HOSTS)
transports = st.sampled_from([Transport.TCP, Transport.UDP])
moments = st.sampled_from([0.0, 0.25, 1.0, 4.0, 10.0, 25.0])


def flow_of(id: int, transport: Transport, host: str, now: float) -> Flow:
    first = State.UNREPLIED if transport.is_datagram else State.CONNECTING
    counters = ListenerCounters("lab", transport, "origin")
    return Flow(id, counters, (host, id), LOCAL, Direction(), Direction(), first, now)


def evictable(flows: list[Flow], source: str | None, now: float) -> list[Flow]:
    """Every flow that may be the next to go, by the words of the declared order."""
    unreplied = [flow for flow in flows if flow.state is State.UNREPLIED]
    old = [flow for flow in unreplied if now - flow.opened >= ANSWER_TIME]
    if old:
        return [min(old, key=lambda flow: flow.id)]
    if source is None:
        return []
    idle = [flow for flow in flows if flow not in unreplied and now - flow.active >= IDLE_TIME]
    half_closed = [flow for flow in idle if flow.state in HALF_CLOSED]
    if half_closed:
        longest = min(flow.active for flow in half_closed)
        return [flow for flow in half_closed if flow.active == longest]
    held = Counter(flow.client_remote[0] for flow in flows if flow not in unreplied)
    would_hold = held[source] + 1
    greedy = {flow.client_remote[0]: held[flow.client_remote[0]] for flow in idle}
    most = max(greedy.values(), default=0)
    if most <= would_hold:
        return []
    found = []
    for host in (host for host, flows in greedy.items() if flows == most):
        own = [flow for flow in idle if flow.client_remote[0] == host]
        longest = min(flow.active for flow in own)
        found += [flow for flow in own if flow.active == longest]
    return found


class PressureModel(RuleBasedStateMachine):
    """A table of any fullness; its books may come and go at any time without a difference."""

    @initialize(limit=st.sampled_from([1, 2, 3, 4, 8, 20, 40]))
    def begin(self, limit: int) -> None:
        self.table = FlowTable(limit, recent=0)
        self.now = 0.0

    @precondition(lambda self: not self.table.full)
    @rule(transport=transports, host=hosts, many=st.integers(1, 8))
    def open(self, transport: Transport, host: str, many: int) -> None:
        for _ in range(min(many, self.table.limit - len(self.table))):
            self.table.add(flow_of(self.table.take_id(), transport, host, self.now))

    @precondition(lambda self: len(self.table))
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(list(self.table)))
        following = sorted(TRANSITIONS.get(flow.state, ()))
        if following:
            flow.active = self.now if not flow.transport.is_datagram else flow.active
            flow.enter(data.draw(st.sampled_from(following)))
            self.table.moved(flow)

    @precondition(lambda self: len(self.table))
    @rule(data=st.data())
    def be_active(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(list(self.table))).active = self.now

    @precondition(lambda self: len(self.table))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(list(self.table)))
        assert self.table.end(flow, CloseReason.FINISHED, CloseSide.CLIENT, self.now)

    @rule(seconds=moments)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(limit=st.sampled_from([1, 4, 8, 20, 40]))
    def resize(self, limit: int) -> None:
        self.table.resize(limit, 0)

    @precondition(lambda self: self.table.full)
    @rule(source=st.one_of(st.none(), hosts, st.just("203.0.113.9")), evict=st.booleans())
    def ask(self, source: str | None, evict: bool) -> None:
        allowed = evictable(list(self.table), source, self.now)
        victim = self.table.victim(source, self.now)
        assert victim in allowed if allowed else victim is None
        if evict and victim is not None:
            assert self.table.end(victim, CloseReason.EVICTED, CloseSide.PROXY, self.now)


TestPressure = PressureModel.TestCase
TestPressure.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def established(id: int, host: str, now: float) -> Flow:
    flow = flow_of(id, Transport.TCP, host, now)
    flow.enter(State.ESTABLISHED)
    return flow


def books(flows: list[Flow]) -> Pressure:
    made = Pressure(flows)
    made.survey(len(flows))
    assert made.complete
    return made


def test_a_newcomer_that_may_be_forged_evicts_only_one_that_is_unanswered() -> None:
    greedy = [established(number, HOSTS[0], 0.0) for number in range(1, 9)]
    assert books(greedy).victim(None, 1e6) is None
    unreplied = flow_of(9, Transport.UDP, HOSTS[1], 0.0)
    assert books([*greedy, unreplied]).victim(None, 1e6) is unreplied


def test_an_unanswered_flow_has_time_to_be_answered() -> None:
    made = books([flow_of(1, Transport.UDP, HOSTS[0], 5.0)])
    assert made.victim(None, 5.0 + ANSWER_TIME - 0.001) is None
    assert made.victim(None, 5.0 + ANSWER_TIME) is not None


def test_who_is_impersonated_does_not_look_greedy() -> None:
    """Unanswered datagrams in the name of a client do not make its connections go."""
    mine = [established(number, HOSTS[0], 0.0) for number in (1, 2)]
    greedy = [established(number, HOSTS[1], 0.0) for number in (3, 4, 5)]
    forged = [flow_of(number, Transport.UDP, HOSTS[0], 99.5) for number in range(6, 30)]
    assert books([*mine, *greedy, *forged]).victim(STRANGER, 100.0) is greedy[0]


def test_sources_with_one_flow_each_never_evict_each_other() -> None:
    flows = [established(number, f"10.0.0.{number}", 0.0) for number in range(1, 100)]
    assert books(flows).victim(STRANGER, 1e6) is None


def test_a_source_takes_no_place_from_one_that_holds_as_much() -> None:
    flows = [established(number, HOSTS[number % 2], 0.0) for number in range(6)]
    made = books(flows)
    assert made.victim(HOSTS[0], 1e6) is None
    assert made.victim(STRANGER, 1e6) in flows


def test_sources_are_told_apart_as_the_listener_does_whether_it_limits_them_or_not() -> None:
    flow = established(1, "192.0.2.77", 0.0)
    flow.counters.gate.become(AdmissionLimits(prefix_v4=24), 0.0)
    assert holder_key(flow) == flow.counters.gate.limits.key("192.0.2.1")


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_class(state: State) -> None:
    expected = {State.UNREPLIED: EvictionClass.UNREPLIED}
    expected |= dict.fromkeys(HALF_CLOSED, EvictionClass.HALF_CLOSED)
    assert class_of(state) is expected.get(state, EvictionClass.IDLE)


def test_the_books_are_complete_when_the_last_place_is_taken() -> None:
    table = FlowTable(100 * NEARLY, recent=0)
    for number in range(1, table.limit + 1):
        table.add(established(number, HOSTS[0], 0.0))
    assert table._pressure is not None
    assert table._pressure.complete
    assert SURVEYED > NEARLY


def test_the_survey_takes_up_what_happens_meanwhile() -> None:
    flows = [flow_of(number, Transport.UDP, HOSTS[0], 0.0) for number in (1, 2, 3)]
    made = Pressure(flows)
    made.survey(1)
    flows[1].end(CloseReason.IDLE_TIMEOUT, CloseSide.PROXY, 1.0)
    made.discard(flows[1])
    younger = flow_of(4, Transport.UDP, HOSTS[0], 0.0)
    made.add(younger)
    assert not made.complete
    made.survey(3)
    assert made.complete
    for expected in (flows[0], flows[2], younger):
        assert made.victim(None, 9.0) is expected
        made.discard(expected)
    assert made.victim(None, 9.0) is None


def test_the_books_know_flows_that_come_while_some_room_is_left() -> None:
    table = FlowTable(4 * NEARLY, recent=0)
    flows = [flow_of(number, Transport.UDP, HOSTS[0], 0.0) for number in range(4 * NEARLY)]
    for flow in flows:
        table.add(flow)
    for flow in flows[:8]:
        table.end(flow, CloseReason.FINISHED, CloseSide.CLIENT, 1.0)
    assert table._pressure is not None
    for number in range(1000, 1008):
        table.add(flow_of(number, Transport.UDP, HOSTS[0], 1.0))
    assert table._pressure.complete
    assert set(table._pressure._unreplied) == set(table)


def test_there_are_no_books_while_there_is_room() -> None:
    table = FlowTable(10 * NEARLY, recent=0)
    flows = [established(number, HOSTS[0], 0.0) for number in range(9 * NEARLY + 6)]
    for flow in flows[:-1]:
        table.add(flow)
    assert table._pressure is None
    table.add(flows[-1])
    assert table._pressure is not None
    for flow in flows[:10]:
        table.end(flow, CloseReason.FINISHED, CloseSide.CLIENT, 1.0)
    assert table._pressure is not None
    table.end(flows[10], CloseReason.FINISHED, CloseSide.CLIENT, 1.0)
    assert table._pressure is None


def test_one_question_looks_at_a_bounded_number_of_flows() -> None:
    heap, looked = IdleHeap(), 0
    flows = [established(number, HOSTS[0], 0.0) for number in range(1, 3 * LOOKS)]
    for flow in flows:
        heap.push(flow)
        flow.active = 100.0

    def belongs(_: Flow) -> bool:
        nonlocal looked
        looked += 1
        return True

    assert heap.first(50.0, belongs) is None
    assert looked == LOOKS


def test_a_heap_forgets_those_that_are_no_more() -> None:
    """Also where nobody asks who is the next to go."""
    made = books([established(1, HOSTS[0], 0.0)])
    for number in range(2, 5 * SPARE):
        flow = established(number, HOSTS[0], 0.0)
        made.add(flow)
        flow.enter(State.CLIENT_CLOSED)
        made.moved(flow)
        made.discard(flow)
    assert len(made._half_heap._entries) <= SPARE + 1
    assert len(made._holdings[HOSTS[0]].heap._entries) <= SPARE + 3
