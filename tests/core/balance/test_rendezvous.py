from __future__ import annotations

from collections import Counter
from math import log

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.balance.hashing import hash_of, identity_of, mixed
from proxy.core.balance.rendezvous import Rendezvous
from proxy.core.endpoint import Endpoint
from tests.core.balance.endpoints import endpoints_of

SOURCES = [f"10.0.{n // 250}.{n % 250}" for n in range(2000)]

weights = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def placed(endpoints: list[Endpoint], sources: list[str] = SOURCES) -> dict[str, Endpoint | None]:
    picker = Rendezvous()
    picker.become(endpoints)
    return {source: picker.pick((), source, 0.0) for source in sources}


@settings(deadline=None, max_examples=25)  # each makes thousands of choices
@given(weights)
def test_shares_of_sources_follow_the_weights(weights: list[int]) -> None:
    endpoints = endpoints_of(weights)
    taken = Counter(placed(endpoints).values())
    for endpoint in endpoints:  # the standard deviation is below 23
        assert abs(taken[endpoint] - 2000 * endpoint.weight / sum(weights)) < 115


def naive(endpoints: list[Endpoint], source: str) -> Endpoint:
    """Whose exponential clock, driven by the hash of both, rings first."""

    def rings(endpoint: Endpoint) -> float:
        number = mixed(hash_of(source), hash_of(identity_of(endpoint)))
        return -log((number + 1) / (2**64 + 1)) / endpoint.weight

    return min(endpoints, key=rings)


@given(weights, st.text(), st.randoms())
def test_the_order_in_which_they_are_written_does_not_matter(
    weights: list[int], source: str, random: object
) -> None:
    endpoints = endpoints_of(weights)
    expected = naive(endpoints, source)
    assert placed(endpoints, [source])[source] is expected
    assert placed(endpoints[::-1], [source])[source] is expected


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.data())
def test_only_the_sources_of_one_that_leaves_move(weights: list[int], data: st.DataObject) -> None:
    endpoints = endpoints_of(weights)
    gone = data.draw(st.sampled_from(endpoints))
    left = [each for each in endpoints if each is not gone]
    before, after = placed(endpoints, SOURCES[:200]), placed(left, SOURCES[:200])
    for source, endpoint in before.items():
        assert after[source] is endpoint or endpoint is gone


@given(weights, st.text(), st.data())
def test_one_that_has_been_tried_is_as_one_that_has_left(
    weights: list[int], source: str, data: st.DataObject
) -> None:
    endpoints = endpoints_of(weights)
    tried = data.draw(st.sets(st.sampled_from(endpoints)))
    picker = Rendezvous()
    picker.become(endpoints)
    left = [each for each in endpoints if each not in tried]
    assert picker.pick(tried, source, 0.0) is (naive(left, source) if left else None)


def test_the_choice_is_the_same_everywhere_and_always() -> None:
    """A change here moves the clients of everybody who upgrades."""
    picked = placed(endpoints_of([1, 2, 3]), ["10.1.1.1", "10.1.1.2", "10.1.1.3", "2001:db8::"])
    assert [each and each.name for each in picked.values()] == ["e2", "e2", "e2", "e0"]
