"""Log lines: their two formats, what cannot be forged, and a sink that nothing can stop."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio

from proxy.core.flow import CloseReason, CloseSide
from proxy.core.printable import printable
from proxy.engine.flow_lines import FlowLog, Lines
from proxy.observe import log, sink
from proxy.observe.log import FlowSink, JsonFormat, TextFormat, configure, write_flow_log
from tests.e2e.patience import PATIENCE, until
from tests.observe.fake_relay import FakeRelay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.core.row_json import ClosedFlow


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):  # the test may have closed it
            os.close(end)


def left_in(fd: int) -> bytes:
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        return os.read(fd, 1 << 20)
    return b""


def lines_of(fd: int) -> list[str]:
    return left_in(fd).decode().splitlines()


def closed(reason: CloseReason = CloseReason.FINISHED, *, listener: str = "web") -> ClosedFlow:
    relay = FakeRelay()
    relay.web.listener = listener
    return relay.end(relay.open_tcp(original=1300, reply=36_000_000), reason)


def test_json_events_are_one_object_a_line(pipe: tuple[int, int]) -> None:
    lines = configure("json", fd=pipe[1])
    structlog.get_logger().warning("flows_killed", killed=3, by="pid 1 uid 0", other={1})
    structlog.get_logger().debug("not written")
    lines.flush()
    (line,) = lines_of(pipe[0])
    record = json.loads(line)
    assert list(record)[:3] == ["time", "level", "event"]
    assert record["time"].endswith("Z")
    assert (record["level"], record["event"], record["killed"]) == ("warning", "flows_killed", 3)


def test_level_is_the_least_that_is_written(pipe: tuple[int, int]) -> None:
    lines = configure("text", "error", fd=pipe[1])
    structlog.get_logger().warning("hidden")
    structlog.get_logger().error("seen")
    lines.flush()
    (line,) = lines_of(pipe[0])
    assert "seen" in line


EVIL = 'a\nlevel=error\r\x1b[2J\u202e\x00\x85\u2028"quoted" = 1\udcff'


@pytest.mark.parametrize("format", ["json", "text"])
def test_no_value_can_forge_a_line(pipe: tuple[int, int], format: Any) -> None:
    lines = configure(format, fd=pipe[1])
    structlog.get_logger().info(EVIL, **{"key\n": EVIL}, value=EVIL)
    lines.put_lines(lines.flow_log.lines([closed(listener=EVIL)]))
    lines.flush()
    written = left_in(pipe[0]).decode()
    assert written.count("\n") == 2
    assert written.replace("\n", "").isprintable()


def test_a_traceback_in_text_cannot_pass_for_a_record(pipe: tuple[int, int]) -> None:
    lines = configure("text", fd=pipe[1])
    try:
        raise RuntimeError("x\n2030-01-01 error forged")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    lines.flush()
    first, *rest = lines_of(pipe[0])
    assert first.endswith("failed")
    assert rest
    assert all(line.startswith("  | ") for line in rest)


def test_a_terminal_is_coloured_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    ends = os.openpty()
    try:
        assert log._wants_colour(ends[1])
        monkeypatch.setenv("NO_COLOR", "1")
        assert not log._wants_colour(ends[1])
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("colour", [True, False])
def test_only_a_terminal_leaves_out_the_date(colour: bool) -> None:
    at = {"time": 1_700_000_000.0, "event": "started"}
    on_terminal = TextFormat(colour, terminal=True).event({**at})
    assert re.match(r"\d\d:\d\d:\d\d ", on_terminal)
    assert TextFormat(colour, terminal=False).event({**at}).startswith("2023-11-14T22:13:20.000Z ")


def test_a_list_as_text_is_words() -> None:
    event = {"time": 0.0, "event": "started", "listening": ["tcp://a:1", "udp://b:2"], "one": ["x"]}
    line = TextFormat(colour=False).event(event)
    assert line.endswith('started listening="tcp://a:1 udp://b:2" one=x')


class Kept(FlowSink):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(-1, JsonFormat())
        self.kept: list[int] = []

    def put_lines(self, lines: Lines) -> None:
        self.kept += [json.loads(line)["id"] for line in lines.text.splitlines()]


@pytest.mark.parametrize(("flows", "kept"), [("all", [1, 2, 3]), ("errors", [2]), ("off", [])])
async def test_flow_log_writes_what_was_asked_for(flows: Any, kept: list[int]) -> None:
    relay, lines = FakeRelay(), Kept()
    ended = [
        relay.end(relay.open_tcp()),
        relay.end(relay.open_tcp(), CloseReason.CONNECT_REFUSED, CloseSide.ENDPOINT),
        relay.end(relay.open_tcp()),
    ]
    relay.endings = [ended[:2], ended[2:]]
    async with trio.open_nursery() as nursery:
        lines.log_flows(FlowLog(flows))
        nursery.start_soon(write_flow_log, relay, lines)
        await until(lambda: not relay.endings, "the relay's rows were taken")
        nursery.cancel_scope.cancel()
    assert lines.kept == kept


async def test_the_relay_is_told_when_other_flows_are_to_be_logged() -> None:
    relay, lines = FakeRelay(), Kept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_flow_log, relay, lines)
        for flow_log in (FlowLog("off"), FlowLog("errors", "text", colour=True), FlowLog()):
            lines.log_flows(flow_log)
            await until(lambda: relay.flow_log == lines.flow_log, "the relay was told")
        nursery.cancel_scope.cancel()


def test_what_is_configured_is_what_the_relay_is_told() -> None:
    assert configure("json").flow_log == FlowLog("all", "json")
    lines = configure("text", "info", "errors", fd=sys.__stderr__.fileno())  # type: ignore[union-attr]
    assert lines.flow_log[:2] == ("errors", "text")
    log.set_up(lines, "json", "warning", "off")
    assert lines.flow_log[:2] == ("off", "json")


async def test_flows_that_ended_last_are_still_written() -> None:
    relay, lines = FakeRelay(), Kept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_flow_log, relay, lines)
        await until(lambda: relay.flow_log is not None, "the relay was told")
        relay.endings = [[relay.end(relay.open_tcp()) for _ in range(250)]]
        nursery.cancel_scope.cancel()
    assert len(lines.kept) == 250


def test_of_many_lines_those_that_find_no_room_are_dropped() -> None:
    lines = sink.LogSink(-1, str, limit=5)
    for batch in (b"1\n2\n", b"3\n4\n5\n6\n", b"7\n"):
        lines.put_lines(Lines(batch, batch.count(b"\n")))
    lines.put("8")
    assert b"".join(part.text for part in lines._queue) == b"1\n2\n3\n4\n5\n"
    assert lines.dropped == 3


def test_there_is_room_again_for_what_has_been_written(pipe: tuple[int, int]) -> None:
    lines = sink.LogSink(pipe[1], str, limit=5)
    for _ in range(4):
        lines.put_lines(Lines(b"1\n2\n3\n", 3))
        lines.put("4")
        lines.flush()
        assert left_in(pipe[0]) == b"1\n2\n3\n4\n"
    assert lines.dropped == 0


async def test_the_sink_writes_in_order_and_flushes_at_the_end(pipe: tuple[int, int]) -> None:
    lines = FlowSink(pipe[1], JsonFormat())
    async with trio.open_nursery() as nursery:
        await nursery.start(lines.run)
        for number in range(700):
            lines.put(str(number))
        nursery.cancel_scope.cancel()
    assert lines_of(pipe[0]) == [str(number) for number in range(700)]
    assert lines.dropped == 0


async def test_a_reader_that_stops_costs_lines_and_no_time(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "ROOM_SECONDS", 0.01)
    monkeypatch.setattr(sink, "RETRY_SECONDS", 0.01)
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4096)
    lines = FlowSink(pipe[1], JsonFormat())
    lines._limit = 20
    received = b""
    async with trio.open_nursery() as nursery:
        await nursery.start(lines.run)
        for number in range(1000):
            lines.put(f"{number} " + "x" * 1000)
            await trio.lowlevel.checkpoint()
        assert lines.dropped > 900
        with trio.fail_after(PATIENCE):
            while lines._told < lines.dropped or lines._pending:
                received += left_in(pipe[0])
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    everything = (received + left_in(pipe[0])).decode()
    told = [line for line in everything.splitlines() if line.startswith("{")]
    written = [line for line in everything.splitlines() if not line.startswith("{")]
    assert sum(json.loads(line)["lines"] for line in told) == lines.dropped
    assert len(written) + lines.dropped == 1000
    numbers = [int(line.split()[0]) for line in written]
    assert numbers == sorted(numbers)


async def test_the_end_waits_for_a_stopped_reader_only_so_long(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "ROOM_SECONDS", 0.01)
    monkeypatch.setattr(sink, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sink, "FLUSH_SECONDS", 0.05)
    lines = FlowSink(pipe[1], JsonFormat())
    lines.put("x" * 1_000_000)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(lines.run)
            nursery.cancel_scope.cancel()
    lines.flush()


async def test_a_reader_that_left_is_counted_and_told_when_writing_works(
    pipe: tuple[int, int],
) -> None:
    lines = FlowSink(pipe[1], JsonFormat())
    os.close(pipe[0])
    async with trio.open_nursery() as nursery:
        await nursery.start(lines.run)
        for number in range(3):
            lines.put(str(number))
        await until(lambda: lines.dropped == 3, "three lines were given up")
        read_end, lines.fd = os.pipe()
        lines.put("works again")
        await until(lambda: lines._told == 3, "the gap was told")
        nursery.cancel_scope.cancel()
    first, told = lines_of(read_end)
    assert first == "works again"
    assert json.loads(told)["lines"] == 3
    for fd in (read_end, lines.fd):
        os.close(fd)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
async def test_a_full_disk_is_counted() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    lines = FlowSink(fd, JsonFormat())
    async with trio.open_nursery() as nursery:
        await nursery.start(lines.run)
        lines.put("lost")
        await until(lambda: lines.dropped == 1, "the line was given up")
        nursery.cancel_scope.cancel()
    os.close(fd)


def test_a_line_that_was_torn_does_not_spoil_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def write(_fd: int, data: memoryview) -> int:
        if len(written) == 1:
            written.append(b"")
            raise OSError(errno.ENOSPC, "full")
        taken = bytes(data[:3]) if not written else bytes(data)
        written.append(taken)
        return len(taken)

    monkeypatch.setattr(os, "write", write)
    lines = FlowSink(sys.__stderr__.fileno(), JsonFormat())  # type: ignore[union-attr]
    lines.put("torn line")
    lines.flush()
    lines.put("whole")
    lines.flush()
    assert b"".join(written).splitlines()[:2] == [b"tor", b"whole"]
    assert lines.dropped == 1


def test_printable_leaves_words_alone() -> None:
    assert printable("wéb 端口") == "wéb 端口"
    assert printable("\x1b[31m") == "\\x1b[31m"
