from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.address import Transport
from proxy.core.expiry import (
    UNREPLIED_LIFE,
    FlowLimits,
    deadline_of,
    limits_in_force,
    next_look,
)
from proxy.core.flow import TRANSITIONS, CloseReason, State
from tests.core.flows import tcp_flow, udp_flow

LIMITS = FlowLimits(connect=5, idle=600, half_closed=60, unreplied=30)

clock = st.floats(0.1, 1000)
clocks = st.builds(
    FlowLimits, connect=clock, idle=clock, half_closed=clock, unreplied=clock, duration=clock
)

TCP_CASES = [
    ((), 5, CloseReason.CONNECT_TIMEOUT),
    ((State.ESTABLISHED,), 600, CloseReason.IDLE_TIMEOUT),
    ((State.ESTABLISHED, State.CLIENT_CLOSED), 60, CloseReason.HALF_CLOSED_TIMEOUT),
    ((State.ESTABLISHED, State.ENDPOINT_CLOSED), 60, CloseReason.HALF_CLOSED_TIMEOUT),
    ((State.ESTABLISHED, State.CLOSING), 60, CloseReason.HALF_CLOSED_TIMEOUT),
]


@pytest.mark.parametrize(("states", "clock", "reason"), TCP_CASES)
def test_each_tcp_state_has_its_clock(
    states: tuple[State, ...], clock: float, reason: CloseReason
) -> None:
    flow = tcp_flow(now=100.0)
    for state in states:
        flow.enter(state)
    flow.active = 107.0
    assert deadline_of(flow, LIMITS) == (107.0 + clock, reason)


def test_udp_waits_for_the_first_reply_then_idles() -> None:
    flow = udp_flow(now=100.0)
    assert deadline_of(flow, LIMITS) == (130.0, CloseReason.IDLE_TIMEOUT)
    flow.enter(State.ASSURED)
    assert deadline_of(flow, LIMITS) == (700.0, CloseReason.IDLE_TIMEOUT)


def test_a_busy_unreplied_flow_does_not_live_for_ever() -> None:
    flow = udp_flow(now=0.0)
    flow.active = UNREPLIED_LIFE * 30.0 - 1
    assert deadline_of(flow, LIMITS) == (UNREPLIED_LIFE * 30.0, CloseReason.MAX_DURATION)
    flow.enter(State.ASSURED)
    assert deadline_of(flow, LIMITS).reason is CloseReason.IDLE_TIMEOUT


def test_duration_counts_from_the_start() -> None:
    flow = tcp_flow(now=10.0)
    flow.enter(State.ESTABLISHED)
    flow.active = 95.0
    limits = FlowLimits(idle=600, duration=90)
    assert deadline_of(flow, limits) == (100.0, CloseReason.MAX_DURATION)


def test_limits_in_force_are_those_that_can_strike() -> None:
    tcp = {"connect": 5, "idle": 600, "half_closed": 60}
    assert limits_in_force(Transport.TCP, LIMITS) == tcp
    udp = {"unreplied": 30.0, "idle": 7440.0}
    assert limits_in_force(Transport.UDP, FlowLimits()) == udp
    assert limits_in_force(Transport.UDP, FlowLimits(duration=9))["duration"] == 9


@given(clocks, st.booleans())
def test_the_first_look_is_not_later_than_any_clock(limits: FlowLimits, datagrams: bool) -> None:
    flow = udp_flow(now=7.0) if datagrams else tcp_flow(now=7.0)
    look = limits.datagram_look if datagrams else limits.stream_look
    assert look <= next_look(flow, limits, 7.0) - 7.0 + 1e-9


@given(clocks, st.lists(st.sampled_from([*State]), max_size=4), st.floats(0, 100))
def test_no_change_of_state_brings_a_deadline_before_the_next_look(
    limits: FlowLimits, states: list[State], later: float
) -> None:
    """A flow is looked at in time, whatever becomes of it in between."""
    for flow in (tcp_flow(now=0.0), udp_flow(now=0.0)):
        look = next_look(flow, limits, 0.0)
        flow.active = later
        for state in states:
            if state in TRANSITIONS.get(flow.state, ()):
                flow.enter(state)
            assert deadline_of(flow, limits).when >= look - 1e-9
