from __future__ import annotations

from math import inf

import pytest

from proxy.core.expiry import UNREPLIED_LIFE, FlowLimits, deadline_of, limits_in_force
from proxy.core.flow import CloseReason, State
from tests.core.flows import tcp_flow, udp_flow

LIMITS = FlowLimits(connect=5, idle=600, half_closed=60, unreplied=30)

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
    assert limits_in_force(tcp_flow(), LIMITS) == {"connect": 5, "idle": 600, "half_closed": 60}
    assert limits_in_force(udp_flow(), FlowLimits(duration=inf)) == {
        "unreplied": 30.0,
        "idle": 7440.0,
    }
    assert limits_in_force(udp_flow(), FlowLimits(duration=9))["duration"] == 9
