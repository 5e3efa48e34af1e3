"""Ceilings: what is moved at once, and that the two forms of a rate say the same."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.ceiling import GRANT_MAX, PAUSE, PIECE_MIN, SLACK, Ceiling, piece_of, shaping_rate
from proxy.core.rate import Rate

NOW = 1e5
SPEEDS = st.floats(1, 1e11)


@given(SPEEDS)
def test_a_piece_comes_at_least_each_20th_and_at_most_each_1000th_of_a_second(speed: float) -> None:
    piece = piece_of(speed)
    assert speed * PAUSE <= piece <= max(PIECE_MIN, speed * SLACK)
    assert shaping_rate(speed).burst == pytest.approx(piece + speed * SLACK)


@pytest.mark.parametrize(("bits", "piece"), [(64e3, 400), (10e6, 12_500), (1e9, 125_000)])
def test_pieces_are_smooth_when_slow_and_few_when_fast(bits: float, piece: float) -> None:
    assert piece_of(bits / 8) == pytest.approx(piece)


@given(SPEEDS, st.floats(2, 1e9), st.floats(-100, 100))
def test_a_bucket_holds_what_the_rate_says(speed: float, burst: float, owed: float) -> None:
    rate = Rate(speed, burst)
    ceiling = Ceiling(rate)
    assert ceiling.tokens(owed) == pytest.approx(rate.tokens(owed, 0.0), rel=1e-6, abs=1e-3)
    slack = 1e-6 * burst + 1e-3
    assert rate.tokens(ceiling.at_piece, 0.0) == pytest.approx(ceiling.piece, abs=slack)
    assert rate.tokens(ceiling.at_least, 0.0) == pytest.approx(ceiling.least, abs=slack)
    assert 1 <= ceiling.least <= ceiling.piece / 2 <= burst / 2
    assert (ceiling.at_most == -inf) == (burst < GRANT_MAX)
    if burst >= GRANT_MAX:
        assert rate.tokens(ceiling.at_most, 0.0) == pytest.approx(GRANT_MAX, abs=slack)


def test_a_new_bucket_holds_a_piece() -> None:
    ceiling = Ceiling(shaping_rate(1e6))
    assert ceiling.tokens(ceiling.new) == pytest.approx(ceiling.piece)


def test_without_a_rate_there_is_always_enough() -> None:
    ceiling = Ceiling(None)
    assert ceiling.new == 0
    assert ceiling.tokens(-1) == ceiling.tokens(1) == inf
    assert ceiling.cost == 0
    ceiling.become(shaping_rate(1e6))
    assert ceiling.tokens(0) == pytest.approx(shaping_rate(1e6).burst)
    ceiling.become(None)
    assert ceiling.tokens(1) == inf
