from __future__ import annotations

from collections import Counter
from math import gcd

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.balance.turns import Turns
from proxy.core.endpoint import Endpoint
from tests.core.balance.endpoints import endpoints_of

weights = st.lists(st.integers(1, 20), min_size=1, max_size=6)


def turns_of(endpoints: list[Endpoint]) -> Turns:
    turns = Turns()
    turns.become(endpoints)
    return turns


@given(weights, st.integers(0, 40))
def test_in_as_many_turns_as_they_weigh_each_has_its_weight_wherever_one_begins(
    weights: list[int], skipped: int
) -> None:
    endpoints = endpoints_of(weights)
    turns = turns_of(endpoints)
    for _ in range(skipped):
        turns.pick((), "", 0.0)
    taken = Counter(turns.pick((), "", 0.0) for _ in range(sum(weights)))
    assert [taken[each] for each in endpoints] == weights


def naive(weights: list[int], turns: int) -> list[int]:
    """Who is next, by the definition: each saves its weight, the richest pays for all."""
    saved, order = [0] * len(weights), []
    for _ in range(turns):
        saved = [have + weight for have, weight in zip(saved, weights, strict=True)]
        richest = saved.index(max(saved))
        saved[richest] -= sum(weights)
        order.append(richest)
    return order


@given(weights)
def test_turns_are_spread_smoothly(weights: list[int]) -> None:
    endpoints = endpoints_of(weights)
    turns = turns_of(endpoints)
    count = 2 * sum(weights) // gcd(*weights)
    picked = [turns.pick((), "", 0.0) for _ in range(count)]
    assert picked == [endpoints[index] for index in naive(weights, count)]


def test_one_that_weighs_much_is_not_hit_by_a_burst() -> None:
    turns = turns_of(endpoints_of([5, 1, 1]))
    picked = [turns.pick((), "", 0.0) for _ in range(7)]
    assert [each.name for each in picked if each] == ["e0", "e0", "e1", "e0", "e2", "e0", "e0"]


@given(weights, st.data())
def test_those_tried_are_left_out(weights: list[int], data: st.DataObject) -> None:
    endpoints = endpoints_of(weights)
    turns = turns_of(endpoints)
    for tried in data.draw(st.lists(st.sets(st.sampled_from(endpoints)))):
        picked = turns.pick(tried, "", 0.0)
        assert (picked is None) == (len(tried) == len(endpoints))
        assert picked not in tried


@given(weights, st.lists(st.integers(0, 5), max_size=30))
def test_those_that_come_and_go_neither_lose_nor_gain_in_the_long_run(
    weights: list[int], changes: list[int]
) -> None:
    """After any changes, the shares of a whole round are right to within one round."""
    endpoints = endpoints_of(weights)
    turns = turns_of(endpoints)
    for leaving in changes:
        turns.become([each for n, each in enumerate(endpoints) if n != leaving] or endpoints)
        turns.pick((), "", 0.0)
    turns.become(endpoints)
    total = sum(weights)
    taken = Counter(turns.pick((), "", 0.0) for _ in range(20 * total))
    for endpoint, weight in zip(endpoints, weights, strict=True):
        assert abs(taken[endpoint] - 20 * weight) <= len(weights) + 1
