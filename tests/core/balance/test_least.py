from __future__ import annotations

from collections import Counter
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.balance.least import LeastFlows
from tests.core.balance.endpoints import endpoints_of, picks

loads = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=6)


@given(loads, st.data())
def test_the_one_with_fewest_flows_for_its_weight(
    loads: list[tuple[int, int]], data: st.DataObject
) -> None:
    endpoints = endpoints_of([weight for weight, _ in loads])
    for endpoint, (_, flows) in zip(endpoints, loads, strict=True):
        endpoint.flows = flows
    tried = data.draw(st.sets(st.sampled_from(endpoints)))
    least = LeastFlows()
    least.become(endpoints)
    picked = least.pick(tried, "", 0.0)
    left = {each: Fraction(each.flows, each.weight) for each in endpoints if each not in tried}
    if picked is None:
        assert not left
    else:
        assert left[picked] == min(left.values())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_idle_endpoints_share_out_short_flows_by_weight(weights: list[int]) -> None:
    endpoints = endpoints_of(weights)
    least = LeastFlows()
    least.become(endpoints)
    taken = Counter(picks(least, sum(weights)))
    assert [taken[each] for each in endpoints] == weights


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 200))
def test_flows_that_stay_follow_the_weights(weights: list[int], count: int) -> None:
    endpoints = endpoints_of(weights)
    least = LeastFlows()
    least.become(endpoints)
    for _ in range(count):
        picked = least.pick((), "", 0.0)
        assert picked is not None
        picked.take()
    for endpoint in endpoints:
        assert abs(endpoint.flows - count * endpoint.weight / sum(weights)) <= endpoint.weight + 1


def test_nobody_is_left() -> None:
    least = LeastFlows()
    assert least.pick((), "", 0.0) is None
    least.become([])
    assert least.pick((), "", 0.0) is None
