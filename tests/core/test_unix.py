"""Addresses of Unix sockets: what people read and write, and nothing that does not print."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.address import Transport, format_address, parse_address, same_address
from proxy.core.counters import ListenerCounters
from proxy.core.flow import Direction, Flow, State
from proxy.core.query import flow_row
from proxy.core.unix import UNNAMED, UnixAddress, listening_url, parse_unix_address, unix_address


@pytest.mark.parametrize("text", ["unix:/run/x.sock", "unix:@name", "unix:"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert format_address(parse_address(text)) == text


def test_what_the_kernel_has() -> None:
    assert parse_address("unix:@name") == UnixAddress("\0name")
    assert parse_address("unix:///run/x.sock") == UnixAddress("/run/x.sock")
    assert parse_address("unix:") == UNNAMED
    assert unix_address("/run/x") == UnixAddress("/run/x")
    with pytest.raises(ValueError, match="not the address of a Unix socket"):
        parse_unix_address("/run/x.sock")


def test_what_does_not_print_is_escaped() -> None:
    assert str(UnixAddress("/a\x1b[2Jb")) == "unix:/a\\x1b[2Jb"
    assert str(UnixAddress("\0a\0b")) == "unix:@a\\x00b"
    assert str(UnixAddress("/\udcff")) == "unix:/\\udcff"


@given(st.text(max_size=30))
def test_what_is_shown_finds_the_socket(name: str) -> None:
    address = UnixAddress(name)
    assert str(address).isprintable()
    if not name.startswith("//"):
        assert same_address(address, parse_address(str(address)))


def test_a_unix_socket_is_no_address_of_ip() -> None:
    assert not same_address(UnixAddress("10.0.0.1", 80), ("10.0.0.1", 80))
    assert not same_address(("10.0.0.1", 0), UnixAddress("10.0.0.1"))


def test_the_source_of_a_unix_client_without_credentials_is_unknown() -> None:
    counters = ListenerCounters("log", Transport.UNIXGRAM, "syslog")
    local = unix_address("/dev/log")
    args = (UNNAMED, local, Direction(), Direction(), State.UNREPLIED, 0.0)
    row = flow_row(Flow(1, counters, *args), 0.0, {})
    assert (row["source"], row["credentials"]) == ("uid:?", None)
    assert row["client"] == {"local": "unix:/dev/log", "remote": "unix:", "via": None}
    assert row["original"]["packets"] == 0


@pytest.mark.parametrize(
    ("transport", "local", "url"),
    [
        (Transport.UNIX, "unix:/run/x.sock", "unix:///run/x.sock"),
        (Transport.UNIXGRAM, "unix:@log", "unixgram://@log"),
        (Transport.TCP, "[::1]:80", "tcp://[::1]:80"),
    ],
)
def test_a_listening_address_is_written_as_in_the_file(
    transport: Transport, local: str, url: str
) -> None:
    assert listening_url(transport, local) == url
