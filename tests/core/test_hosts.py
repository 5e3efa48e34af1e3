"""The file of host names, as people and programs write it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.hosts import LOOPBACK, hosts_of, parse_hosts

FILE = """\
# the usual
127.0.0.1\tlocalhost
::1     localhost ip6-localhost ip6-loopback
ff02::1 ip6-allnodes

10.0.0.7  DB.example.org db   # the database
10.0.0.8  db
10.0.0.8  db
fe80::1%eth0 router
not-an-address broken
10.0.0.9
"""


def test_names_have_the_addresses_of_all_their_lines() -> None:
    file = parse_hosts(FILE)
    assert hosts_of("db", file) == ("10.0.0.7", "10.0.0.8")
    assert hosts_of("localhost", file) == ("127.0.0.1", "::1")


def test_case_and_the_last_dot_do_not_matter() -> None:
    file = parse_hosts(FILE)
    assert hosts_of("Db.Example.Org.", file) == hosts_of("db.example.org", file) == ("10.0.0.7",)


def test_what_is_no_address_is_passed_over() -> None:
    file = parse_hosts(FILE)
    assert hosts_of("broken", file) == hosts_of("router", file) == hosts_of("the", file) == ()


def test_localhost_is_this_host_whatever_the_file_says_not() -> None:
    assert hosts_of("localhost", {}) == hosts_of("db.localhost", {}) == LOOPBACK
    assert hosts_of("notlocalhost", {}) == ()
    assert hosts_of("localhost", {"localhost": ("127.0.0.9",)}) == ("127.0.0.9",)


@given(st.text())
def test_anything_can_be_read(text: str) -> None:
    parse_hosts(text)
