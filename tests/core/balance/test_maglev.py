from __future__ import annotations

from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.balance.hashing import hash_of, identity_of
from proxy.core.balance.maglev import OFFSET, SIZES, STEP, Maglev, filled, size_for
from proxy.core.endpoint import Endpoint
from tests.core.balance.endpoints import endpoints_of

SIZE = SIZES[0]

weights = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def naive(endpoints: list[Endpoint], size: int) -> list[Endpoint]:
    """The table as the paper has it: whole permutations, and turns."""
    endpoints = sorted(endpoints, key=identity_of)
    permutations = []
    for endpoint in endpoints:
        offset = hash_of(identity_of(endpoint), OFFSET) % size
        step = hash_of(identity_of(endpoint), STEP) % (size - 1) + 1
        permutations.append([(offset + turn * step) % size for turn in range(size)])
    table: dict[int, Endpoint] = {}
    greatest = max(each.weight for each in endpoints)
    taken, turn = Counter[Endpoint](), 0
    while len(table) < size:
        turn += 1
        for endpoint, permutation in zip(endpoints, permutations, strict=True):
            wanted = ceil(turn * endpoint.weight / greatest)
            while taken[endpoint] < wanted and len(table) < size:
                place = next(each for each in permutation if each not in table)
                table[place] = endpoint
                taken[endpoint] += 1
    return [table[place] for place in range(size)]


@given(weights, st.sampled_from([2, 3, 7, 101, 499]))
def test_the_table_is_that_of_the_paper(weights: list[int], size: int) -> None:
    endpoints = endpoints_of(weights)
    assert filled(endpoints, size) == filled(endpoints[::-1], size) == naive(endpoints, size)


@settings(deadline=None, max_examples=25)  # each makes whole tables
@given(weights)
def test_shares_of_the_table_follow_the_weights(weights: list[int]) -> None:
    endpoints = endpoints_of(weights)
    taken = Counter(filled(endpoints, SIZE))
    for endpoint in endpoints:
        assert abs(taken[endpoint] - SIZE * endpoint.weight / sum(weights)) <= endpoint.weight + 1


@settings(deadline=None, max_examples=25)  # each makes whole tables
@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.data())
def test_a_change_moves_at_most_its_part_of_the_table_and_2_percent(
    weights: list[int], data: st.DataObject
) -> None:
    endpoints = endpoints_of(weights)
    gone = data.draw(st.sampled_from(endpoints))
    left = [each for each in endpoints if each is not gone]
    whole, without = filled(endpoints, SIZE), filled(left, SIZE)
    moved = sum(one is not other for one, other in zip(whole, without, strict=True))
    assert moved / SIZE <= gone.weight / sum(weights) + 0.02


@pytest.mark.parametrize("count", [16, 17, 64])
def test_a_change_among_many_moves_little(count: int) -> None:
    size = size_for(count)
    endpoints = endpoints_of([1] * count)
    whole, without = filled(endpoints, size), filled(endpoints[1:], size)
    moved = sum(one is not other for one, other in zip(whole, without, strict=True))
    assert moved / size <= 1 / count + 0.02


@settings(deadline=None, max_examples=25)  # each makes whole tables
@given(weights, st.text(), st.data())
def test_those_tried_are_passed_over_for_the_next_place(
    weights: list[int], source: str, data: st.DataObject
) -> None:
    endpoints = endpoints_of(weights)
    tried = data.draw(st.sets(st.sampled_from(endpoints)))
    picker = Maglev(SIZE)
    picker.become(endpoints)
    table = filled(endpoints, SIZE)
    place = hash_of(source) % SIZE
    left = [each for each in table[place:] + table[:place] if each not in tried]
    assert picker.pick(tried, source, 0.0) is (left[0] if left else None)


def test_nobody_is_left() -> None:
    picker = Maglev(SIZE)
    picker.become([])
    assert picker.pick((), "10.0.0.1", 0.0) is None


def test_sizes_are_primes() -> None:
    assert all(size % divisor for size in SIZES for divisor in range(2, int(size**0.5) + 1))


def test_the_choice_is_the_same_everywhere_and_always() -> None:
    """A change here moves the clients of everybody who upgrades, and parts a fleet meanwhile."""
    picker = Maglev(SIZE)
    picker.become(endpoints_of([1, 2, 3]))
    sources = ["10.1.1.1", "10.1.1.2", "10.1.1.3", "2001:db8::"]
    picked = [picker.pick((), source, 0.0) for source in sources]
    assert [each and each.name for each in picked] == ["e2", "e2", "e0", "e2"]
