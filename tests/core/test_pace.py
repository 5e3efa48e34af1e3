"""The end of what a drain has left over, against a naive model of the promise."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.pace import Pace, moments, paced

PACES = st.builds(
    Pace,
    timeout=st.just(0.0),
    rate=st.floats(0.01, 1e6),
    spread=st.floats(0.001, 1e4),
)
DICE = st.randoms(use_true_random=False)
SLACK = 1 + 1e-9


@given(st.integers(0, 300), PACES, DICE)
def test_every_flow_has_a_moment_within_the_spread(count: int, pace: Pace, dice: object) -> None:
    times = list(moments(count, pace, dice.random))  # type: ignore[attr-defined]
    assert len(times) == count
    assert times == sorted(times)
    assert all(0 <= time <= pace.spread * SLACK for time in times)


@given(st.integers(1, 300), PACES, DICE, st.floats(0.001, 10))
def test_no_window_has_more_than_the_rate(
    count: int, pace: Pace, dice: object, window: float
) -> None:
    """The naive model: count those in every window that begins with one of them."""
    times = list(moments(count, pace, dice.random))  # type: ignore[attr-defined]
    rate = max(pace.rate, count / pace.spread)
    most = max(sum(start <= time < start + window for time in times) for start in times)
    assert most <= ceil(window * rate * SLACK) + 1


@given(st.lists(st.floats(0, 1e6)), PACES, DICE)
def test_the_longest_idle_goes_first(active: list[float], pace: Pace, dice: object) -> None:
    flows = [(last, number) for number, last in enumerate(active)]
    ends = paced(flows, pace, 100.0, dice.random)  # type: ignore[attr-defined]
    assert sorted(number for _, number in ends) == list(range(len(active)))
    assert [active[number] for _, number in ends] == sorted(active)
    assert all(when >= 100.0 for when, _ in ends)


@pytest.mark.parametrize(
    ("count", "rate", "spread", "last"),
    [(10, 10, 100, 0.95), (10, 1, 2, 1.9), (1, 1000, 10, 0.0005), (0, 1, 1, None)],
)
def test_the_rate_rises_only_where_it_must(
    count: int, rate: float, spread: float, last: float | None
) -> None:
    times = list(moments(count, Pace(0, rate, spread), lambda: 0.5))
    assert (times[-1] if times else None) == (last if last is None else pytest.approx(last))
