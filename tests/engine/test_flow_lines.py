"""The lines of flows that ended: what they hold, and which flows have one."""

from __future__ import annotations

import json
import pickle

import pytest

from proxy.core.address import Transport
from proxy.core.counters import ListenerCounters
from proxy.core.expiry import FlowLimits, limits_json
from proxy.core.flow import CloseReason, CloseSide, Direction, Flow, State
from proxy.core.row_json import ClosedFlow, closed_flow
from proxy.engine.flow_lines import FlowLog, Lines, is_quiet

EVIL = 'a\nlevel=error\r\x1b[2J\u202e\x00\x85\u2028"quoted" = 1\udcff'

MONDAY = 1_700_000_000.0


def closed(
    reason: CloseReason = CloseReason.FINISHED, listener: str = "web", *, reached: bool = True
) -> ClosedFlow:
    """A flow that lived for 2.5 seconds."""
    flow = Flow(
        1,
        ListenerCounters(listener, Transport.TCP, "web"),
        ("192.0.2.7", 51000),
        ("192.0.2.1", 8080),
        Direction(),
        Direction(),
        State.CONNECTING,
        10.0,
    )
    flow.original.bytes, flow.reply.bytes = 1300, 36_000_000
    if reached:
        flow.endpoint_local, flow.endpoint_remote = ("10.0.0.9", 40001), ("10.0.0.1", 80)
    assert flow.end(reason, CloseSide.CLIENT, 12.5)
    return closed_flow(flow, MONDAY, limits_json(Transport.TCP, FlowLimits()))


def line_of(flow: ClosedFlow, flow_log: FlowLog) -> str:
    lines = flow_log.lines([flow])
    assert (lines.count, lines.text.count(b"\n"), lines.text[-1:]) == (1, 1, b"\n")
    return lines.text.decode()[:-1]


async def test_json_has_every_key_of_the_row() -> None:
    flow = closed()
    row = json.loads(flow.row)
    record = json.loads(line_of(flow, FlowLog()))
    assert list(record)[:3] == ["time", "level", "event"]
    assert (record["level"], record["event"], record["duration"]) == ("info", "flow", 2.5)
    assert {key: record[key] for key in row} == row
    assert record["time"] == "2023-11-14T22:13:32.500Z"


async def test_text_shows_both_pairs() -> None:
    assert line_of(closed(), FlowLog(kind="text")) == (
        "2023-11-14T22:13:32.500Z flow    1 tcp web "
        "192.0.2.7:51000 -> 192.0.2.1:8080 | 10.0.0.9:40001 -> 10.0.0.1:80 "
        "1.3KiB > 34.3MiB < 2s finished client"
    )


async def test_text_remarks_what_is_not_ordinary() -> None:
    flow = closed(CloseReason.CLIENT_RESET)
    row = json.loads(flow.row)
    row |= {"half_closed": flow.closed - 1.5, "slowed_by": "client"}
    row["unsent"] = {"original": 0, "reply": 98304}
    line = line_of(flow._replace(row=json.dumps(row)), FlowLog(kind="text"))
    assert line.endswith(
        "client_reset client; half-closed 1s, 96KiB of reply unsent, slowed by client"
    )


async def test_text_tells_by_whom_a_client_comes_and_for_which_server() -> None:
    flow = closed()
    row = json.loads(flow.row)
    row["server_name"] = "www.example.org\x1b"
    row["client"]["via"] = {"local": "10.0.0.9:443", "remote": "10.0.0.2:4711"}
    line = line_of(flow._replace(row=json.dumps(row)), FlowLog(kind="text"))
    assert line.endswith("finished client; for www.example.org\\x1b, via 10.0.0.2:4711")


async def test_text_without_an_endpoint() -> None:
    flow = closed(CloseReason.NO_ENDPOINT, reached=False)
    assert "| - -> - " in line_of(flow, FlowLog(kind="text"))


async def test_colours_are_for_terminals() -> None:
    assert "\x1b[" not in line_of(closed(), FlowLog(kind="text"))
    coloured = FlowLog(kind="text", colour=True)
    assert "\x1b[32mfinished\x1b[0m" in line_of(closed(), coloured)
    assert "\x1b[33mclient_reset\x1b[0m" in line_of(closed(CloseReason.CLIENT_RESET), coloured)


async def test_only_who_was_there_all_day_needs_no_date() -> None:
    watched = line_of(closed(), FlowLog(kind="text", watched=True))
    assert len(watched.split(" ")[0]) == len("22:13:32")


@pytest.mark.parametrize("kind", ["json", "text"])
async def test_no_name_can_forge_a_line(kind: str) -> None:
    line = line_of(closed(listener=EVIL), FlowLog(kind=kind))  # type: ignore[arg-type]
    assert line.isprintable()


@pytest.mark.parametrize(
    ("reason", "transport", "quiet"),
    [
        ("finished", "tcp", True),
        ("killed", "tcp", True),
        ("drained", "udp", True),
        ("idle_timeout", "udp", True),
        ("idle_timeout", "tcp", False),
        ("client_reset", "tcp", False),
        ("internal", "tcp", False),
    ],
)
async def test_what_counts_as_an_error(reason: str, transport: str, quiet: bool) -> None:
    end = CloseReason(reason), Transport(transport)
    assert is_quiet(*end) is quiet
    assert FlowLog("errors").wants(*end) is not quiet
    assert FlowLog("all").wants(*end)
    assert not FlowLog("off").wants(*end)


async def test_lines_come_together_and_are_cut_between() -> None:
    lines = FlowLog().lines([closed(), closed(), closed()])
    assert lines.count == 3
    assert len(lines.text.splitlines()) == 3
    assert lines.first(3) is lines
    two = lines.first(2)
    assert (two.count, two.text.splitlines()) == (2, lines.text.splitlines()[:2])
    assert two.text.endswith(b"\n")
    assert lines.first(0) == Lines(b"", 0) == FlowLog().lines([])


async def test_what_is_logged_can_be_sent_to_a_worker() -> None:
    flow_log = FlowLog("errors", "text", colour=True, watched=True)
    assert pickle.loads(pickle.dumps(flow_log)) == flow_log
