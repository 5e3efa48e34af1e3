from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.counters import DirectionCounters
from proxy.core.flow import KINDS, TRANSITIONS, CloseKind, CloseReason, CloseSide, Flow, State
from proxy.core.histogram import Histogram
from tests.core.flows import tcp_counters, tcp_flow, udp_flow


def test_first_cause_wins() -> None:
    flow = tcp_flow()
    assert flow.end(CloseReason.CLIENT_RESET, CloseSide.CLIENT, 1.0)
    assert not flow.end(CloseReason.KILLED, CloseSide.PROXY, 2.0)
    assert flow.close_reason is CloseReason.CLIENT_RESET
    assert flow.closed == 1.0
    assert sum(flow.counters.closed.values()) == 1


def test_illegal_transition_is_an_assertion() -> None:
    flow = udp_flow()
    with pytest.raises(AssertionError):
        flow.enter(State.ESTABLISHED)


@given(st.lists(st.sampled_from(list(State)), max_size=6))
def test_live_counters_follow_the_states(states: list[State]) -> None:
    flow = tcp_flow()
    for state in states:
        if state in TRANSITIONS.get(flow.state, ()):
            flow.enter(state)
        assert {name for name, count in flow.counters.live.items() if count} == {flow.state}
    flow.end(CloseReason.FINISHED, CloseSide.CLIENT, 1.0)
    assert not any(flow.counters.live.values())


def test_sent_is_received_less_buffered_less_discarded() -> None:
    direction = DirectionCounters()
    direction.received = 100
    direction.buffered = 30
    direction.discarded = 5
    assert direction.sent == 65
    assert direction.snapshot()["sent"] == 65


@given(st.lists(st.floats(0, 10)))
def test_histogram_counts_each_observation_once(values: list[float]) -> None:
    histogram = Histogram((1.0, 2.0, 5.0))
    for number, value in enumerate(values):
        histogram.observe(value, number, float(number))
    edges = (-1.0, 1.0, 2.0, 5.0, float("inf"))
    expected = [sum(low < value <= high for value in values) for low, high in pairwise(edges)]
    snapshot = histogram.snapshot()
    assert snapshot["counts"] == expected
    last = [
        max(
            ((n, value, float(n)) for n, value in enumerate(values) if low < value <= high),
            default=None,
        )
        for low, high in pairwise(edges)
    ]
    assert snapshot["exemplars"] == last


def test_every_reason_has_its_kind() -> None:
    assert KINDS.keys() == {*CloseReason}
    assert {*KINDS.values()} == {*CloseKind}


def test_who_moved_first_is_counted() -> None:
    counters = tcp_counters()
    for side in (CloseSide.CLIENT, CloseSide.CLIENT, CloseSide.PROXY):
        tcp_flow(1, counters).end(CloseReason.KILLED, side, 5.0)
    assert counters.snapshot()["first"] == {"client": 2, "endpoint": 0, "proxy": 1}


def test_counters_are_shared_by_the_flows_of_a_listener() -> None:
    counters = tcp_counters()
    flows: list[Flow] = [tcp_flow(id, counters) for id in (1, 2, 3)]
    flows[0].end(CloseReason.KILLED, CloseSide.PROXY, 5.0)
    snapshot = counters.snapshot()
    assert snapshot["opened"] == 3
    assert snapshot["live"]["connecting"] == 2
    assert snapshot["closed"]["killed"] == 1
    assert snapshot["duration"]["sum"] == 5.0
