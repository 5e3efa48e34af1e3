"""The divider against a naive one, which looks at all who have something, at each who is done."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.fair import Fluid, Part

WEIGHTS = st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=1, max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 5), st.integers(0, 2000)),
        st.tuples(st.none(), st.floats(0, 3000)),
        st.tuples(st.integers(0, 5), st.sampled_from(["0.5", "1", "3"])),
    ),
    max_size=40,
)
"""So much more for one, so much served, or another weight of one, which is text."""


def drain(left: list[float], weights: list[float], amount: float) -> None:
    """Serve all who have something, until the first is done, and again."""
    while amount > 1e-9 and (busy := [n for n, size in enumerate(left) if size > 1e-9]):
        weight = sum(weights[n] for n in busy)
        rise = min(amount / weight, *(left[n] / weights[n] for n in busy))
        for n in busy:
            left[n] -= rise * weights[n]
        amount -= rise * weight


@given(WEIGHTS, STEPS)
def test_it_divides_like_the_naive_one(
    weights: list[float], steps: list[tuple[int | None, float | str]]
) -> None:
    fluid = Fluid(count())
    parts = [Part(weight) for weight in weights]
    left = [0.0] * len(parts)
    for who, amount in steps:
        if isinstance(amount, str):
            assert who is not None
            weights[who % len(parts)] = float(amount)
            fluid.weigh(parts[who % len(parts)], float(amount))
        elif who is None:
            fluid.drain(amount)
            drain(left, weights, amount)
        else:
            fluid.add(parts[who % len(parts)], amount)
            left[who % len(parts)] += amount
        for part, size in zip(parts, left, strict=True):
            assert fluid.outstanding(part) == pytest.approx(size, abs=1e-3)


def test_those_who_are_done_are_let_go_of() -> None:
    fluid = Fluid(count())
    for _ in range(100):
        fluid.add(Part(), 10)
    fluid.drain(1000)
    assert not fluid._busy


def test_who_was_noted_twice_is_let_go_of_too() -> None:
    fluid, part = Fluid(count()), Part()
    fluid.add(part, 10)
    for weight in (4, 0.5, 3):
        fluid.weigh(part, weight)
    assert fluid.outstanding(part) == pytest.approx(10)
    fluid.drain(1000)
    assert not fluid._busy
    assert not fluid._weight


def test_who_is_done_earlier_for_another_weight_leaves_the_rest_to_others() -> None:
    fluid, light, heavy = Fluid(count()), Part(), Part()
    fluid.add(heavy, 105)
    fluid.add(light, 1005)
    fluid.drain(10)
    fluid.weigh(heavy, 4)
    for amount, left in ((125, 975), (75, 900), (100, 800)):
        fluid.drain(amount)
        assert fluid.outstanding(heavy) == 0
        assert fluid.outstanding(light) == pytest.approx(left)
