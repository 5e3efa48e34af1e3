"""Logs: what happens to the house, and one line for every flow that ended.

Strategy: everything becomes one line of text, in one of two formats, and goes into the sink; the
rest of the program logs through ``structlog.get_logger()`` and knows of neither. A flow's line does
not pass through structlog's processors, because there may be thousands in a second.

* JSON: one object a line; ``time``, ``level`` and ``event`` come first, ``time`` is ISO 8601 in
  UTC. A flow's line is its row, the same keys as in the API, with its ``duration`` in seconds.
* Text: for eyes. Coloured, and with the time of day alone, on a terminal only.

Invariant: one record is one line, whatever a value holds (JSON escapes it, text writes it
printable), so nobody can forge a record by what they send. A traceback in text is the exception:
its lines begin with a bar that no record begins with.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

import structlog
import trio

from proxy.core.flow import CloseReason
from proxy.core.printable import printable
from proxy.core.row_json import MOMENTS
from proxy.core.units import format_size, format_span
from proxy.observe.sink import LogSink

if TYPE_CHECKING:
    from proxy.core.address import Transport
    from proxy.core.query import FlowRow
    from proxy.core.row_json import ClosedFlow
    from proxy.engine.port import RelayPort

Event: TypeAlias = MutableMapping[str, Any]
FlowLogs: TypeAlias = Literal["all", "errors", "off"]

SLICE_ROWS: Final = 100
"""Flow lines written before the relay gets its turn: about a millisecond."""

LAST_SECONDS: Final = 0.05
"""At the end, how long flows that ended just now have to show up."""

QUIET_ENDS: Final = frozenset({CloseReason.FINISHED, CloseReason.KILLED, CloseReason.DRAINED})
"""How a flow ends when all went well, or when the operator wanted it."""


class LogFormat(Protocol):
    """How a record becomes a line, without its line feed."""

    def event(self, event: Event) -> str:
        """Write an operational event; it has the keys ``time``, ``level`` and ``event``."""
        ...

    def flow(self, flow: ClosedFlow) -> str:
        """Write a flow that ended."""
        ...


def configure(
    format: Literal["json", "text"] = "json", level: str = "info", *, fd: int = 2
) -> FlowSink:
    """Let everything that is logged from now on go to one descriptor.

    Args:
        format: ``json`` for machines, ``text`` for eyes.
        level: the least level that is written: debug, info, warning, error.
        fd: where lines go; standard error, because standard output is for products.

    Returns:
        The sink. Until somebody runs it, lines wait in its queue.

    """
    sink = FlowSink(fd, JsonFormat())
    set_up(sink, format, level)
    return sink


def set_up(sink: FlowSink, format: Literal["json", "text"], level: str) -> None:
    """Have a sink's lines in this format, from this level on."""
    sink.format = JsonFormat()
    if format == "text":
        sink.format = TextFormat(_wants_colour(sink.fd), terminal=os.isatty(sink.fd))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            lambda _logger, _method, event: sink.format.event({"time": time.time(), **event}),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=lambda *_: _SinkLogger(sink),
        cache_logger_on_first_use=False,
    )


async def write_flow_log(port: RelayPort, sink: FlowSink, flows: FlowLogs) -> None:
    """Write a line for every flow that ends, until cancelled.

    Cancel it after the relay has ended its flows, and before the sink: those that ended just
    before are still written.

    Args:
        port: the relay.
        sink: where the lines go.
        flows: ``errors`` leaves out what ``is_quiet``; ``off`` takes the rows from the relay and
            writes none, so that they are not counted as dropped. ``sink.flows`` may be set to
            another word while this runs.

    """
    sink.flows = flows
    try:
        while True:
            await _write_rows(await port.wait_closed_flows(), sink, sink.flows)
    finally:
        with trio.move_on_after(LAST_SECONDS, shield=True) as scope:
            while True:  # the relay has stopped, so there is an end to them
                await _write_rows(await port.wait_closed_flows(), sink, sink.flows)
                scope.deadline = trio.current_time() + LAST_SECONDS


def is_quiet(reason: CloseReason, transport: Transport) -> bool:
    """Whether a flow ended as it should, so that ``flows = "errors"`` leaves it out.

    ``finished``, ``killed`` and ``drained`` are; and ``idle_timeout`` of datagrams, which have no
    other way to end. An idle TCP connection was cut, which somebody will want to know.
    """
    return reason in QUIET_ENDS or (reason is CloseReason.IDLE_TIMEOUT and transport.is_datagram)


class FlowSink(LogSink):
    """A log sink that knows in which format its lines are, and which flows have one."""

    def __init__(self, fd: int, log_format: LogFormat) -> None:
        super().__init__(fd, self._tell_dropped)
        self.format = log_format
        self.flows: FlowLogs = "all"

    def put_flows(self, flows: Iterable[ClosedFlow]) -> None:
        """Queue the lines of flows that ended."""
        self.put_all([*map(self.format.flow, flows)])

    def _tell_dropped(self, count: int) -> str:
        head = {"time": time.time(), "level": "warning", "event": "log_lines_dropped"}
        return self.format.event({**head, "lines": count})


