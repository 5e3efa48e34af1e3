"""The board of ``sockpair top``: its flows are those of the stream, its rates what bytes say."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.cli.board import ORDERS, STILL, Board


def row(id: int, original: int = 0, reply: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": id,
        "listener": "web",
        "upstream": "origin",
        "transport": "tcp",
        "state": "established",
        "client": {"local": "192.0.2.1:80", "remote": f"198.51.100.1:{1000 + id}"},
        "endpoint": {"local": "10.0.0.9:4000", "remote": None},
        "opened": 100.0 + id,
        "last_active": 150.0,
        "original": {"bytes": original, "packets": None},
        "reply": {"bytes": reply, "packets": None},
        **more,
    }


def heard(*rows: dict[str, Any], now: float = 200.0) -> Board:
    board = Board()
    board.hear({"event": "snapshot", "time": now})
    for each in rows:
        board.hear({"event": "flow", "flow": each})
    board.hear({"event": "live", "time": now})
    return board


def look(board: Board, now: float, *rows: dict[str, Any], omitted: int = 0) -> None:
    board.hear({"event": "counters", "time": now, "flows": list(rows), "omitted": omitted})


def ids(board: Board, *order: Any, **more: Any) -> list[int]:
    return [line.row["id"] for line in board.lines(*order, **more)]


def test_a_rate_is_what_was_added_in_the_time_since_the_last_look() -> None:
    board = heard(row(1, 1000))
    look(board, 201.0, row(1, 3000, 500))
    (line,) = board.lines("rate")
    assert (line.original, line.reply, line.rate, line.bytes) == (2000, 500, 2500, 3500)
    assert board.totals() == (2000, 500)
    look(board, 201.5, row(1, 4000, 500))
    assert (line.original, line.reply) == (2000, 0)


def test_who_has_stood_still_is_judged_by_the_last_second() -> None:
    board = heard(row(1))
    look(board, 260.0, row(1, 5000))
    assert board.totals() == (5000, 0)


def test_who_was_omitted_is_judged_by_all_the_time_since() -> None:
    board = heard(row(1))
    look(board, 201.0, omitted=1)
    look(board, 210.0, row(1, 5000))
    assert board.totals() == (500, 0)


def test_a_flow_that_is_not_told_of_stands_still() -> None:
    board = heard(row(1))
    look(board, 201.0, row(1, 5000))
    board.pass_time(201.0 + STILL)
    assert board.totals() == (0, 0)
    assert [line.rate for line in board.lines("rate")] == [0]


def test_flows_come_and_go() -> None:
    board = heard(row(1), row(2))
    board.hear({"event": "opened", "time": 201.0, "flow": row(3)})
    board.hear({"event": "established", "time": 201.1, "flow": row(3, state="established")})
    board.hear({"event": "limited", "time": 201.2, "flow": row(2), "limit": "flow_bandwidth"})
    board.hear({"event": "closed", "time": 202.0, "flow": row(1)})
    assert ids(board, "id") == [2, 3]
    assert (board.opened, board.closed, board.limited, board.gaps) == (1, 1, 1, 0)


def test_after_a_gap_only_what_the_snapshot_has_is_left() -> None:
    board = heard(row(1), row(2))
    look(board, 201.0, row(2, 700))
    board.hear({"event": "gap", "time": 201.2, "reason": "slow"})
    board.hear({"event": "snapshot", "time": 201.3})
    board.hear({"event": "flow", "flow": row(2, 900)})
    assert ids(board, "id") == [1, 2]  # until it is complete
    board.hear({"event": "live", "time": 201.4})
    assert ids(board, "id") == [2]
    assert board.totals() == (700, 0)
    look(board, 202.0, row(2, 1100))
    assert board.totals() == (400, 0)  # nothing is counted twice, and nothing is left out
    assert board.gaps == 1


def test_an_event_brings_no_rate_with_it() -> None:
    board = heard(row(1))
    board.hear({"event": "half_closed", "time": 200.5, "flow": row(1, 800, state="client_closed")})
    look(board, 201.0, row(1, 800))
    (line,) = board.lines("id")
    assert (line.original, line.row["state"]) == (800, "client_closed")


def test_a_text_is_looked_for_in_names_states_and_addresses() -> None:
    board = heard(row(1), row(2, listener="DNS"), row(3, state="connecting"))
    assert ids(board, "id", text="dns") == [2]
    assert ids(board, "id", text="Connecting") == [3]
    assert ids(board, "id", text="198.51.100.1:1001") == [1]
    assert ids(board, "id", text="none") == []


@given(
    flows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8),
    order=st.sampled_from([*ORDERS]),
    reverse=st.booleans(),
)
def test_every_order_shows_every_flow_once(
    flows: list[tuple[int, int]], order: Any, reverse: bool
) -> None:
    board = heard(*(row(id) for id, _ in enumerate(flows)))
    look(board, 201.0, *(row(id, *counts) for id, counts in enumerate(flows)))
    lines = board.lines(order, reverse=reverse)
    assert sorted(line.row["id"] for line in lines) == [*range(len(flows))]
    keys = [ORDERS[order](line) for line in lines]
    assert keys == sorted(keys, reverse=reverse)


def test_a_snapshot_tells_whose_flows_are_missing() -> None:
    board = heard(row(1))
    assert board.silent == []
    board.hear({"event": "snapshot", "time": 201.0, "silent": [1]})
    assert board.silent == [1]
    board.hear({"event": "gap", "time": 202.0, "reason": "lost"})
    board.hear({"event": "snapshot", "time": 202.0, "silent": []})
    assert board.silent == []
