from __future__ import annotations

from collections import Counter
from itertools import cycle
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.balance.chance import TwoChoices
from proxy.core.endpoint import Endpoint
from tests.core.balance.endpoints import endpoints_of, picks

weights = st.lists(st.integers(1, 9), min_size=1, max_size=5)
points = st.floats(0, 1, exclude_max=True)


def naive(endpoints: list[Endpoint], first: float, second: float) -> Endpoint:
    """Two tickets out of a bowl that holds one for each unit of weight, of different endpoints."""
    tickets = [each for each in endpoints for _ in range(each.weight)]
    one = tickets[int(first * len(tickets))]
    others = [each for each in tickets if each is not one]
    other = others[int(second * len(others))]
    return other if other.flows / other.weight < one.flows / one.weight else one


@given(weights, st.lists(st.integers(0, 3), min_size=5, max_size=5), points, points, st.data())
def test_the_better_of_two_that_are_drawn(
    weights: list[int], flows: list[int], first: float, second: float, data: st.DataObject
) -> None:
    endpoints = endpoints_of(weights)
    for endpoint, count in zip(endpoints, flows, strict=False):
        endpoint.flows = count
    tried = data.draw(st.sets(st.sampled_from(endpoints)))
    two = TwoChoices(cycle([first, second]).__next__)
    two.become(endpoints)
    left = [each for each in endpoints if each not in tried]
    picked = two.pick(tried, "", 0.0)
    if len(left) < 2:
        assert picked is (left[0] if left else None)
    else:
        assert picked is naive(left, first, second)


@settings(deadline=None, max_examples=25)  # each makes thousands of choices
@given(weights, st.integers(0, 2**32))
def test_shares_of_short_flows_follow_the_weights(weights: list[int], seed: int) -> None:
    endpoints = endpoints_of(weights)
    two = TwoChoices(Random(seed).random)
    two.become(endpoints)
    taken = Counter(picks(two, 3000))
    for endpoint in endpoints:  # the standard deviation is below 28
        assert abs(taken[endpoint] - 3000 * endpoint.weight / sum(weights)) < 165


def test_flows_that_stay_are_spread_more_evenly_than_by_chance_alone() -> None:
    endpoints = endpoints_of([1] * 10)
    two = TwoChoices(Random(1).random)
    two.become(endpoints)
    for _ in range(1000):
        picked = two.pick((), "", 0.0)
        assert picked is not None
        picked.take()
    assert max(each.flows for each in endpoints) - min(each.flows for each in endpoints) <= 6
