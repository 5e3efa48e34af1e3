"""How long a direction stood still, against a sum of intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.sample import Stalled
from proxy.core.stalls import Stalls

steps = st.lists(st.tuples(st.sampled_from(["blocked", "held", "moves"]), st.integers(0, 9)))


@given(steps)
def test_it_is_the_sum_of_its_intervals(life: list[tuple[str, int]]) -> None:
    stalls, now = Stalls(), 0.0
    sums = {"blocked": 0, "held": 0, "moves": 0}
    for what, seconds in life:
        if what == "moves":
            stalls.end(now)
        else:
            stalls.begin(now, by_limit=what == "held")
        now += seconds
        sums[what] += seconds
    assert stalls.until(now) == pytest.approx(Stalled(sums["blocked"], sums["held"]))


def test_a_look_changes_nothing() -> None:
    stalls = Stalls()
    stalls.begin(1.0, by_limit=False)
    assert stalls.until(3.0) == stalls.until(3.0) == Stalled(2.0, 0.0)
    stalls.end(4.0)
    assert stalls.until(9.0) == Stalled(3.0, 0.0)
