"""sockpair explain, and /api/v1/explain, against a real admin socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing

from proxy.core.address import Transport
from proxy.core.explanation import FlowQuestion
from tests.cli.test_table import House

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from proxy.core.explanation import CandidateRow, Explanation, LimitRow


def limit(name: str, **parts: Any) -> LimitRow:
    row: LimitRow = {
        "limit": name,
        "level": 3,
        "ceiling": 10,
        "per_second": None,
        "reached": False,
        "refuses": False,
        "order": None,
    }
    return {**row, **parts}  # type: ignore[typeddict-item]


def candidate(name: str, *, next: bool, why: str) -> CandidateRow:
    return {
        "endpoint": name,
        "address": "10.0.0.1:80",
        "condition": "up",
        "since": None,
        "reason": "",
        "weight": 2,
        "share": 100,
        "backup": not next,
        "flows": 3,
        "ceiling": 5,
        "ejections": 0,
        "seconds_left": None,
        "usable": next,
        "next": next,
        "why": why,
    }


def explanation(**parts: Any) -> Explanation:
    whole: Explanation = {
        "transport": "tcp",
        "client": "192.0.2.7",
        "listener": "web",
        "worker": 1,
        "outcome": "admit",
        "reason": None,
        "rule": {"admitted": True, "entry": "192.0.2.0/24", "proxy": "none"},
        "limits": [
            limit("table_full", reached=True),
            limit("listener_rate", level=0.5, per_second=2.0),
            limit("ordered_flows", order=7),
            limit("source_flows", reached=True),
            limit("source_rate", reached=True, refuses=True),
        ],
        "waiting": {"flows": 1, "ceiling": 9, "seconds": 2.5},
        "route": {"upstream": "web", "pattern": "*.example.org", "routes": 2},
        "endpoint": {
            "balance": "round_robin",
            "original": False,
            "queue": {"flows": 0, "ceiling": 4, "seconds": 3.0},
            "candidates": [
                candidate("10.0.0.1:80", next=True, why="its turn is next"),
                candidate("web.example:80", next=False, why="a backup: asked if all others fail"),
            ],
        },
        "evicted": 42,
    }
    return {**whole, **parts}  # type: ignore[typeddict-item]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with structlog.testing.capture_logs(), House(tmp_path / "admin.sock") as house:
        house.relay.explanation = explanation()
        yield house


def test_everything_is_told(house: House) -> None:
    result = house.run("explain", "tcp", "192.0.2.7", "web")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "tcp 192.0.2.7 to web: admitted, to 10.0.0.1:80; flow 42 is evicted for it",
        "worker 1",
        "rule admitted, by 192.0.2.0/24",
        'route upstream web, by "*.example.org"',
        "",
        "LIMIT LEVEL STANDS",
        "table_full 3/10 another flow is evicted",
        "listener_rate 0.5/10 at 2/s ok",
        "ordered_flows, limit 7 3/10 ok",
        "source_flows 3/10 dry run",
        "source_rate 3/10 refuses",
        "who is over a limit of the listener waits: 1 of 9, 2.5s at most",
        "",
        "ENDPOINT CONDITION WEIGHT FLOWS WHY",
        "* 10.0.0.1:80 up 2 3/5 its turn is next",
        "web.example:80 (10.0.0.1:80) up 2 backup 3/5 a backup: asked if all others fail",
        "chosen by round_robin; * the next",
        "who finds all of them full waits: 0 of 4, 3s at most",
    ]
    assert house.relay.questions == [FlowQuestion(Transport.TCP, ("192.0.2.7", 0), "web")]


@pytest.mark.parametrize(
    ("outcome", "reason", "words"),
    [
        ("refuse", "source_rate", "web: refused, source_rate"),
        ("wait", "source_rate", "web: waits, source_rate"),
        ("no_endpoint", "no_endpoint", "web: admitted, and ends as no_endpoint"),
    ],
)
def test_the_verdict_stands_first(house: House, outcome: str, reason: str, words: str) -> None:
    house.relay.explanation = explanation(outcome=outcome, reason=reason)
    first = house.run("explain", "tcp", "192.0.2.7", "web").stdout.splitlines()[0]
    assert first.endswith(words)


def test_original_destinations_and_who_is_no_proxy(house: House) -> None:
    house.relay.explanation = explanation(
        rule={"admitted": False, "entry": None, "proxy": "refused"},
        route={"upstream": "web", "pattern": None, "routes": 0},
        endpoint={"balance": "first", "original": True, "queue": None, "candidates": []},
        evicted=None,
    )
    text = house.run("explain", "tcp", "192.0.2.7", "web").stdout
    assert "admitted, to where the client means to go\n" in text
    assert "refused, no entry holds the client; who comes is no trusted proxy, and nob" in text
    assert "the listener has no routes" in text


def test_what_is_asked(house: House) -> None:
    arguments = ["--via", "::ffff:10.0.0.2", "--server-name", "WWW.example.org.", "--alpn", "h2,x"]
    result = house.run("explain", "tcp", "[2001:db8::7]:80", "web", *arguments, "-o", "json")
    assert json.loads(result.stdout) == house.relay.explanation
    assert house.relay.questions == [
        FlowQuestion(
            Transport.TCP,
            ("2001:db8::7", 80, 0, 0),
            "web",
            "10.0.0.2",
            "www.example.org",
            ("h2", "x"),
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tcp", "192.0.2.7", "dns"], 1, 'no listener "tcp dns"; there are: tcp web, udp dns'),
        (
            ["tcp", "web", "192.0.2.7"],
            2,
            '\'ADDR[:PORT]\': "web" is not allowed; write "192.0.2.7"',
        ),
        (["unix", "192.0.2.7", "web"], 2, "'unix' is not one of"),
        (["tcp", "192.0.2.7", "web", "--via", "proxy"], 2, "'--via'"),
        (["tcp", "192.0.2.7", "web", "--alpn", ","], 2, "'--alpn'"),
        (["tcp", "192.0.2.7", "web", "--server-name", ""], 2, "'--server-name'"),
    ],
)
def test_what_cannot_be_explained(
    house: House, arguments: list[str], code: int, words: str
) -> None:
    result = house.run("explain", *arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert house.relay.questions == []


def test_a_worker_that_is_away(house: House) -> None:
    house.relay.explanation = None
    result = house.run("explain", "udp", "192.0.2.7", "dns")
    assert result.exit_code == 1
    assert 'nobody serves this client at listener "dns" now' in result.stderr
