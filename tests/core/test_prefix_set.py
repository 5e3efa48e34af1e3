"""Packed prefixes against a plain set of networks."""

from __future__ import annotations

import pickle
from array import array
from ipaddress import IPv4Network, IPv6Network, ip_network
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.address import Network
from proxy.core.prefix_set import PIECE, PrefixSet, holds, prefix_of

networks = st.lists(
    st.one_of(
        st.builds(
            lambda number, length: IPv4Network((number, length), strict=False),
            st.integers(0, 2**32 - 1),
            st.integers(0, 32),
        ),
        st.builds(
            lambda number, length: IPv6Network((number, length), strict=False),
            st.integers(0, 2**128 - 1),
            st.integers(0, 128),
        ),
    )
)


def packed(members: list[Network]) -> PrefixSet:
    return PrefixSet(map(prefix_of, members))


def unpacked(prefixes: PrefixSet) -> list[Network]:
    v4 = [
        IPv4Network((first << shift, 32 - shift)) for shift, all_ in prefixes.v4 for first in all_
    ]
    v6 = [
        IPv6Network((first << shift, 128 - shift)) for shift, all_ in prefixes.v6 for first in all_
    ]
    return [*v4, *v6]


@given(networks)
def test_what_goes_in_is_there_once(members: list[Network]) -> None:
    prefixes = packed(members + members)
    assert len(prefixes) == len(set(members))
    assert set(unpacked(prefixes)) == set(members)
    assert pickle.loads(pickle.dumps(prefixes)) == prefixes


@given(networks, networks)
def test_sets_are_equal_whose_members_are(some: list[Network], others: list[Network]) -> None:
    assert (packed(some) == packed(others)) is (set(some) == set(others))
    assert packed(some) == packed(some[::-1])


def test_more_than_a_piece_is_in_order() -> None:
    numbers = Random(1).sample(range(10 * PIECE), 3 * PIECE + 1)
    [(shift, firsts)] = PrefixSet((32, 8, number) for number in numbers).v4
    assert shift == 8
    assert list(firsts) == sorted(numbers)


def test_a_level_knows_its_first_and_last_and_none_between() -> None:
    [(_, firsts)] = packed([ip_network("10.0.0.0/24"), ip_network("10.0.2.0/24")]).v4
    numbers = range(0x09FFFF, 0x0A0005)
    assert [holds(firsts, number) for number in numbers] == [False, True, False, True, False, False]


def test_an_ipv4_prefix_takes_four_bytes() -> None:
    [(_, firsts)] = PrefixSet((32, 0, number) for number in range(1000)).v4
    assert isinstance(firsts, array)
    assert firsts.itemsize == 4
