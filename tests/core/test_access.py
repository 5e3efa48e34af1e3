"""Access lists against a naive model: ask every network, and let the longest one decide."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.access import ANYBODY, KNOWN_MAX, AccessList
from proxy.core.address import Network
from proxy.core.prefix_set import PrefixSet, prefix_of

IpAddress = IPv4Address | IPv6Address


def networks(*texts: str) -> list[Network]:
    return [ip_network(text) for text in texts]


def naive(allow: set[Network], deny: set[Network], address: IpAddress) -> bool:
    holding = [
        network
        for network in allow | deny
        if network.version == address.version and address in network
    ]
    if not holding:
        return not allow
    return max(holding, key=lambda network: network.prefixlen) in allow


# Few bits differ, so that networks lie in one another and addresses lie in networks.
near_v4 = st.integers(0, 15).map(lambda low: IPv4Address(0x0A000000 | (low & 12) << 22 | low & 3))
near_v6 = st.integers(0, 15).map(
    lambda low: IPv6Address(0x20010DB8 << 96 | (low & 12) << 62 | low & 3)
)
addresses: st.SearchStrategy[IpAddress] = st.one_of(near_v4, near_v6, st.ip_addresses())


@st.composite
def network_sets(draw: st.DrawFn) -> set[Network]:
    found: set[Network] = set()
    for address in draw(st.lists(addresses, max_size=6)):
        length = draw(st.integers(0, address.max_prefixlen))
        found.add(ip_network(f"{address}/{length}", strict=False))
    return found


@given(network_sets(), network_sets(), st.lists(addresses, min_size=1), st.randoms())
def test_the_longest_network_that_holds_the_client_decides(
    allow: set[Network], deny: set[Network], clients: list[IpAddress], random: Random
) -> None:
    deny -= allow
    written_allow, written_deny = (
        {network for network in every if random.random() < 0.5} for every in (allow, deny)
    )
    access = AccessList(
        written_allow,
        written_deny,
        more_allowed=PrefixSet(map(prefix_of, allow - written_allow)),
        more_denied=PrefixSet(map(prefix_of, deny - written_deny)),
    )
    edges = [end for net in allow | deny for end in (net[0], net[-1])]
    for client in [*clients, *edges, *clients, *edges]:  # the second time they are known
        assert access.admits(str(client)) is naive(allow, deny, client)
        assert access.admits(str(client)) or not access.everybody


def test_an_empty_list_admits_everybody() -> None:
    assert ANYBODY.admits("192.0.2.1")
    assert ANYBODY.admits("fe80::1%eth0")


def test_denied_networks_alone_bar_nobody_else() -> None:
    access = AccessList([], networks("192.0.2.0/24", "2001:db8::/32"))
    assert not access.admits("192.0.2.255")
    assert not access.admits("2001:db8::1")
    assert access.admits("192.0.3.0")
    assert access.admits("2001:db9::1")


def test_allowed_networks_bar_everybody_else_also_of_the_other_version() -> None:
    access = AccessList(networks("192.0.2.0/24"), [])
    assert access.admits("192.0.2.1")
    assert not access.admits("192.0.3.1")
    assert not access.admits("2001:db8::1")


def test_exceptions_go_both_ways() -> None:
    access = AccessList(networks("10.0.0.0/8", "10.1.2.3/32"), networks("10.1.0.0/16"))
    assert access.admits("10.0.0.1")
    assert not access.admits("10.1.2.4")
    assert access.admits("10.1.2.3")


def test_a_zone_does_not_hide_a_client() -> None:
    access = AccessList([], networks("fe80::/10"))
    assert not access.admits("fe80::1%eth0")


def test_the_whole_internet_is_a_network_too() -> None:
    access = AccessList(networks("::/0", "192.0.2.7/32"), networks("0.0.0.0/0"))
    assert not access.admits("192.0.2.8")
    assert access.admits("192.0.2.7")
    assert access.admits("2001:db8::1")


def test_a_network_that_is_allowed_and_denied_is_denied() -> None:
    both = networks("10.0.0.0/8")
    for access in (
        AccessList(both, both),
        AccessList(both, (), more_denied=PrefixSet(map(prefix_of, both))),
        AccessList((), both, more_allowed=PrefixSet(map(prefix_of, both))),
    ):
        assert not access.admits("10.0.0.1")
        assert not access.admits("11.0.0.1")


def test_ten_thousand_networks_are_looked_up_by_their_lengths() -> None:
    many = [IPv4Network((ip << 8, 24)) for ip in range(10_000)] + networks("198.51.0.0/16")
    access = AccessList([], many)
    assert len(access._v4) == 2
    assert not access.admits("0.39.15.9")  # the last of them: 9999 is 39 * 256 + 15
    assert access.admits("0.39.16.9")
    assert not access.admits("198.51.100.1")


def test_a_flood_of_invented_addresses_is_not_remembered() -> None:
    access = AccessList((), networks("10.0.0.0/9"))
    for number in range(3 * KNOWN_MAX + 1):
        host = str(IPv4Address(0x0A7FF000 + number))
        assert access.admits(host) is (number >= 0x1000)
        assert len(access._known) <= KNOWN_MAX
