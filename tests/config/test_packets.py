"""Sources, marks and original destinations: how they are written, and where they make no sense."""

from __future__ import annotations

import re

import pytest

from proxy.config.load import ConfigError, parse
from proxy.config.packets import (
    SOURCES_MAX,
    parse_dscp,
    parse_interface,
    parse_ports,
    parse_sources,
    parse_upstream_dscp,
)
from proxy.config.values import ORIGINAL


def problems(
    listener: str = "", upstream: str = "", listen: str = "tcp://0.0.0.0:80", endpoints: str = ""
) -> list[str]:
    text = (
        f'[listener.a]\nlisten = "{listen}"\nupstream = "b"\n{listener}\n'
        f"[upstream.b]\nendpoints = [{endpoints or QUOTED}]\n{upstream}\n"
    )
    try:
        parse(text, "f")
    except ConfigError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


QUOTED = '"10.0.0.1:80"'


@pytest.mark.parametrize(
    ("written", "hosts"),
    [
        ("192.0.2.7", ("192.0.2.7",)),
        (["192.0.2.7", "192.0.2.8-192.0.2.10"], tuple(f"192.0.2.{n}" for n in range(7, 11))),
        ("2001:DB8::f - 2001:db8::10", ("2001:db8::f", "2001:db8::10")),
        (["10.0.0.1", "fd00::1"], ("10.0.0.1", "fd00::1")),
        ("10.0.0.255-10.0.1.0", ("10.0.0.255", "10.0.1.0")),
    ],
)
def test_sources(written: object, hosts: tuple[str, ...]) -> None:
    assert parse_sources(written) == hosts


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (5, "expected text such as"),
        ([], "is empty"),
        ([5], "found 5"),
        ("web", '"web" is not "192.0.2.7" or'),
        ("192.0.2.0/24", "is not"),
        ("10.0.0.2-10.0.0.1", "ends before it begins"),
        ("10.0.0.1-fd00::1", "from IPv4 to IPv6"),
        ("10.0.0.0-10.1.0.0", f"has 65537 addresses: expected at most {SOURCES_MAX}"),
        (["10.0.0.1", "10.0.0.0-10.0.0.3"], "10.0.0.1 is already in the list"),
        ([f"10.{n}.0.0-10.{n}.7.255" for n in range(3)], "has 6144 addresses"),
        ("0.0.0.0", "is not the address of one host"),
        ("224.0.0.1", "is not the address of one host"),
        ("fe80::1%eth0", "zones and mapped IPv4 are not supported"),
        ("::ffff:1.2.3.4", "zones and mapped IPv4 are not supported"),
        ("fd00::-fd01::", "addresses: expected at most"),
    ],
)
def test_no_sources(written: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_sources(written)


def test_ports() -> None:
    assert parse_ports("10000-19999") == range(10000, 20000)
    assert list(parse_ports("5000")) == [5000]
    for wrong in (5000, "", "0", "1-65536", "9-8", "a-b", "-1", "1-", "1-2-3", "٣", "100000"):
        with pytest.raises(ValueError, match="expected"):
            parse_ports(wrong)


def test_dscp() -> None:
    names = ("ef", "EF", "af11", "af43", "cs0", "cs7", "be", "le", "va")
    assert [parse_dscp(name) for name in names] == [46, 46, 10, 38, 0, 56, 0, 1, 44]
    assert parse_dscp(63) == 63
    for wrong in (64, -1, True, 1.0, "af14", "46", None):
        with pytest.raises(ValueError, match="expected 0 to 63, or a name"):
            parse_dscp(wrong)


def test_dscp_of_an_upstream() -> None:
    assert [parse_upstream_dscp(one) for one in ("copy", "ef", 7)] == ["copy", 46, 7]
    for wrong in (64, "Copy", True, None):
        with pytest.raises(ValueError, match='expected 0 to 63, "copy", or a name'):
            parse_upstream_dscp(wrong)


def test_interfaces() -> None:
    assert parse_interface("eth0.100") == "eth0.100"
    for wrong in ("", "a" * 16, "a b", "a/b", "..", "a:1", 5, "a\n", "a%b"):
        with pytest.raises(ValueError, match="expected the name of an interface"):
            parse_interface(wrong)


def test_the_original_destination_is_an_endpoint() -> None:
    text = '[listener.a]\nlisten="tcp://[::]:1"\nupstream="b"\n[upstream.b]\nendpoints=["original"]'
    (endpoint,) = parse(text, "f").upstream["b"].endpoints
    assert endpoint.address is ORIGINAL
    assert str(endpoint) == "original"


ORIGINAL_QUOTED = '"original"'


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"listener": "mark = -1"}, "listener.a.mark: expected at least 0, found -1"),
        ({"upstream": "mark = 4294967296"}, "upstream.b.mark: expected at most 4294967295"),
        ({"listener": "priority = 16"}, "listener.a.priority: expected at most 15, found 16"),
        ({"upstream": "priority = -1"}, "upstream.b.priority: expected at least 0, found -1"),
        ({"listener": 'dscp = "copy"'}, "listener.a.dscp: expected 0 to 63, or a name"),
        (
            {"upstream": 'dscp = "copy"', "listen": "unix:///run/a.sock"},
            "listener.a.upstream: copies the DSCP of clients, which those of a Unix socket lack",
        ),
        (
            {"upstream": 'dscp = "copy"', "listener": "tcp.mptcp = true"},
            "listener.a.tcp.mptcp: hides the DSCP of clients, which its upstream copies",
        ),
        (
            {"listener": "priority = 3", "listen": "unix:///run/a.sock"},
            "listener.a.priority: has no effect on a Unix socket; remove it",
        ),
        (
            {"endpoints": '"unix:///run/b.sock"', "upstream": 'dscp = "copy"'},
            "upstream.b.dscp: has no effect on Unix sockets; remove it",
        ),
        ({"listener": "transparent = 1"}, "listener.a.transparent: expected true or false"),
        (
            {"endpoints": '"10.0.0.1:1", "original"'},
            'upstream.b.endpoints[1]: "original" is where the client meant to go, and stands alone',
        ),
        (
            {"endpoints": ORIGINAL_QUOTED, "listen": "udp://0.0.0.0:53"},
            "listener.a.upstream: goes to original destinations, which UDP tells transparent",
        ),
        (
            {"upstream": 'source = "fd00::1"'},
            'upstream.b.source: has no IPv4 address to reach "10.0.0.1:80" from',
        ),
        (
            {"listener": "transparent = true", "endpoints": '"[fd00::1]:80"'},
            'listener.a.transparent: "[fd00::1]:80" of its upstream cannot be reached from the '
            "address of a client of IPv4",
        ),
        (
            {"listener": "transparent = true\nbroadcast = true", "listen": "udp://0.0.0.0:80"},
            "listener.a.broadcast: has no effect on a transparent listener; remove it",
        ),
        (
            {"listener": "transparent = true", "listen": "unix:///run/a.sock"},
            "listener.a.transparent: has no effect on a Unix socket; remove it",
        ),
        (
            {"endpoints": ORIGINAL_QUOTED, "listen": "unix:///run/a.sock"},
            "listener.a.upstream: goes to original destinations, which a Unix socket has not",
        ),
        (
            {"endpoints": '"unix:///run/b.sock"', "upstream": 'source = "10.0.0.1"'},
            "upstream.b.source: has no effect on Unix sockets; remove it",
        ),
    ],
)
def test_what_makes_no_sense_is_a_problem(keys: dict[str, str], problem: str) -> None:
    (found,) = problems(**keys)
    assert found.startswith(problem)


def test_what_makes_sense_is_none() -> None:
    everything = 'transparent = true\nmark = 7\ndscp = 46\npriority = 15\ninterface = "eth0"'
    assert problems("tcp.mptcp = false", 'dscp = "copy"\npriority = 0') == []
    assert problems(everything) == []
    assert problems(everything, endpoints=ORIGINAL_QUOTED, listen="udp://0.0.0.0:53") == []
    assert problems(everything, 'source = ["10.0.0.9", "fd00::1"]', endpoints='"[::2]:1"') == []
    assert problems("transparent = true", endpoints='"web:80"') == []
    assert problems(endpoints=ORIGINAL_QUOTED) == []
