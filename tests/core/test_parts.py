"""Parts of a bandwidth: fair by weight, whole together, and nothing is left lying."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.parts import LEAST, Want, part_of

WHOLE = 1000.0

wants = st.builds(
    Want,
    weight=st.one_of(st.just(0.0), st.integers(1, 500).map(float)),
    used=st.floats(0, WHOLE),
)


def parts(every: list[Want]) -> list[float]:
    return [
        part_of(WHOLE, own, every[:index] + every[index + 1 :]) for index, own in enumerate(every)
    ]


@given(st.lists(wants, min_size=1, max_size=8))
def test_those_who_wait_share_by_weight_all_that_the_others_do_not_move(every: list[Want]) -> None:
    waiting = [(want, part) for want, part in zip(every, parts(every), strict=True) if want.weight]
    moved = sum(want.used for want in every if not want.weight)
    rest = max(0.0, WHOLE - moved)
    together = sum(want.weight for want, _ in waiting)
    for want, part in waiting:
        assert part == pytest.approx(max(WHOLE * LEAST, rest * want.weight / together))


@given(st.lists(wants, min_size=1, max_size=8))
def test_who_waits_for_nothing_is_given_no_less_than_one_source(every: list[Want]) -> None:
    """It moves what it needs; what it may grow to is bounded."""
    waiting = sum(want.weight for want in every)
    for index, (want, part) in enumerate(zip(every, parts(every), strict=True)):
        others = every[:index] + every[index + 1 :]
        left = max(0.0, WHOLE - sum(other.used for other in others if not other.weight))
        if not want.weight:
            assert part == pytest.approx(max(WHOLE * LEAST, left / (1 + waiting)))


def test_one_alone_has_the_whole() -> None:
    assert parts([Want(3.0, 10.0)]) == [WHOLE]
    assert parts([Want(3.0, 10.0), Want(0.0, 0.0)])[0] == WHOLE


def test_two_who_wait_have_half_each_whatever_they_moved() -> None:
    assert parts([Want(1.0, 900.0), Want(1.0, 0.0)]) == [500.0, 500.0]
