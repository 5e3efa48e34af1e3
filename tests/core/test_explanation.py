"""The verdict: what follows from rule, limits, waiting and endpoint, in the engine's order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.core.explanation import limit_row, verdict

if TYPE_CHECKING:
    from proxy.core.explanation import CandidateRow, ChoiceRow, LimitRow, QueueRow, RuleRow

ROOM: QueueRow = {"flows": 0, "ceiling": 1, "seconds": 1.0}
FULL_ROOM: QueueRow = {"flows": 1, "ceiling": 1, "seconds": 1.0}
QUEUED: QueueRow = {"flows": 1, "ceiling": 2, "seconds": 1.0}


def rule(*, admitted: bool = True) -> RuleRow:
    return {"admitted": admitted, "entry": None, "proxy": "none"}


def reached(*limits: str) -> list[LimitRow]:
    return [limit_row(limit, 1, 1, reached=True) for limit in limits]


def candidate(*, next: bool, why: str) -> CandidateRow:
    return {
        "endpoint": "e0",
        "address": "192.0.2.1:80",
        "condition": "up",
        "since": None,
        "reason": "",
        "weight": 1,
        "share": 100,
        "backup": False,
        "flows": 0,
        "ceiling": None,
        "ejections": 0,
        "seconds_left": None,
        "usable": next,
        "next": next,
        "why": why,
    }


def choice(*, next: bool = True, why: str = "its turn", queue: QueueRow | None = None) -> ChoiceRow:
    rows = [candidate(next=next, why=why)]
    return {"balance": "first", "original": False, "queue": queue, "candidates": rows}


FULL = "has all the flows it may have"


@pytest.mark.parametrize(
    ("limits", "waiting", "expected"),
    [
        ([], None, ("admit", None)),
        (["table_full", "listener_flows"], None, ("refuse", "table_full")),
        (["table_full"], ROOM, ("refuse", "table_full")),
        (["ordered_flows", "source_flows"], ROOM, ("refuse", "ordered_flows")),
        (["source_flows"], ROOM, ("wait", "source_flows")),
        (["source_rate"], FULL_ROOM, ("refuse", "source_rate")),
        (["listener_rate"], None, ("refuse", "listener_rate")),
    ],
)
def test_the_first_limit_that_is_reached_decides(
    limits: list[str], waiting: QueueRow | None, expected: tuple[str, str | None]
) -> None:
    rows = [limit_row("file_descriptors", 1, 9, reached=False), *reached(*limits)]
    found = verdict(rule(), rows, waiting, choice(), draining=False, room_first=False)
    assert (found.outcome.value, found.reason) == expected


def test_the_rule_comes_before_the_limits_but_for_the_room_of_datagrams() -> None:
    barred = rule(admitted=False)
    for limit, room_first, expected in (
        ("table_full", False, "access"),
        ("table_full", True, "table_full"),
        ("listener_flows", True, "access"),
    ):
        limits = reached(limit)
        found = verdict(barred, limits, ROOM, choice(), draining=False, room_first=room_first)
        assert (found.outcome.value, found.reason) == ("refuse", expected)
    found = verdict(barred, [], None, choice(), draining=True, room_first=True)
    assert (found.outcome.value, found.reason) == ("refuse", "draining")


def test_a_limit_that_refuses_nobody_decides_nothing() -> None:
    rows = [limit_row("listener_flows", 1, 1, reached=True, refuses=False)]
    assert verdict(rule(), rows, None, choice(), draining=False, room_first=False).reason is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (choice(), "admit"),
        (choice(queue=ROOM), "admit"),
        (choice(queue=QUEUED), "wait"),  # behind those who wait
        (choice(queue=FULL_ROOM), "no_endpoint"),
        (choice(next=False, why=FULL), "no_endpoint"),
        (choice(next=False, why=FULL, queue=ROOM), "wait"),
        (choice(next=False, why="down", queue=ROOM), "no_endpoint"),
        ({**choice(next=False, why="down"), "original": True}, "admit"),
    ],
)
def test_what_the_endpoints_make_of_it(found: ChoiceRow, expected: str) -> None:
    assert verdict(rule(), [], None, found, draining=False, room_first=False).outcome == expected
