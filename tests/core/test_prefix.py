"""Hosts as numbers, against the standard library."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.prefix import v4_number, v6_number


@given(st.ip_addresses(v=4))
def test_an_ipv4_host_is_its_number(address: IPv4Address) -> None:
    assert v4_number(str(address)) == int(address)


@given(st.ip_addresses(v=6))
def test_an_ipv6_host_is_its_number_however_it_is_written(address: IPv6Address) -> None:
    assert v6_number(str(address)) == v6_number(address.exploded) == int(address)


@pytest.mark.parametrize("zone", ["eth0", "2", "a%b", "veth.7@x"])
def test_a_zone_is_cut_off(zone: str) -> None:
    assert v6_number(f"fe80::1%{zone}") == int(IPv6Address("fe80::1"))


@pytest.mark.parametrize("text", ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.04", "uid:7", "::"])
def test_what_is_no_ipv4_host_is_an_error(text: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        v4_number(text)


@pytest.mark.parametrize("text", ["", "1.2.3.4", "%eth0", "uid:7", "1::2::3"])
def test_what_is_no_ipv6_host_is_an_error(text: str) -> None:
    with pytest.raises(AddressValueError):
        v6_number(text)
