"""The log lines of flows that ended: which flows have one, and how it reads.

A line is written where its flow lived, by the worker, as the bytes that go into the log; whoever
keeps the log only passes on what is finished, and gets nothing of a flow that has no line.

* JSON: the flow's row, the same keys as in the API, behind ``time``, ``level`` and ``event``; and
  its ``duration`` in seconds.
* Text: for eyes. Coloured, and with the time of day alone, on a terminal only.

Invariant: one flow is one line, whatever a name holds (JSON escapes it, text writes it printable).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from proxy.core.flow import CloseReason
from proxy.core.printable import printable
from proxy.core.row_json import MOMENTS
from proxy.core.units import format_size, format_span

if TYPE_CHECKING:
    from proxy.core.address import Transport
    from proxy.core.query import FlowRow
    from proxy.core.row_json import ClosedFlow

FlowLogs: TypeAlias = Literal["all", "errors", "off"]
LogKind: TypeAlias = Literal["json", "text"]

QUIET_ENDS: Final = frozenset({CloseReason.FINISHED, CloseReason.KILLED, CloseReason.DRAINED})
"""How a flow ends when all went well, or when the operator wanted it."""


WORTH_A_WORD: Final = 1.0
"""Seconds; half-closed for less is the ordinary end of a request."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Finished lines of a log.

    Attributes:
        text: each with its line feed.
        count: how many.

    """

    text: bytes
    count: int

    def first(self, most: int) -> Lines:
        """The first of them, so many at most."""
        if self.count <= most:
            return self
        return Lines(b"\n".join([*self.text.split(b"\n", most)[:most], b""]), most)


def whole_lines(text: memoryview, most: int) -> memoryview:
    """The first lines of a text, so many bytes at most; of a line that is longer a piece.

    Processes that follow each other have one standard error: what is written in one piece stands
    together, and whatever another one writes comes before or behind it.
    """
    if len(text) <= most:
        return text
    return text[: bytes(text[:most]).rfind(b"\n") + 1 or most]


class FlowLog(NamedTuple):
    """Which flows have a line, and how it reads.

    Attributes:
        flows: ``errors`` leaves out what ``is_quiet``.
        kind: for machines or for eyes.
        colour: whether text has any.
        watched: whether the reader of a text was there all day, so that its times need no date.

    """

    flows: FlowLogs = "all"
    kind: LogKind = "json"
    colour: bool = False
    watched: bool = False

    def wants(self, reason: CloseReason, transport: Transport) -> bool:
        """Whether a flow that ended like this has a line."""
        if self.flows == "errors":
            return not is_quiet(reason, transport)
        return self.flows == "all"

    def lines(self, flows: Iterable[ClosedFlow]) -> Lines:
        """Write the lines of flows that have one."""
        write = _json_line if self.kind == "json" else self._text_line
        lines = [*map(write, flows)]
        return Lines("\n".join([*lines, ""]).encode("utf-8", "backslashreplace"), len(lines))

    def _text_line(self, flow: ClosedFlow) -> str:
        """Write both socket pairs, the bytes of both directions, the duration and the end."""
        row: FlowRow = json.loads(flow.row)
        quiet = is_quiet(flow.reason, flow.transport)
        client, endpoint = row["client"], row["endpoint"]
        paint = painted if self.colour else plain
        words = (
            time_of_day(flow.closed) if self.watched else iso(flow.closed),
            paint("flow   ", "flow"),
            f"{row['id']} {row['transport']} {printable(row['listener'])}",
            f"{client['remote']} -> {client['local']} |",
            f"{endpoint['local'] or '-'} -> {endpoint['remote'] or '-'}",
            f"{format_size(row['original']['bytes'])} > {format_size(row['reply']['bytes'])} <",
            format_span(flow.duration),
            f"{paint(flow.reason, 'quiet' if quiet else 'warning')} {row['close_side']}",
        )
        remarks = ", ".join(_remarks(row, flow.closed))
        return " ".join(words) + (f"; {remarks}" if remarks else "")


def _remarks(row: FlowRow, closed: float) -> list[str]:
    """What else there is to say of a flow and its end; nothing, as a rule."""
    remarks = []
    if row["server_name"] is not None:
        remarks.append(f"for {printable(row['server_name'])}")
    if row["client"]["via"] is not None:
        remarks.append(f"via {row['client']['via']['remote']}")
    half_closed, unsent = row["half_closed"], row["unsent"]
    if half_closed is not None and closed - half_closed >= WORTH_A_WORD:
        remarks.append(f"half-closed {format_span(closed - half_closed)}")
    if unsent is not None:
        lost = {"original": unsent["original"], "reply": unsent["reply"]}
        remarks += [f"{format_size(size)} of {way} unsent" for way, size in lost.items() if size]
    if row["slowed_by"] is not None:
        remarks.append(f"slowed by {row['slowed_by']}")
    return remarks


def is_quiet(reason: CloseReason, transport: Transport) -> bool:
    """Whether a flow ended as it should, so that ``flows = "errors"`` leaves it out.

    ``finished``, ``killed`` and ``drained`` are; and ``idle_timeout`` of datagrams, which have no
    other way to end. An idle TCP connection was cut, which somebody will want to know.
    """
    return reason in QUIET_ENDS or (reason is CloseReason.IDLE_TIMEOUT and transport.is_datagram)


_COLOURS: Final = {
    "debug": "2",
    "flow": "36",
    "quiet": "32",
    "warning": "33",
    "error": "31",
    "critical": "1;31",
}


def painted(text: str, what: str) -> str:
    """A text in the colour of what it is, on a terminal."""
    return f"\x1b[{_COLOURS[what]}m{text}\x1b[0m" if what in _COLOURS else text


def plain(text: str, _what: str) -> str:
    """The text."""
    return text


@lru_cache(maxsize=MOMENTS)
def iso(unix: float) -> str:
    """A time as ISO 8601 in UTC, to the millisecond."""
    milliseconds = round(unix * 1000)
    return f"{_iso_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=64)
def _iso_second(unix: int) -> str:
    """The date and time of a whole second: a thousand flows may end in it."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def time_of_day(unix: float) -> str:
    """A time for whoever was there all day."""
    return time.strftime("%H:%M:%S", time.localtime(unix))


def _json_line(flow: ClosedFlow) -> str:
    """Write the flow's row, with its duration in seconds."""
    return (
        f'{{"time":"{iso(flow.closed)}","level":"info","event":"flow",'
        f'{flow.row[1:-1]},"duration":{flow.duration:.6f}}}'
    )
