"""The keys of ``sockpair top``: what they choose, and that nothing is done without a yes."""

from __future__ import annotations

import pytest
from click import unstyle

from proxy.cli.board import Board
from proxy.cli.screen import Screen, Wanted
from proxy.cli.top import parse_keys
from tests.cli.test_board import heard, look, row

WIDE, HIGH = 160, 12


def screen(board: Board | None = None) -> Screen:
    whole = heard(*(row(id) for id in range(1, 31))) if board is None else board
    made = Screen(whole, order="id")
    made.lines(WIDE, HIGH)
    return made


def shown(view: Screen, width: int = WIDE, height: int = HIGH) -> list[str]:
    return [unstyle(line) for line in view.lines(width, height)]


def press(view: Screen, *keys: str) -> list[Wanted]:
    return [wanted for key in keys if (wanted := view.press(key)) is not None]


@pytest.mark.parametrize(("width", "height"), [(200, 40), (160, 12), (80, 24), (40, 8), (20, 3)])
def test_it_fills_the_terminal_and_no_more(width: int, height: int) -> None:
    view = screen()
    press(view, *["down"] * 25)
    lines = shown(view, width, height)
    assert len(lines) == height
    assert lines[0].startswith("30 flows")
    if height > 8:
        assert any(line.lstrip().startswith("> 26") or line.startswith(">") for line in lines)


def test_arrows_choose_and_what_is_chosen_stays_in_sight() -> None:
    view = screen()
    assert view.chosen == 1
    press(view, "down", "down")
    assert view.chosen == 3
    press(view, "page down")
    assert view.chosen == 23
    assert any(line.startswith(">  23") for line in shown(view))
    press(view, "page down", "down")
    assert view.chosen == 30
    press(view, "page up", "page up", "up")
    assert view.chosen == 1


def test_who_was_chosen_stays_so_when_the_order_changes() -> None:
    view = screen()
    press(view, "down")
    look(view.board, 201.0, row(9, 500))
    press(view, "1")
    lines = shown(view)
    assert lines[2].split()[0] == "9"
    assert view.chosen == 2


def test_s_goes_through_the_orders_and_r_turns_them_round() -> None:
    view = screen()
    orders = []
    for _ in range(6):
        press(view, "s")
        orders.append(view.order)
    assert orders == ["rate", "original", "reply", "bytes", "age", "id"]
    press(view, "r")
    shown(view)
    press(view, "page up", "page up")
    assert shown(view)[2].split()[1] == "30"
    assert "by id reversed" in shown(view)[0]


def test_a_filter_is_typed_shown_and_cleared() -> None:
    view = screen()
    press(view, "/", *"q:1007x", "\x7f")
    assert not view.done
    assert "filter: q:1007_" in shown(view)[-2]
    press(view, *["\x7f"] * 6, *":1007", "\r")
    lines = shown(view)
    assert 'filter ":1007": 1' in lines[0]
    assert view.chosen == 7
    press(view, "/", "x", "escape")
    assert view.text == ":1007"
    press(view, "c")
    assert view.text == ""


def test_a_pause_holds_what_is_shown() -> None:
    view = screen()
    press(view, "p")
    before = shown(view)[2:-2]
    look(view.board, 201.0, row(1, 5000))
    view.board.hear({"event": "closed", "time": 201.0, "flow": row(2)})
    after = shown(view)
    assert [line.split()[:8] for line in after[2:-2]] == [line.split()[:8] for line in before]
    assert "paused" in after[0]
    press(view, "p")
    assert "5000" in shown(view)[2] or "4.9KiB" in shown(view)[2]


def test_a_kill_needs_a_yes() -> None:
    view = screen()
    assert press(view, "k") == []
    assert "kill flow 1 (198.51.100.1:1001 -> -)? y/n" in shown(view)[-2]
    assert press(view, "n") == []
    assert view.said == "nothing was done"
    assert press(view, "k", "\r") == []
    assert press(view, "k", "q") == []
    assert not view.done
    assert press(view, "y") == []
    assert press(view, "k", "y") == [Wanted("kill", 1)]
    assert press(view, "y") == []


def test_a_limit_is_asked_for_read_and_confirmed() -> None:
    view = screen()
    press(view, "down", "l", *"much", "\r")
    assert "much" in shown(view)[-2]
    assert press(view, *["\x7f"] * 4, *"1MiB/s", "\r") == []
    assert "limit flow 2 (198.51.100.1:1002 -> -) to 1MiB/s each direction? y/n" in "".join(
        shown(view)
    )
    assert press(view, "y") == [Wanted("limit", 2, "1MiB/s")]
    assert press(view, "l", *"1MiB/s", "escape", "y") == []


def test_who_has_gone_is_not_killed() -> None:
    view = screen()
    view.board.hear({"event": "closed", "time": 201.0, "flow": row(1)})
    assert press(view, "k") == []
    assert "not there any more" in view.said
    assert press(view, "y") == []


def test_without_flows_there_is_nothing_to_choose() -> None:
    view = screen(Board())
    assert press(view, "down", "k", "y", "l", "y") == []
    assert shown(view)[0].startswith("0 flows")


def test_nothing_from_outside_reaches_the_terminal_as_it_is() -> None:
    view = screen(heard(row(1, listener="a\x1b[2J\nb")))
    press(view, "/", *"\x1b[2J", "\r")
    assert all("\n" not in line and "\x1b[2J" not in line for line in view.lines(WIDE, HIGH))


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_it_ends(key: str) -> None:
    view = screen()
    press(view, key)
    assert view.done


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[Bk", ["up", "down", "k"]),
        (b"\x1b", ["escape"]),
        (b"\x1b[5~\x1bOB", ["page up", "down"]),
        (b"1MiB/s\r", [*"1MiB/s", "\r"]),
        (b"\n\x08", ["\r", "\x7f"]),
        ("é".encode(), ["é"]),
        (b"\xff", ["�"]),
    ],
)
def test_bytes_of_a_terminal_are_keys(data: bytes, keys: list[str]) -> None:
    assert list(parse_keys(data)) == keys


def test_whose_flows_are_missing_is_said() -> None:
    board = heard(row(1))
    assert "answer" not in shown(screen(board))[0]
    board.silent = [1]
    assert "worker 1 does not answer" in shown(screen(board))[0]