class JsonFormat:
    """One JSON object a line."""

    def event(self, event: Event) -> str:
        """Write an event; what JSON does not know is written as its text."""
        head = {"time": _iso(event.pop("time")), "level": event.pop("level", "info")}
        return _JSON.encode({**head, "event": event.pop("event", ""), **event})

    def flow(self, flow: ClosedFlow) -> str:
        """Write the flow's row, with its duration in seconds."""
        return (
            f'{{"time":"{_iso(flow.closed)}","level":"info","event":"flow",'
            f'{flow.row[1:-1]},"duration":{flow.duration:.6f}}}'
        )


class TextFormat:
    """One line for eyes.

    Args:
        colour: whether there is any.
        terminal: whether the reader was there all day, so that the time needs no date; by default
            where there is colour.

    """

    def __init__(self, colour: bool, terminal: bool | None = None) -> None:
        watched = colour if terminal is None else terminal
        self._time: Callable[[float], str] = _time_of_day if watched else _iso
        self._paint = _paint if colour else _plain

    def event(self, event: Event) -> str:
        """Write ``time level event key=value ...``; a traceback follows on lines of its own."""
        level = event.pop("level", "info")
        trace = event.pop("exception", "")
        head = f"{self._time(event.pop('time'))} {self._paint(f'{level:<7}', level)}"
        words = [head, printable(str(event.pop("event", "")))]
        words += [f"{printable(key)}={_value(value)}" for key, value in event.items()]
        return "\n  | ".join([" ".join(words), *map(printable, trace.splitlines())])

    def flow(self, flow: ClosedFlow) -> str:
        """Write both socket pairs, the bytes of both directions, the duration and the end."""
        row: FlowRow = json.loads(flow.row)
        quiet = is_quiet(flow.reason, flow.transport)
        client, endpoint = row["client"], row["endpoint"]
        words = (
            self._time(flow.closed),
            self._paint("flow   ", "flow"),
            f"{row['id']} {row['transport']} {printable(row['listener'])}",
            f"{client['remote']} -> {client['local']} |",
            f"{endpoint['local'] or '-'} -> {endpoint['remote'] or '-'}",
            f"{format_size(row['original']['bytes'])} > {format_size(row['reply']['bytes'])} <",
            format_span(flow.duration),
            f"{self._paint(flow.reason, 'quiet' if quiet else 'warning')} {row['close_side']}",
        )
        return " ".join(words)


class _SinkLogger:
    """What structlog calls with the finished line."""

    def __init__(self, sink: LogSink) -> None:
        self.msg = sink.put
        self.debug = self.info = self.warning = self.error = self.critical = self.msg


async def _write_rows(closed: list[ClosedFlow], sink: FlowSink, flows: FlowLogs) -> None:
    wanted = list(_wanted(closed, flows))
    with trio.CancelScope(shield=True):  # what was taken from the relay is written
        for start in range(0, len(wanted), SLICE_ROWS):
            sink.put_flows(wanted[start : start + SLICE_ROWS])
            await trio.lowlevel.checkpoint()


def _wanted(closed: list[ClosedFlow], flows: FlowLogs) -> Iterable[ClosedFlow]:
    if flows == "errors":
        return (flow for flow in closed if not is_quiet(flow.reason, flow.transport))
    return closed if flows == "all" else ()


_JSON: Final = json.JSONEncoder(separators=(",", ":"), default=str)
_COLOURS: Final = {
    "debug": "2",
    "flow": "36",
    "quiet": "32",
    "warning": "33",
    "error": "31",
    "critical": "1;31",
}


def _wants_colour(fd: int) -> bool:
    """A terminal, unless the user said otherwise (no-color.org)."""
    return os.isatty(fd) and not os.environ.get("NO_COLOR")


def _paint(text: str, what: str) -> str:
    return f"\x1b[{_COLOURS[what]}m{text}\x1b[0m" if what in _COLOURS else text


def _plain(text: str, _what: str) -> str:
    return text


@lru_cache(maxsize=MOMENTS)
def _iso(unix: float) -> str:
    milliseconds = round(unix * 1000)
    return f"{_iso_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=64)
def _iso_second(unix: int) -> str:
    """The date and time of a whole second: a thousand flows may end in it."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _time_of_day(unix: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix))


def _value(value: object) -> str:
    """A value as one word, quoted when it is several; a list is its words with spaces between."""
    words = value if isinstance(value, list | tuple) else (value,)
    text = printable(" ".join(map(str, words)))
    if text and not any(char in ' "=' for char in text):
        return text
    return '"' + text.replace('"', '\\"') + '"'
