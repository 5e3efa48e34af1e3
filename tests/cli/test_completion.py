"""What TAB offers: names of the sockpair that runs, soon, and never a word of anything else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing
from click.testing import CliRunner

from proxy.cli import completion, main
from tests.cli.test_table import House
from tests.e2e.patience import PATIENCE


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with structlog.testing.capture_logs(), House(tmp_path / "admin.sock") as house:
        yield house


def offered(admin: str, line: str) -> list[str]:
    """What the last word of a line, or a new one, is completed to."""
    words = line.split(" ")
    environment = {
        "SOCKPAIR_ADMIN": admin,
        "_SOCKPAIR_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    result = CliRunner(env=environment).invoke(main, [], prog_name="sockpair")
    assert (result.exit_code, result.stderr) == (0, "")
    return [text.removeprefix("plain,") for text in result.stdout.splitlines() if text]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("sockpair flows --listener ", ["web", "dns"]),
        ("sockpair flows --listener w", ["web"]),
        ("sockpair top --listener d", ["dns"]),
        ("sockpair kill --listener ", ["web", "dns"]),
        ("sockpair events --listener x", []),
        ("sockpair limit --listener ", ["web", "dns"]),
        ("sockpair explain tcp 192.0.2.7 ", ["web", "dns"]),
        ("sockpair drain w", ["web"]),
        ("sockpair drain 10.0.0.5", ["10.0.0.53:53"]),
        ("sockpair drain --endpoint ", ["10.0.0.1:80", "10.0.0.53:53"]),
        ("sockpair drain --upstream ", ["web", "resolvers"]),
        ("sockpair disable 10.0.0.1:80 --upstream r", ["resolvers"]),
        ("sockpair enable ", ["10.0.0.1:80", "10.0.0.53:53"]),
        ("sockpair upstreams --upstream ", ["web", "resolvers"]),
    ],
)
def test_names_of_the_running_sockpair(house: House, line: str, names: list[str]) -> None:
    assert offered(house.path, line) == names


def test_limits_that_can_be_lifted(house: House) -> None:
    assert offered(house.path, "sockpair limit --lift ") == []
    assert house.run("limit", "--listener", "web", "--flows", "1").exit_code == 0
    assert offered(house.path, "sockpair limit --lift ") == ["1"]


def test_the_socket_is_the_one_that_the_line_names(house: House) -> None:
    line = f"sockpair flows --admin {house.path} --listener "
    assert offered("/nowhere/admin.sock", line) == ["web", "dns"]


@pytest.mark.parametrize("admin", ["/nowhere/admin.sock", "", "tcp://127.0.0.1:9600"])
def test_where_nobody_runs_nothing_is_offered_and_nothing_said(
    admin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "DEFAULT_ADMIN", "/nowhere/either.sock")
    for line in ("sockpair drain ", "sockpair flows --listener ", "sockpair limit --lift "):
        assert offered(admin, line) == []


def test_who_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "admin.sock")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(path)
        deaf.listen()
        began = time.monotonic()
        assert offered(path, "sockpair flows --listener ") == []
        assert completion.PATIENCE <= time.monotonic() - began < PATIENCE


def test_bash_gets_them(house: House, tmp_path: Path) -> None:
    command = tmp_path / "sockpair"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m proxy "$@"\n')
    command.chmod(0o755)
    script = """
source <(_SOCKPAIR_COMPLETE=bash_source sockpair)
COMP_WORDS=(sockpair drain ""); COMP_CWORD=2
"$(complete -p sockpair | sed 's/.*-F \\([^ ]*\\) .*/\\1/')" sockpair "" drain
printf '%s\\n' "${COMPREPLY[@]}"
"""
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": path, "SOCKPAIR_ADMIN": house.path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.splitlines() == ["web", "dns", "10.0.0.1:80", "10.0.0.53:53"]
