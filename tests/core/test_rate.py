"""Rates against a naive bucket, that holds tokens and is filled as time passes, in fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.rate import DUST, Rate

# Times and amounts that floats hold exactly, so that the model and the rate have to agree.
ticks = st.integers(0, 4000).map(lambda ticks: ticks / 16)
rates = st.builds(Rate, st.sampled_from([0.25, 1.0, 8.0, 1024.0]), st.integers(1, 40).map(float))
takes = st.lists(st.tuples(ticks, st.integers(1, 40)), max_size=40)


class NaiveBucket:
    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.tokens = Fraction(rate.burst)
        self.now = 0.0

    def wait_until(self, now: float) -> None:
        filled = self.tokens + Fraction(now - self.now) * Fraction(self.rate.per_second)
        self.tokens = min(Fraction(self.rate.burst), filled)
        self.now = now


@given(rates, takes)
def test_a_ceiling_decides_as_a_bucket_of_tokens_does(
    rate: Rate, takes: list[tuple[float, int]]
) -> None:
    bucket, full_at, now = NaiveBucket(rate), 0.0, 0.0
    for step, wish in takes:
        amount = min(wish, int(rate.burst))
        now += step / 64
        bucket.wait_until(now)
        assert rate.tokens(full_at, now) == bucket.tokens
        assert rate.allows(full_at, amount, now) is (bucket.tokens >= amount)
        if rate.allows(full_at, amount, now):
            full_at = rate.spend(full_at, amount, now)
            bucket.tokens -= amount


@given(rates, takes)
def test_in_no_span_does_a_ceiling_pass_more_than_its_burst_and_its_rate(
    rate: Rate, takes: list[tuple[float, int]]
) -> None:
    full_at, now = 0.0, 0.0
    passed: list[tuple[float, int]] = []
    for step, wish in takes:
        amount = min(wish, int(rate.burst))
        now += step / 64
        if rate.allows(full_at, amount, now):
            full_at = rate.spend(full_at, amount, now)
            passed.append((now, amount))
    for first, (start, _) in enumerate(passed):
        total = 0
        for when, amount in passed[first:]:
            total += amount
            assert total <= rate.burst + rate.per_second * (when - start) + 1e-6


@given(rates, takes)
def test_a_debt_brings_in_the_long_run_exactly_the_rate(
    rate: Rate, takes: list[tuple[float, int]]
) -> None:
    full_at, now, total = 0.0, 0.0, 0
    for _, amount in takes:
        now = max(now, rate.ready_at(full_at, 0))  # whoever owes nothing may go on, and overdraw
        full_at = rate.spend(full_at, amount, now)
        total += amount
    assume(total > rate.burst)
    done = rate.ready_at(full_at, 0)
    assert total == pytest.approx(rate.burst + rate.per_second * done, rel=1e-6)


@given(rates, ticks, st.integers(1, 40), ticks)
def test_what_is_ready_is_allowed_and_not_a_moment_sooner(
    rate: Rate, full_at: float, amount: int, now: float
) -> None:
    ready = rate.ready_at(full_at, amount)
    assert rate.allows(full_at, amount, ready)
    assert not rate.allows(full_at, amount, ready - DUST)
    assert rate.allows(full_at, amount, now) is (now >= ready)


def test_what_was_not_used_is_kept_up_to_the_burst() -> None:
    rate = Rate(10.0, 5.0)
    assert rate.tokens(0.0, 1e6) == 5
    full_at = rate.spend(0.0, 5, 1e6)
    assert not rate.allows(full_at, 1, 1e6)


def test_a_debt_is_below_nothing() -> None:
    rate = Rate(10.0, 5.0)
    full_at = rate.spend(0.0, 25, 100.0)
    assert full_at == 102.5
    assert rate.tokens(full_at, 100.0) == -20
    assert rate.ready_at(full_at, 5) == pytest.approx(102.5)
