"""``sockpair events``: what happens to flows, as it happens.

Strategy: the API does everything; here a message becomes a line. ``-o ndjson`` gives every message
as it came. For people a line is an event with both socket pairs; what is said about the stream
itself, that something is missing, goes to standard error, because it is no event of a flow.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import click

from proxy.cli.client import AdminClient, admin_option
from proxy.cli.table import filter_options, output_option
from proxy.core.events import EventKind
from proxy.core.printable import printable
from proxy.core.units import format_size, format_span

EVENTS: Final = "/api/v1/events"

GAPS: Final = {
    "slow": "this terminal, or pipe, was too slow",
    "lost": "there was more than could be told, or a worker died",
    "unknown": "it is too long ago, or was with other filters",
}

WIDEST: Final = max(map(len, EventKind))


@click.command()
@filter_options("listener", "client", "endpoint", "transport", "server_name", "min_bytes")
@click.option(
    "--event",
    "kinds",
    type=click.Choice([*EventKind], case_sensitive=False),
    multiple=True,
    help="Only these; may be given several times.",
)
@click.option("--snapshot", is_flag=True, help="Begin with the flows there are; so after a gap.")
@click.option("--counters", is_flag=True, help="What flows have moved, once a second; for ndjson.")
@click.option("--after", type=click.IntRange(0), metavar="SEQ", help="Go on after this event.")
@output_option("text", "ndjson")
@admin_option
def events(
    admin: str, output: str, kinds: tuple[str, ...], snapshot: bool, counters: bool, **params: Any
) -> None:
    """Tell what happens to flows, until interrupted.

    A flow is opened, established (TCP) or assured (UDP), half_closed, limited, closed. What could
    not be told is announced as a gap.
    """
    if counters and output == "text":
        raise click.UsageError("--counters is for programs: add -o ndjson")
    asked = {
        **params,
        "format": "ndjson",
        "event": ",".join(kinds) or None,
        "snapshot": str(snapshot).lower(),
        "counters": str(counters).lower(),
    }
    try:
        for message in AdminClient(admin).follow(EVENTS, asked):
            _tell(message, output)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return


def _tell(message: dict[str, Any], output: str) -> None:
    if output == "ndjson":
        click.echo(json.dumps(message, separators=(",", ":")))
    elif message["event"] == "gap":
        why = GAPS.get(message["reason"], message["reason"])
        click.echo(f"some events are missing: {why}", err=True)
    elif "flow" in message:
        click.echo(event_line(message))


def event_line(message: dict[str, Any]) -> str:
    """One event of a flow, or one row of the snapshot, for people."""
    flow, event = message["flow"], message["event"]
    when = message.get("time", flow["opened"])
    client, endpoint = flow["client"], flow["endpoint"]
    words = [
        _time_of_day(when),
        f"{event:<{WIDEST}}",
        f"{flow['id']} {flow['transport']} {flow['listener']}",
        f"{client['remote'] or '-'} -> {client['local'] or '-'} |",
        f"{endpoint['local'] or '-'} -> {endpoint['remote'] or '-'}",
        *_details(event, message),
    ]
    return printable(" ".join(words))


def _details(event: str, message: dict[str, Any]) -> list[str]:
    """What is new about the flow."""
    flow = message["flow"]
    moved = f"{format_size(flow['original']['bytes'])} > {format_size(flow['reply']['bytes'])} <"
    if event == EventKind.CLOSED:
        lived = format_span(flow["closed"] - flow["opened"])
        return [moved, lived, f"{flow['close_reason']} {flow['close_side']}"]
    if event == EventKind.LIMITED:
        return [message["limit"]]
    return [moved, flow["state"]] if event in {EventKind.HALF_CLOSED, "flow"} else []


def _time_of_day(unix: float) -> str:
    milliseconds = round(unix * 1000)
    clock = time.strftime("%H:%M:%S", time.localtime(milliseconds // 1000))
    return f"{clock}.{milliseconds % 1000:03d}"
