"""What is known of a name, against a naive model that remembers every part for itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.names import (
    JITTER,
    RETRY_FIRST,
    RETRY_LAST,
    TARGETS_MAX,
    Answer,
    Failure,
    Outcome,
    Parts,
    Resolution,
    Target,
    TtlBounds,
)

BOUNDS = TtlBounds(5.0, 300.0)
DOWN = Failure("no answer within 5 s")
GONE = Failure("there is no such name", final=True)


def v4(number: int, **kind: int) -> Target:
    return Target((f"192.0.2.{number}", 0), **kind)


def v6(number: int) -> Target:
    return Target((f"2001:db8::{number:x}", 0, 0, 0))


def answer(*targets: Target, ttl: float = 60.0) -> Answer:
    return Answer(targets, ttl)


def learned(*results: Parts | Failure) -> Resolution:
    resolution = Resolution()
    for now, parts in enumerate(results):
        resolution.learn(parts, float(now), BOUNDS, 0.0)
    return resolution


TARGETS = st.lists(st.integers(1, 6), max_size=4).map(lambda numbers: tuple(map(v4, numbers)))
TTLS = st.sampled_from([0.0, 4.0, 60.0, 1e6])
PARTS = st.dictionaries(
    st.sampled_from("abc"),
    st.one_of(st.builds(Answer, TARGETS, TTLS), st.just(DOWN), st.just(GONE)),
    min_size=1,
)
RESULTS = st.one_of(PARTS, st.just(DOWN), st.just(GONE))


@given(st.lists(RESULTS, max_size=12))
def test_each_part_is_as_last_answered_and_the_whole_is_never_emptied(
    results: list[Parts | Failure],
) -> None:
    resolution = Resolution()
    known: dict[object, tuple[Target, ...]] = {}
    for now, parts in enumerate(results):
        if not isinstance(parts, Failure):
            then: dict[object, tuple[Target, ...]] = {}
            for key, part in parts.items():
                if isinstance(part, Answer):
                    then[key] = part.targets
                else:
                    then[key] = () if part.final else known.get(key, ())
            if any(then.values()):
                known = then
        resolution.learn(parts, float(now), BOUNDS, 0.0)
        assert set(resolution.targets) == {each for part in known.values() for each in part}
        assert list(resolution.targets) == sorted(set(resolution.targets))
    assert sum(resolution.outcomes.values()) == len(results)


@given(RESULTS, st.floats(0, 1), st.integers(0, 40))
def test_the_next_look_up_is_within_bounds(
    parts: Parts | Failure, dice: float, failures: int
) -> None:
    resolution = learned(*[DOWN] * failures)
    outcome = resolution.learn(parts, 1000.0, BOUNDS, dice)
    wait = resolution.next_at - 1000.0
    if outcome is Outcome.OK:
        assert not isinstance(parts, Failure)
        ttl = min(part.ttl for part in parts.values() if isinstance(part, Answer))
        held = max(5.0, min(300.0, ttl))
    else:
        held = min(RETRY_LAST, RETRY_FIRST * 2.0**failures)
    assert wait == pytest.approx(held * (1 + JITTER * dice))


def test_an_answer_replaces_what_was_known() -> None:
    resolution = learned({"A": answer(v4(1), v4(2))}, {"A": answer(v4(2), v4(3))})
    assert resolution.targets == (v4(2), v4(3))
    assert resolution.succeeded_at == 1.0
    assert not resolution.is_stale


def test_a_family_that_cannot_be_had_stays() -> None:
    resolution = learned(
        {"A": answer(v4(1)), "AAAA": answer(v6(1))}, {"A": answer(v4(2)), "AAAA": DOWN}
    )
    assert resolution.targets == (v4(2), v6(1))
    assert resolution.outcomes == {Outcome.OK: 1, Outcome.FAILED: 1, Outcome.ABSENT: 0}
    assert resolution.reason == DOWN.reason


def test_a_family_that_is_gone_goes_while_another_is_left() -> None:
    both = {"A": answer(v4(1)), "AAAA": answer(v6(1))}
    assert learned(both, {"A": answer(), "AAAA": answer(v6(1))}).targets == (v6(1),)
    assert learned(both, {"A": GONE, "AAAA": answer(v6(1))}).targets == (v6(1),)


@pytest.mark.parametrize(
    ("parts", "outcome"),
    [
        (DOWN, Outcome.FAILED),
        (GONE, Outcome.ABSENT),
        ({"A": DOWN, "AAAA": DOWN}, Outcome.FAILED),
        ({"A": DOWN, "AAAA": answer()}, Outcome.FAILED),
        ({"A": GONE, "AAAA": GONE}, Outcome.ABSENT),
        ({"A": answer(), "AAAA": answer()}, Outcome.ABSENT),
        ({}, Outcome.ABSENT),
    ],
)
def test_what_brings_no_address_leaves_the_last_ones(
    parts: Parts | Failure, outcome: Outcome
) -> None:
    resolution = learned({"A": answer(v4(1))}, parts)
    assert resolution.targets == (v4(1),)
    assert resolution.outcomes[outcome] == 1 + (outcome is Outcome.OK)
    assert resolution.is_stale
    assert resolution.reason
    assert resolution.succeeded_at == 0.0
    assert not learned(parts).is_stale


def test_after_a_good_answer_failures_are_counted_anew() -> None:
    resolution = learned(DOWN, DOWN, DOWN, {"A": answer(v4(1))}, DOWN)
    assert resolution.next_at == 4.0 + RETRY_FIRST


def test_who_wants_to_ask_often_asks_as_often_after_a_failure() -> None:
    resolution = Resolution()
    for _ in range(10):
        resolution.learn(DOWN, 0.0, TtlBounds(0.1, 2.0), 0.0)
    assert resolution.next_at == 2.0
    resolution.learn({"A": answer(v4(1))}, 0.0, TtlBounds(0.1, 2.0), 0.0)
    resolution.learn(DOWN, 0.0, TtlBounds(0.1, 2.0), 0.0)
    assert resolution.next_at == 0.1


def test_priority_comes_before_the_address_and_ipv4_before_ipv6() -> None:
    parts = {"s": answer(v4(9), v6(1), v4(10), v4(1, priority=1), v4(9, weight=1))}
    assert learned(parts).targets == (v4(9), v4(10), v6(1), v4(1, priority=1))


def test_an_address_that_comes_twice_counts_once_as_the_better() -> None:
    parts = {"s": answer(v4(1, priority=2), v4(1, weight=3), v4(1, weight=7))}
    assert learned(parts).targets == (v4(1, weight=7),)


def test_addresses_are_bounded_and_the_rest_is_told() -> None:
    many = [Target((f"10.0.{n // 256}.{n % 256}", 0)) for n in range(TARGETS_MAX + 3)]
    resolution = learned({"A": answer(*reversed(many))})
    assert resolution.targets == tuple(many[:TARGETS_MAX])
    assert resolution.omitted == 3
