"""Logs: what happens to the house, and one line for every flow that ended.

Strategy: everything becomes one line of text, in one of two formats, and goes into the sink; the
rest of the program logs through ``structlog.get_logger()`` and knows of neither. A flow's line does
not pass through structlog's processors, because there may be thousands in a second: it comes from
the relay as it is written, see ``engine.flow_lines``.

* JSON: one object a line; ``time``, ``level`` and ``event`` come first, ``time`` is ISO 8601 in
  UTC.
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
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import structlog
import trio

from proxy.core.printable import printable
from proxy.engine.flow_lines import FlowLog, iso, painted, plain, time_of_day
from proxy.observe.journal import prefixed
from proxy.observe.sink import LogSink

if TYPE_CHECKING:
    from proxy.engine.flow_lines import FlowLogs, LogKind
    from proxy.engine.port import RelayPort

Event: TypeAlias = MutableMapping[str, Any]

LAST_SECONDS: Final = 0.05
"""At the end, how long flows that ended just now have to show up."""


class LogFormat(Protocol):
    """How a record becomes a line, without its line feed."""

    def event(self, event: Event) -> str:
        """Write an operational event; it has the keys ``time``, ``level`` and ``event``."""
        ...


def configure(
    format: LogKind = "json", level: str = "info", flows: FlowLogs = "all", *, fd: int = 2
) -> FlowSink:
    """Let everything that is logged from now on go to one descriptor.

    Args:
        format: ``json`` for machines, ``text`` for eyes.
        level: the least level that is written: debug, info, warning, error.
        flows: which of those that end have a line.
        fd: where lines go; standard error, because standard output is for products.

    Returns:
        The sink. Until somebody runs it, lines wait in its queue.

    """
    sink = FlowSink(fd, JsonFormat())
    set_up(sink, format, level, flows)
    return sink


def set_up(sink: FlowSink, format: LogKind, level: str, flows: FlowLogs = "all") -> None:
    """Have a sink's lines in this format, events from this level on, and of these flows."""
    colour, terminal = _wants_colour(sink.fd), os.isatty(sink.fd)
    sink.format = TextFormat(colour, terminal) if format == "text" else JsonFormat()
    sink.log_flows(FlowLog(flows, format, colour, terminal))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            lambda _logger, _method, event: sink.written({"time": time.time(), **event}),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=lambda *_: _SinkLogger(sink),
        cache_logger_on_first_use=False,
    )


async def write_flow_log(port: RelayPort, sink: FlowSink) -> None:
    """Write a line for every flow that ends and is to have one, until cancelled.

    Cancel it after the relay has ended its flows, and before the sink: those that ended just
    before are still written.

    Args:
        port: the relay, which is told what ``sink.flow_log`` says, now and whenever it changes.
        sink: where the lines go.

    """
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_told, port, sink)
            while True:
                sink.put_lines(await port.wait_flow_lines())
    finally:
        with trio.move_on_after(LAST_SECONDS, shield=True) as scope:
            while True:  # the relay has stopped, so there is an end to them
                sink.put_lines(await port.wait_flow_lines())
                scope.deadline = trio.current_time() + LAST_SECONDS


async def _keep_told(port: RelayPort, sink: FlowSink) -> None:
    while True:
        changed = sink.flow_log_changed
        await port.log_flows(sink.flow_log)
        await changed.wait()


class FlowSink(LogSink):
    """A log sink that knows in which format its lines are, and which flows have one.

    Attributes:
        format: of events.
        flow_log: of flows; set by ``log_flows``.
        flow_log_changed: set when it has been.

    """

    def __init__(self, fd: int, log_format: LogFormat) -> None:
        super().__init__(fd, self._tell_dropped)
        self.format = log_format
        self.flow_log = FlowLog()
        self.flow_log_changed = trio.Event()

    def log_flows(self, flow_log: FlowLog) -> None:
        """Have other flows logged from now on, or otherwise."""
        self.flow_log = flow_log
        self.flow_log_changed.set()
        self.flow_log_changed = trio.Event()

    def written(self, event: Event) -> str:
        """An event as the record that it becomes here; for journald with its priority."""
        level = event.get("level", "info")
        text = self.format.event(event)
        return prefixed(text, level) if self.is_journal else text

    def _tell_dropped(self, count: int) -> str:
        head = {"time": time.time(), "level": "warning", "event": "log_lines_dropped"}
        return self.written({**head, "lines": count})


class JsonFormat:
    """One JSON object a line."""

    def event(self, event: Event) -> str:
        """Write an event; what JSON does not know is written as its text."""
        head = {"time": iso(event.pop("time")), "level": event.pop("level", "info")}
        return _JSON.encode({**head, "event": event.pop("event", ""), **event})


class TextFormat:
    """One line for eyes.

    Args:
        colour: whether there is any.
        terminal: whether the reader was there all day, so that the time needs no date; by default
            where there is colour.

    """

    def __init__(self, colour: bool, terminal: bool | None = None) -> None:
        watched = colour if terminal is None else terminal
        self._time: Callable[[float], str] = time_of_day if watched else iso
        self._paint = painted if colour else plain

    def event(self, event: Event) -> str:
        """Write ``time level event key=value ...``; a traceback follows on lines of its own."""
        level = event.pop("level", "info")
        trace = event.pop("exception", "")
        head = f"{self._time(event.pop('time'))} {self._paint(f'{level:<7}', level)}"
        words = [head, printable(str(event.pop("event", "")))]
        words += [f"{printable(key)}={_value(value)}" for key, value in event.items()]
        return "\n  | ".join([" ".join(words), *map(printable, trace.splitlines())])


class _SinkLogger:
    """What structlog calls with the finished line."""

    def __init__(self, sink: LogSink) -> None:
        self.msg = sink.put
        self.debug = self.info = self.warning = self.error = self.critical = self.msg


_JSON: Final = json.JSONEncoder(separators=(",", ":"), default=str)


def _wants_colour(fd: int) -> bool:
    """A terminal, unless the user said otherwise (no-color.org)."""
    return os.isatty(fd) and not os.environ.get("NO_COLOR")


def _value(value: object) -> str:
    """A value as one word, quoted when it is several; a list is its words with spaces between."""
    words = value if isinstance(value, list | tuple) else (value,)
    text = printable(" ".join(map(str, words)))
    if text and not any(char in ' "=' for char in text):
        return text
    return '"' + text.replace('"', '\\"') + '"'
