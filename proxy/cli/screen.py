"""The screen of ``sockpair top``: what keys do, and what is shown; without a terminal.

A key changes what is shown, or leads to a question. What was asked and answered is an ``Order``
for whoever holds the line to sockpair. Nothing is killed or limited without a yes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import click

from proxy.cli.board import ORDERS, Board, Line, Order
from proxy.cli.columns import Column, client_text, endpoint_text, table_lines
from proxy.core.printable import printable
from proxy.core.units import format_size, format_span, parse_bandwidth
from proxy.observe.media import does_not_answer

Deed: TypeAlias = Literal["kill", "limit"]

HELP: Final = (
    "q quit  arrows choose  s sort  r reverse  / filter  p pause  k kill  l limit  c clear filter"
)
SORTED: Final[dict[str, Order]] = {
    "1": "rate",
    "2": "original",
    "3": "reply",
    "4": "bytes",
    "5": "age",
    "6": "id",
}
TYPED_MAX: Final = 100
"""Characters of an answer; an address has fewer."""

FRAME: Final = 4
"""Lines that are no flows: the head, the heads of the columns, the status and the keys."""


class Wanted(NamedTuple):
    """What is to be done to a flow.

    Attributes:
        deed: what.
        id: to which flow.
        bandwidth: bytes a second, as it was written; empty for a kill.

    """

    deed: Deed
    id: int
    bandwidth: str = ""


@dataclass(slots=True)
class Screen:
    """What is shown of a board.

    Attributes:
        board: the flows.
        order: what comes first.
        reverse: or last.
        text: what must occur in a flow.
        paused: whether what is shown stays as it is.
        chosen: the id of the flow that keys are for.
        said: the last thing that happened, for the status line.
        done: whether it is time to end.

    """

    board: Board
    order: Order = "rate"
    reverse: bool = False
    text: str = ""
    paused: bool = False
    chosen: int | None = None
    said: str = ""
    done: bool = False
    _asking: Literal["filter", "limit", "sure"] | None = None
    _typed: str = ""
    _wanted: Wanted | None = None
    _shown: list[Line] = field(default_factory=list)

    def press(self, key: str) -> Wanted | None:
        """Do what a key says; what is to be done to a flow is returned once it was confirmed."""
        self.said = ""
        match self._asking:
            case "sure":
                return self._confirm(key)
            case "filter" | "limit":
                self._type(key)
            case None:
                self._command(key)
        return None

    def lines(self, width: int, height: int) -> list[str]:
        """What is shown, so many lines at most."""
        if not self.paused or not self._shown:
            self._shown = self.board.lines(self.order, reverse=self.reverse, text=self.text)
        body = [self._head(), *self._table(width, max(1, height - FRAME))]
        room = max(0, height - 2)
        blank = [""] * (room - len(body))
        return [*body[:room], *blank, self._status(), click.style(HELP[:width], dim=True)]

    def _table(self, width: int, height: int) -> list[str]:
        """The flows around the chosen one; where it is narrow each takes two lines."""
        columns, visible = self._columns(), self._visible(height)
        table = table_lines(columns, visible, width=width)
        each = len(table) // (len(visible) + 1)  # the heads are a row, too
        if each > 1:
            table = table_lines(columns, self._visible(max(1, height // each)), width=width)
        return table

    def _visible(self, count: int) -> Sequence[Line]:
        """The flows around the one that is chosen."""
        place = self._place()
        first = max(0, min(place - count // 2, len(self._shown) - count))
        return self._shown[first : first + count]

    def _place(self) -> int:
        """Where the chosen flow stands; if it has gone, the first one is chosen."""
        for place, line in enumerate(self._shown):
            if line.row["id"] == self.chosen:
                return place
        self.chosen = self._shown[0].row["id"] if self._shown else None
        return 0

    def _command(self, key: str) -> None:
        if key in SORTED:
            self.order = SORTED[key]
            return
        match key:
            case "q" | "\x03":
                self.done = True
            case "up" | "down" | "page up" | "page down":
                self._step({"up": -1, "down": 1, "page up": -20, "page down": 20}[key])
            case "s":
                names = [*ORDERS]
                self.order = names[(names.index(self.order) + 1) % len(names)]
            case "r":
                self.reverse = not self.reverse
            case "p" | " ":
                self.paused = not self.paused
                self._shown = [replace(line) for line in self._shown]
            case "c":
                self.text = ""
            case "/":
                self._asking, self._typed = "filter", self.text
            case "k" | "l":
                self._ask_about_flow(key)

    def _step(self, steps: int) -> None:
        if self._shown:
            place = max(0, min(self._place() + steps, len(self._shown) - 1))
            self.chosen = self._shown[place].row["id"]

    def _ask_about_flow(self, key: str) -> None:
        if self.chosen is None or self.board.get(self.chosen) is None:
            self.said = "choose a flow first: it is not there any more"
        elif key == "k":
            self._asking, self._wanted = "sure", Wanted("kill", self.chosen)
        else:
            self._asking, self._typed, self._wanted = "limit", "", Wanted("limit", self.chosen)

    def _type(self, key: str) -> None:
        """Take a key of an answer."""
        if key == "\r":
            self._answer()
        elif key in {"escape", "\x03"}:
            self._asking, self._wanted = None, None
        elif key == "\x7f":
            self._typed = self._typed[:-1]
        elif len(key) == 1 and key.isprintable() and len(self._typed) < TYPED_MAX:
            self._typed += key

    def _answer(self) -> None:
        if self._asking == "filter":
            self.text, self._asking, self.chosen = self._typed, None, None
            return
        assert self._wanted is not None
        try:
            parse_bandwidth(self._typed)
        except ValueError as exc:
            self.said = str(exc)
            return
        self._asking, self._wanted = "sure", self._wanted._replace(bandwidth=self._typed)

    def _confirm(self, key: str) -> Wanted | None:
        """Only a yes is one."""
        wanted, self._wanted, self._asking = self._wanted, None, None
        if key in {"y", "Y"}:
            return wanted
        self.said = "nothing was done"
        return None

    def _head(self) -> str:
        board = self.board
        original, reply = board.totals()
        words = [
            click.style("1 flow" if len(board) == 1 else f"{len(board)} flows", bold=True),
            f"{_rate(original)} to endpoints, {_rate(reply)} back",
            f"opened {board.opened}, closed {board.closed}, limited {board.limited}",
            f"by {self.order}{' reversed' if self.reverse else ''}",
            *([f'filter "{printable(self.text)}": {len(self._shown)}'] if self.text else []),
            *([click.style("paused", fg="yellow")] if self.paused else []),
            *([click.style(does_not_answer(board.silent), fg="yellow")] if board.silent else []),
            *([click.style(f"gaps {board.gaps}", fg="yellow")] if board.gaps else []),
        ]
        return "  ".join(words)

    def _status(self) -> str:
        match self._asking:
            case "filter":
                return f"filter: {printable(self._typed)}_"
            case "limit":
                assert self._wanted is not None
                hint = f"  ({printable(self.said)})" if self.said else ""
                question = f"limit flow {self._wanted.id}, each direction, such as 1MiB/s: "
                return f"{question}{printable(self._typed)}_{hint}"
            case "sure":
                assert self._wanted is not None
                return click.style(f"{self._question(self._wanted)} y/n", fg="red", bold=True)
        return printable(self.said)

    def _question(self, wanted: Wanted) -> str:
        line = self.board.get(wanted.id)
        row: dict[str, Any] = {} if line is None else line.row
        ends = f" ({row['client']['remote']} -> {row['endpoint']['remote'] or '-'})" if row else ""
        if wanted.deed == "kill":
            return f"kill flow {wanted.id}{ends}?"
        return f"limit flow {wanted.id}{ends} to {printable(wanted.bandwidth)} each direction?"

    def _columns(self) -> list[Column]:
        return [
            Column("", lambda line: ">" if line.row["id"] == self.chosen else " "),
            *flow_columns(self.board.now),
        ]


def flow_columns(now: float) -> list[Column]:
    """The columns of flows with their rates.

    Args:
        now: Unix seconds.

    """
    return [
        Column("ID", lambda line: str(line.row["id"]), number=True),
        Column("LISTENER", lambda line: line.row["listener"]),
        Column("PROTO", lambda line: line.row["transport"]),
        Column("STATE", lambda line: line.row["state"], coloured=True),
        Column("CLIENT", lambda line: client_text(line.row), pair=True),
        Column("ENDPOINT", lambda line: endpoint_text(line.row), pair=True),
        Column("ORIGINAL/S", lambda line: _rate(line.original), number=True),
        Column("REPLY/S", lambda line: _rate(line.reply), number=True),
        Column("BYTES", lambda line: format_size(line.bytes), number=True),
        Column("AGE", lambda line: format_span(max(0.0, now - line.row["opened"])), number=True),
    ]


def _rate(rate: float) -> str:
    return f"{format_size(round(rate))}/s"
