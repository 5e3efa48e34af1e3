"""The parts of the demo that a visitor reads and types; that it runs is shown elsewhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.cli import demo
from proxy.cli.demo_peers import CLIENTS, dns_answer

HEADER = b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0"
NAME = b"\7example\3com\0"
NO_DATA = b"\x12\x34\x85\x80\0\1\0\0\0\0\0\0"


def test_dns_answers_for_addresses() -> None:
    answer = dns_answer(HEADER + NAME + b"\0\1\0\1")
    assert answer[:12] == b"\x12\x34\x85\x80\0\1\0\1\0\0\0\0"
    assert answer.endswith(bytes([192, 0, 2, 1]))


@pytest.mark.parametrize("kind", [b"\0\x1c\0\1", b"\0\x10\0\1", b"\0\x0f\0\1", b"\0\1\0\3"])
def test_dns_has_no_data_of_other_types_and_classes(kind: bytes) -> None:
    assert dns_answer(HEADER + NAME + kind) == NO_DATA + NAME + kind


@pytest.mark.parametrize("query", [b"", b"hello", HEADER, HEADER + NAME + b"\0"])
def test_dns_gives_back_what_is_no_query(query: bytes) -> None:
    assert dns_answer(query) == query


def test_every_listener_has_a_client() -> None:
    assert {*CLIENTS} == {"echo", "echo-udp", "dns"}


def hints(width: int | None) -> list[str]:
    addresses: Any = dict.fromkeys(CLIENTS, ("127.0.0.1", 40000))
    sockets = [
        SimpleNamespace(getsockname=lambda: "/tmp/sockpair-abcdefgh/admin.sock"),
        SimpleNamespace(getsockname=lambda: ("127.0.0.1", 41000)),
    ]
    house: Any = SimpleNamespace(admin=sockets)
    return demo._hints(addresses, house, width)


def test_hints_stand_beside_the_commands_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/sockpair")
    for width in (None, 120):
        assert sum("the socket-pair table" in line for line in hints(width)) == 1
        assert not any(line.startswith("  #") for line in hints(width))


def test_hints_stand_above_the_commands_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/sockpair")
    lines = hints(80)
    assert "  # the socket-pair table" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("on_path", "started", "command"),
    [
        ("/usr/bin/sockpair", "/usr/bin/sockpair", "sockpair"),
        (None, "/opt/a b/bin/sockpair", "'/opt/a b/bin/sockpair'"),
        (None, "/opt/proxy/__main__.py", f"{sys.executable} -m proxy"),
    ],
)
def test_the_command_is_one_that_can_be_typed(
    monkeypatch: pytest.MonkeyPatch, on_path: str | None, started: str, command: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: on_path)
    monkeypatch.setattr("sys.argv", [started])
    assert demo._own_command() == command
