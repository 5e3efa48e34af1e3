"""The board: the flows there are and what each moves a second, from the messages of the API.

It is what ``sockpair top`` shows, without a terminal and without a clock: a message brings its time
with it. The API tells counts, of the flows that moved since it last looked; a rate is what was
added, divided by the time since then. A flow that is not told of stands still.

Units: seconds, bytes, bytes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

LOOK: Final = 1.0
"""Between two looks of the API at what flows have moved."""

STILL: Final = 2.5
"""Since a flow was last told of: now it stands still. Looks may come late, but not so late."""

COUNTS: Final = ("last_active", "original", "reply")
"""What of a row goes on changing."""

Row: TypeAlias = dict[str, Any]
Order: TypeAlias = Literal["rate", "original", "reply", "bytes", "age", "id"]


@dataclass(slots=True, eq=False)
class Line:
    """One flow on the board.

    Attributes:
        row: as the API last told it.
        original: what it moves a second.
        reply: the same of the other direction.
        told: when its counts were last told.

    """

    row: Row
    told: float
    original: float = 0.0
    reply: float = 0.0

    @property
    def rate(self) -> float:
        """Of both directions together."""
        return self.original + self.reply

    @property
    def bytes(self) -> int:
        """Payload of both directions so far."""
        return int(self.row["original"]["bytes"] + self.row["reply"]["bytes"])

    def has(self, text: str) -> bool:
        """Whether a text occurs in its names, words or addresses."""
        row = self.row
        words = (str(row["id"]), row["listener"], row["upstream"], row["transport"], row["state"])
        ends = (row[side][end] for side in ("client", "endpoint") for end in ("local", "remote"))
        return any(text in word.lower() for word in (*words, *filter(None, ends)))

    def move(self, counts: Row, now: float, since: float) -> None:
        """Learn what it has moved since then."""
        seconds = max(1e-3, now - since)
        for name in ("original", "reply"):
            added = counts[name]["bytes"] - self.row[name]["bytes"]
            setattr(self, name, max(0, added) / seconds)
        self.row = {**self.row, **{name: counts[name] for name in COUNTS}}
        self.told = now


ORDERS: Final[dict[Order, Callable[[Line], float]]] = {
    "rate": lambda line: -line.rate,
    "original": lambda line: -line.original,
    "reply": lambda line: -line.reply,
    "bytes": lambda line: -line.bytes,
    "age": lambda line: line.row["opened"],
    "id": lambda line: line.row["id"],
}
"""What comes first: the fastest, the largest, the oldest, the lowest id."""


class Board:
    """All flows, live.

    Attributes:
        now: the time of the last message.
        opened: flows that were opened since the beginning.
        closed: flows that ended since then.
        limited: flows that a limit struck since then.
        gaps: how often something was missing.
        silent: workers whose flows were missing at the beginning, or after the last gap.

    """

    def __init__(self) -> None:
        self.now = 0.0
        self.opened = self.closed = self.limited = self.gaps = 0
        self.silent: list[int] = []
        self._lines: dict[int, Line] = {}
        self._coming: dict[int, Line] | None = None  # of a snapshot that is not complete
        self._omitted = False

    def __len__(self) -> int:
        return len(self._lines)

    def hear(self, message: Row) -> None:
        """Learn what a message says."""
        self.now = message.get("time", self.now)
        match message["event"]:
            case "snapshot":
                self._coming = {}
                self.silent = message.get("silent", [])
            case "flow":
                self._put(message["flow"])
            case "live":
                self._lines, self._coming = self._coming or {}, None
            case "counters":
                self._move(message)
            case "gap":
                self.gaps += 1
            case "closed":
                self.closed += 1
                self._lines.pop(message["flow"]["id"], None)
            case "opened" | "limited" as event:
                setattr(self, event, getattr(self, event) + 1)
                self._put(message["flow"])
            case "established" | "assured" | "half_closed":
                self._put(message["flow"])

    def pass_time(self, now: float) -> None:
        """Know how late it is, though nothing has happened."""
        self.now = max(self.now, now)

    def totals(self) -> tuple[float, float]:
        """What all flows move a second, by direction."""
        moving = [line for line in self._lines.values() if self._moves(line)]
        return sum(line.original for line in moving), sum(line.reply for line in moving)

    def lines(self, order: Order, *, reverse: bool = False, text: str = "") -> list[Line]:
        """The flows that a text occurs in, in an order; those that are alike by their ids."""
        for line in self._lines.values():
            if line.rate and not self._moves(line):
                line.original = line.reply = 0.0
        found = [line for line in self._lines.values() if not text or line.has(text.lower())]
        found.sort(key=lambda line: line.row["id"])
        found.sort(key=ORDERS[order], reverse=reverse)
        return found

    def get(self, id: int) -> Line | None:
        """One flow."""
        return self._lines.get(id)

    def _moves(self, line: Line) -> bool:
        return self.now - line.told < STILL

    def _put(self, row: Row) -> None:
        """Know a flow; its rates stay until its counts are told."""
        lines = self._lines if self._coming is None else self._coming
        line = lines.get(row["id"]) or self._lines.get(row["id"])
        if line is None:
            line = Line(row, self.now)
        else:
            # What was moved is told by the looks, or it would be missing in the next rate.
            counts = {name: line.row[name] for name in COUNTS}
            line.row = {**row, **counts}
        lines[row["id"]] = line

    def _move(self, message: Row) -> None:
        """Learn what flows have moved: since the last look, if all that moved was told then."""
        for counts in message["flows"]:
            line = self._lines.get(counts["id"])
            if line is not None:
                last_look = line.told if self._omitted else max(line.told, self.now - LOOK)
                line.move(counts, self.now, last_look)
        self._omitted = bool(message["omitted"])
