"""Whatever was before: who waits for a shared bandwidth has its part within a grant or two.

What a share has had more than its neighbours is a debt, which is paid by waiting. It must stay
small, in time, when a stream stands still and goes on, when flows come, and when ceilings change.
"""

from __future__ import annotations

import pytest

from proxy.core.ceiling import ShapeRates
from proxy.core.rate import Rate
from tests.core.test_shaper import BITS, Lab, speed

SLOW, FAST = speed(64e3), speed(1e9)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("quiet", [0.0, 0.05, 0.5])
def test_one_beside_500_has_half_as_soon_as_it_waits(is_first: bool, quiet: float) -> None:
    lab = Lab(ShapeRates(listener=speed(100e6)))
    one = lab.join("one", hungry=is_first)
    lab.run(0.1)
    for _ in range(500):
        lab.join("many")
    lab.run(0.2)
    lab.rest(one)
    lab.run(quiet)
    lab.feed(one)
    lab.moved.clear()
    lab.run(0.25)
    assert lab.moved[one] == pytest.approx(0.25 * 100e6 * BITS / 2, rel=0.05)


def a_pair(level: str, before: Rate, apart: float) -> Lab:
    """Two flows of one source below a shared ceiling, which have shared it for a while."""
    lab = Lab(ShapeRates(**{level: before}))
    lab.join("one")
    lab.run(apart)
    lab.join("one")
    lab.run(0.5)
    return lab


@pytest.mark.parametrize("level", ["listener", "source"])
@pytest.mark.parametrize(("before", "after"), [(FAST, SLOW), (SLOW, FAST)])
@pytest.mark.parametrize("apart", [0.0, 0.37, 0.3715, 0.372])
def test_what_was_granted_at_another_rate_starves_nobody(
    level: str, before: Rate, after: Rate, apart: float
) -> None:
    lab = a_pair(level, before, apart)
    lab.shaper.become(ShapeRates(**{level: after}))
    for _ in range(3):
        lab.moved.clear()
        lab.run(1)
        assert list(lab.moved.values()) == [pytest.approx(after.per_second / 2, rel=0.2)] * 2


@pytest.mark.parametrize("comes_back", [True, False])
def test_who_comes_after_a_change_pays_a_grant_of_now(comes_back: bool) -> None:
    lab = a_pair("listener", FAST, 0.372)
    late = lab.join("one")
    lab.run(0.1)
    lab.rest(late)
    lab.run(0.1)
    lab.shaper.become(ShapeRates(listener=SLOW))
    if comes_back:
        lab.feed(late)
    else:
        late = lab.join("one")
    lab.moved.clear()
    lab.run(1)
    assert lab.moved[late] == pytest.approx(SLOW.per_second / 3, rel=0.4)
