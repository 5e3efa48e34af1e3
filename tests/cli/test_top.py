"""``sockpair top`` in a real terminal, and without one, against a real admin socket."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import pytest
import structlog.testing

from proxy.core.events import EventKind
from tests.cli.test_table import House
from tests.e2e.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SESSION = ("setsid", "--ctty")
"""Has the program's standard input be the terminal that its keys come from: Control-C is one."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with structlog.testing.capture_logs(), House(tmp_path / "admin.sock") as house:
        yield house


class Terminal:
    """A terminal in which ``sockpair top`` runs."""

    def __init__(self, house: House, *words: str, rows: int = 24, columns: int = 160) -> None:
        self._near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._seen = ""
        self._process = subprocess.Popen(
            [*SESSION, sys.executable, "-m", "proxy", "top", "--admin", house.path, *words],
            stdin=far,
            stdout=far,
            stderr=far,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": ""},
        )
        self.before = termios.tcgetattr(far)
        self._far = far

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._near)
        os.close(self._far)

    def wait(self, pattern: str) -> str:
        """Wait until something is drawn that has not been seen yet; return what was, plain."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self._seen)):
            ready, _, _ = select.select([self._near], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} does not come; seen: {self._seen[-3000:]!r}"
            data = os.read(self._near, 65536).decode("utf-8", "replace")
            self._seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data)
        self._seen = self._seen[found.end() :]
        return found.group()

    def press(self, keys: str) -> None:
        os.write(self._near, keys.encode())

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Its exit code; what it still says is thrown away."""
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self._near], [], [], 0.05)[0]:
                os.read(self._near, 65536)
        return self._process.returncode

    @property
    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._far) == self.before


def test_rates_are_live_and_a_flow_is_killed_and_limited(house: House) -> None:
    relay = house.relay
    with Terminal(house) as terminal:
        terminal.wait("2 flows")
        terminal.wait("192.0.2.7:51000")

        def move() -> None:
            relay.live[0].original.bytes += 3000
            relay.moved = [relay.live[0]]

        house.soon(move)
        terminal.wait(r"1\.[0-9]KiB/s|2\.[0-9]KiB/s")
        terminal.press("/dns\r")
        terminal.wait('filter "dns": 1')
        terminal.press("l2MiB/s\r")
        terminal.wait(r"limit flow 2 \(\[2001:db8::7\]:5353 -> -\) to 2MiB/s each direction\? y/n")
        terminal.press("y")
        terminal.wait('flow 2 is limited; "sockpair limit --lift 1" takes it back')
        terminal.press("ck")
        terminal.wait(r"kill flow 2")
        terminal.press("n")
        terminal.wait("nothing was done")
        assert len(relay.live) == 2
        terminal.press("k")
        terminal.wait(r"kill flow 2 \(")
        terminal.press("y")
        terminal.wait("killed flow 2")
        (order,) = house.steward.books.orders
        assert (order.query.id, order.values.flow_bandwidth) == (2, 2 << 20)
        ended = relay.closed[-1]
        house.soon(lambda: relay.happens(EventKind.CLOSED, ended))
        terminal.wait("1 flow ")
        terminal.press("q")
        assert terminal.end() == 0
        assert terminal.is_as_before


def test_control_c_ends_it_and_leaves_the_terminal_as_it_was(house: House) -> None:
    with Terminal(house) as terminal:
        terminal.wait("2 flows")
        terminal.press("\x03")
        assert terminal.end() == 0
        assert terminal.is_as_before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(
    house: House, number: signal.Signals
) -> None:
    with Terminal(house) as terminal:
        terminal.wait("2 flows")
        terminal.signal(number)
        assert terminal.end() == 128 + number
        assert terminal.is_as_before


def test_the_end_of_sockpair_is_told(tmp_path: Path) -> None:
    with structlog.testing.capture_logs():
        with House(tmp_path / "admin.sock") as house:
            terminal = Terminal(house)
            terminal.wait("2 flows")
        with terminal:
            terminal.wait("sockpair has ended|admin.sock")
            assert terminal.end() == 1
            assert terminal.is_as_before


def test_without_a_terminal_the_table_is_printed_once(house: House) -> None:
    result = house.run("top", "--listener", "web", "--sort", "bytes")
    assert (result.exit_code, result.stderr) == (0, "")
    head, line = result.stdout.splitlines()
    assert head.split()[:4] == ["ID", "LISTENER", "PROTO", "STATE"]
    assert "192.0.2.7:51000" in line
    assert line.split().count("0B/s") == 2
    assert "\x1b" not in result.stdout


def test_wrong_questions_are_usage(house: House) -> None:
    assert house.run("top", "--listener", "nobody").exit_code == 2
