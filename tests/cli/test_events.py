"""``sockpair events`` as a person or a program reads it, against a real admin socket."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from threading import Timer
from typing import TYPE_CHECKING, Final

import pytest
import structlog.testing

from proxy.cli.events import event_line
from proxy.core.events import EventKind
from proxy.core.flow import CloseReason
from proxy.core.query import flow_row
from tests.cli.test_table import House
from tests.observe.fake_relay import WALL, FakeRelay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


PATIENCE: Final = 30
"""Seconds."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with structlog.testing.capture_logs(), House(tmp_path / "admin.sock") as house:
        yield house


class Following:
    """The command, running."""

    def __init__(self, house: House, *words: str) -> None:
        self._house = house
        self._process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "events", "--admin", house.path, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lines(self, count: int) -> list[str]:
        assert self._process.stdout is not None
        guard = Timer(PATIENCE, self._process.kill)  # which ends all lines
        guard.start()
        try:
            return [self._process.stdout.readline() for _ in range(count)]
        finally:
            guard.cancel()

    def interrupt(self) -> tuple[int, str]:
        self._process.send_signal(signal.SIGINT)
        _, errors = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, errors


def test_people_get_a_line_an_event(house: House) -> None:
    following = Following(house, "--snapshot", "--listener", "web")
    (snapshot,) = following.lines(1)
    pairs = "192.0.2.7:51000 -> 192.0.2.1:8080 | 10.0.0.9:40001 -> 10.0.0.1:80"
    assert f"1 tcp web {pairs} 1.3KiB > 34.3MiB < established" in snapshot
    relay = house.relay
    flow = relay.live[0]
    house.soon(lambda: relay.happens(EventKind.LIMITED, flow, "flow_bandwidth"))
    house.soon(lambda: relay.end(flow, CloseReason.ENDPOINT_RESET))
    house.soon(lambda: relay.happens(EventKind.CLOSED, flow))
    limited, closed = following.lines(2)
    assert f"limited     1 tcp web {pairs} flow_bandwidth\n" in limited
    assert f"closed      1 tcp web {pairs} 1.3KiB > 34.3MiB < 2s endpoint_reset client\n" in closed
    # Nothing tells of this one, so the snapshot has to come after it.
    house.soon(lambda: relay.open_tcp(("192.0.2.99", 1)))
    house.soon(relay.happened.lose)
    (snapshot,) = following.lines(1)
    assert "192.0.2.99:1 -> " in snapshot
    assert following.interrupt() == (
        0,
        "some events are missing: there was more than could be told, or a worker died\n",
    )


def test_programs_get_every_message(house: House) -> None:
    following = Following(house, "-o", "ndjson", "--snapshot", "--transport", "udp")
    messages = [json.loads(line) for line in following.lines(3)]
    assert [each["event"] for each in messages] == ["snapshot", "flow", "live"]
    assert messages[1]["flow"] == json.loads(json.dumps(flow_row(house.relay.live[1], WALL, {})))
    assert following.interrupt() == (0, "")


def test_the_end_of_sockpair_is_a_failure(tmp_path: Path) -> None:
    with structlog.testing.capture_logs():
        with House(tmp_path / "admin.sock") as house:
            following = Following(house, "--snapshot")
            following.lines(1)
        _, errors = following._process.communicate(timeout=30)
    assert following._process.returncode == 1
    assert "admin.sock" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listener", "nobody"], "no listener"),
        (["--event", "shut"], "shut"),
        (["--counters"], "-o ndjson"),
        (["--min-bytes", "1K"], "'--min-bytes'"),
    ],
)
def test_wrong_questions_are_usage(house: House, words: list[str], said: str) -> None:
    result = house.run("events", *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_nothing_from_outside_reaches_the_terminal_as_it_is() -> None:
    flow = FakeRelay().open_tcp()
    flow.counters.listener = "a\x1b[2J\nb"
    message = {"event": "opened", "time": WALL, "flow": flow_row(flow, WALL, {})}
    assert event_line(message).isprintable()
