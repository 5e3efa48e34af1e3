"""Rows as aligned text, the way ``ss`` and ``conntrack`` people read them.

Strategy: a cell is its text and its colour; columns are as wide as their widest cell, numbers stand
to the right. Nothing is ever cut. On a terminal that is too narrow for both socket pairs beside the
rest, each flow takes two lines, the second of them dim; in a pipe a flow is one line, whatever its
width.

Why not rich: it wraps or cuts what does not fit, and importing it takes longer than asking for and
writing a thousand flows does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import Any, Final

import click

from proxy.core.flow import State
from proxy.core.pressure import class_of
from proxy.core.printable import printable
from proxy.core.units import format_size, format_span

STATE_COLOURS: Final = {
    "established": "green",
    "assured": "green",
    "connecting": "yellow",
    "unreplied": "yellow",
    "listen": "blue",
    "finished": "green",
    "internal": "red",
}
OTHER_COLOUR: Final = "cyan"

GAP: Final = "  "
INDENT: Final = "    "


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        title: its head; numbers stand to the right.
        cell: a row's text.
        number: whether it is one.
        pair: whether it is an address, or a name, that moves to a second line for lack of room.
        coloured: whether its word has a colour.

    """

    title: str
    cell: Callable[[Any], str]
    number: bool = False
    pair: bool = False
    coloured: bool = False


def flow_columns(
    *,
    recent: bool,
    exact: bool,
    now: float,
    evictable: bool = False,
    stays: bool = False,
    wide: bool = False,
) -> list[Column]:
    """The columns of flows, live or recently closed.

    Args:
        recent: show how flows ended, in place of their age; their state is the one before.
        exact: write bytes as plain numbers.
        now: Unix seconds.
        evictable: show the class by which a flow would be evicted.
        stays: show why a flow would not go along with an upgrade.
        wide: show more of who the client is, and how the flow got on, as the kernel tells.

    """
    size = str if exact else format_size
    return [
        Column("ID", lambda row: str(row["id"]), number=True),
        Column("LISTENER", lambda row: row["listener"]),
        Column("PROTO", lambda row: row["transport"]),
        Column("LAST STATE" if recent else "STATE", lambda row: row["state"], coloured=True),
        Column("CLIENT", client_text, pair=True),
        Column("LOCAL", lambda row: row["client"]["local"] or "-", pair=True),
        Column("OUTBOUND", lambda row: row["endpoint"]["local"] or "-", pair=True),
        Column("ENDPOINT", endpoint_text, pair=True),
        *(WHO if wide else []),
        Column("ORIGINAL", lambda row: size(row["original"]["bytes"]), number=True),
        Column("REPLY", lambda row: size(row["reply"]["bytes"]), number=True),
        *(_end_columns() if recent else _age_columns(now)),
        *(_farewell_columns(size) if wide and recent else []),
        *(INSIGHT if wide else []),
        *([STAYS] if stays else []),
        *([CLASS] if evictable else []),
    ]


def client_text(row: Any) -> str:
    """Who the client of a flow is."""
    return _who(row["client"]["remote"], row.get("credentials"))


def endpoint_text(row: Any) -> str:
    """Where a flow goes."""
    return _who(row["endpoint"]["remote"], row.get("endpoint_credentials"))


def _who(address: str | None, process: Any) -> str:
    """An address, and of a Unix socket the process behind it: ``unix:/run/x(pid=7,uid=0)``.

    A process that is older than this command does not tell it.
    """
    if process is None:
        return address or "-"
    return f"{address or '-'}(pid={process['pid']},uid={process['uid']})"


def _half_closed(row: Any) -> str:
    """How long one side had ended, of a flow that has."""
    began, closed = row["half_closed"], row["closed"]
    return "-" if began is None or closed is None else format_span(closed - began)


def _unsent(row: Any, size: Callable[[int], str]) -> str:
    """Bytes of both directions that did not arrive."""
    unsent = row["unsent"]
    return "-" if unsent is None else size(unsent["original"] + unsent["reply"])


def _rtts(row: Any) -> str:
    """Round trips to client and endpoint."""
    legs = row["legs"]
    if legs is None:
        return "-"
    return "/".join(
        "-" if leg is None else f"{leg['rtt'] * 1000:.3g}ms"
        for leg in (legs["client"], legs["endpoint"])
    )


def _retransmits(row: Any) -> str:
    """Segments sent again to client and endpoint."""
    legs = row["legs"]
    if legs is None:
        return "-"
    return "/".join(
        "-" if leg is None else str(leg["retransmits"])
        for leg in (legs["client"], legs["endpoint"])
    )


def _stalled(row: Any, what: str) -> str:
    """How long both directions stood still, together."""
    stalled = row["stalled"]
    if stalled is None:
        return "-"
    seconds = stalled["original"][what] + stalled["reply"][what]
    return format_span(seconds) if seconds else "-"


