from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.address import (
    HostPort,
    format_address,
    parse_address,
    parse_host_port,
    same_address,
)

GOOD = {
    "10.0.0.1:80": HostPort("10.0.0.1", 80),
    "[::1]:53": HostPort("::1", 53),
    "db.example.com:5432": HostPort("db.example.com", 5432),
    "my_host-1:1": HostPort("my_host-1", 1),
    "localhost:65535": HostPort("localhost", 65535),
}

BAD = [
    "",
    "80",
    ":80",
    "host",
    "host:",
    "host:0",
    "host:65536",
    "host:-1",
    "host:8x",
    "host:٣",  # a digit, but not one of ours
    "::1:80",
    "[::1]",
    "[zz]:80",
    "300.0.0.1:80",
    "-.-:80",
    "a b:80",
    "a..b:80",
    "x" * 64 + ":80",
]


@pytest.mark.parametrize("text", GOOD)
def test_reads_and_writes_what_people_write(text: str) -> None:
    assert parse_host_port(text) == GOOD[text]
    assert str(GOOD[text]) == text


@pytest.mark.parametrize("text", BAD)
def test_refuses_what_is_not_an_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_host_port(text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        parsed = parse_host_port(text)
    except ValueError:
        return
    assert parse_host_port(str(parsed)) == parsed


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(1, 65535))
def test_socket_addresses_survive_the_way_to_text_and_back(host: object, port: int) -> None:
    text = str(HostPort(str(host), port))
    address = parse_address(text)
    assert address[:2] == (str(host), port)
    assert format_address(address) == text


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("[fe80::1%eth0]:53", "[fe80::1%eth0]:53", True),
        ("[fe80::1%eth0]:53", "[fe80::1]:53", True),
        ("[fe80::1%eth0]:53", "[fe80::1%eth1]:53", False),
        ("[fe80::1%eth0]:53", "[fe80::2]:53", False),
        ("[fe80::1%eth0]:53", "[fe80::1%eth0]:54", False),
    ],
)
def test_a_zone_is_compared_where_both_have_one(one: str, other: str, same: bool) -> None:
    assert same_address(parse_address(one), parse_address(other)) is same
    assert format_address(parse_address(one)) == one