def _via(row: Any) -> str:
    """The proxy that speaks for the client."""
    via = row["client"]["via"]
    return "-" if via is None else via["remote"] or "-"


WHO: Final = [
    Column("VIA", _via, pair=True),
    Column("SERVER NAME", lambda row: row["server_name"] or "-", pair=True),
]

INSIGHT: Final = [
    Column("RTT", _rtts, number=True),
    Column("RETRANS", _retransmits, number=True),
    Column("BLOCKED", lambda row: _stalled(row, "blocked"), number=True),
    Column("HELD", lambda row: _stalled(row, "held"), number=True),
    Column("SLOWED BY", lambda row: row["slowed_by"] or "-"),
]

STAYS: Final = Column("STAYS", lambda row: row.get("stays") or "-")

CLASS: Final = Column("CLASS", lambda row: class_of(State(row["state"])))

LISTEN_COLUMNS: Final = [
    Column("LISTENER", lambda row: row["listener"]),
    Column("PROTO", lambda row: row["transport"]),
    Column("STATE", lambda row: row["state"], coloured=True),
    Column("LOCAL", lambda row: row["local"]),
    Column("UPSTREAM", lambda row: row["upstream"]),
    Column("SURVIVE", lambda row: row.get("survive", "-")),
]


def _age_columns(now: float) -> list[Column]:
    return [
        Column("AGE", lambda row: format_span(now - row["opened"]), number=True),
        Column("IDLE", lambda row: format_span(now - row["last_active"]), number=True),
    ]


def _end_columns() -> list[Column]:
    return [
        Column("LIVED", lambda row: format_span(row["closed"] - row["opened"]), number=True),
        Column("REASON", lambda row: row["close_reason"] or "-", coloured=True),
        Column("SIDE", lambda row: row["close_side"] or "-"),
    ]


def _farewell_columns(size: Callable[[int], str]) -> list[Column]:
    return [
        Column("BY", lambda row: row["close_kind"] or "-"),
        Column("HALF CLOSED", _half_closed, number=True),
        Column("UNSENT", lambda row: _unsent(row, size), number=True),
    ]


def write_table(columns: Sequence[Column], rows: Iterable[Any]) -> None:
    """Write rows to standard output, for a terminal or a pipe."""
    terminal = sys.stdout.isatty()
    width = get_terminal_size().columns if terminal else None
    colour = terminal and not os.environ.get("NO_COLOR")
    lines = table_lines(columns, rows, width=width)
    click.echo("\n".join(lines), color=colour)


def table_lines(columns: Sequence[Column], rows: Iterable[Any], *, width: int | None) -> list[str]:
    """Align rows under their heads, in colour.

    Args:
        columns: what to show.
        rows: one for each line.
        width: of the terminal; None where lines may have any length.

    """
    cells = [[printable(column.cell(row)) for column in columns] for row in rows]
    widths = [
        max(len(column.title), *(len(line[place]) for line in cells), 0)
        for place, column in enumerate(columns)
    ]
    layout = _Layout(columns, widths, _arrange(columns, widths, width))
    heads = [column.title for column in columns]
    lines = layout.lines(heads, head=True)
    for row in cells:
        lines += layout.lines(row)
    return lines


def _arrange(
    columns: Sequence[Column], widths: Sequence[int], width: int | None
) -> list[list[int]]:
    """Which columns stand on which line: all on one, or the socket pairs on a second."""
    places = range(len(columns))
    if width is None or sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        return [[*places]]
    pairs = [place for place in places if columns[place].pair]
    others = [place for place in places if not columns[place].pair]
    return [others, pairs] if pairs else [others]


@dataclass(frozen=True, slots=True)
class _Layout:
    columns: Sequence[Column]
    widths: Sequence[int]
    arrangement: list[list[int]]

    def lines(self, cells: Sequence[str], *, head: bool = False) -> list[str]:
        """The line of a row, or its two lines."""
        lines: list[str] = []
        for places in self.arrangement:
            styled = [self._styled(place, cells[place], head=head) for place in places[:-1]]
            last = self._styled(places[-1], cells[places[-1]], head=head, last=True)
            indent = INDENT if lines else ""
            line = indent + GAP.join([*styled, last])
            lines.append(click.style(line, dim=True) if indent and not head else line)
        return lines

    def _styled(self, place: int, text: str, *, head: bool, last: bool = False) -> str:
        column, width = self.columns[place], self.widths[place]
        left = text if last else text.ljust(width)  # no blanks at the end of a line
        padded = text.rjust(width) if column.number else left
        if head:
            return click.style(padded, bold=True)
        if column.coloured:
            return click.style(padded, fg=STATE_COLOURS.get(text, OTHER_COLOUR))
        return padded
