"""``sockpair drain``: empty a listener or an endpoint, and watch it.

The drain goes on in the running sockpair whether anybody watches or not. Progress goes to standard
error: one line that is redrawn on a terminal, a line for each change in a pipe. The result, one
line a target, goes to standard output.
"""

from __future__ import annotations

import sys
from threading import Event
from typing import Any, Final

import click

from proxy.cli import completion
from proxy.cli.client import AdminClient, admin_option
from proxy.cli.completion import upstream_option
from proxy.core.printable import printable
from proxy.core.units import format_span, parse_duration

LOOK_AGAIN: Final = 0.5
"""Seconds between two looks at a drain."""


def _timeout(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    if text is not None:
        try:
            parse_duration(text)
        except ValueError as exc:
            raise click.BadParameter(str(exc)) from exc
    return text


@click.command()
@click.argument(
    "target",
    metavar="[LISTENER | HOST:PORT]",
    required=False,
    shell_complete=completion.targets,
)
@click.option(
    "--endpoint",
    metavar="HOST:PORT",
    shell_complete=completion.ENDPOINTS,
    help="The same as HOST:PORT without a word.",
)
@upstream_option
@click.option(
    "--timeout",
    metavar="TIME",
    callback=_timeout,
    help="For flows to end by themselves; by default engine.drain_timeout.",
)
@click.option("--now", is_flag=True, help="End flows at once, paced; as --timeout 0s.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the end.")
@admin_option
def drain(
    admin: str,
    target: str | None,
    endpoint: str | None,
    upstream: str | None,
    timeout: str | None,
    now: bool,
    no_wait: bool,
) -> None:
    """Empty a listener, or an endpoint, which is written as in the file.

    It gets no new flows. Those it has may end by themselves; what is left after a while is ended,
    so many a second. "sockpair reload" opens it again.
    """
    if (target is None) == (endpoint is None):
        raise click.UsageError("say what to drain: a LISTENER, or the HOST:PORT of an endpoint")
    listener = target
    if target is not None and ":" in target:  # which no name of a listener has
        listener, endpoint = None, target
    if upstream is not None and endpoint is None:
        raise click.UsageError("--upstream tells which upstream's HOST:PORT, which is missing")
    if now and timeout is not None:
        raise click.UsageError("not both: --now, or --timeout")
    params = {
        "listener": listener,
        "endpoint": endpoint,
        "upstream": upstream,
        "timeout": "0s" if now else timeout,
    }
    client = AdminClient(admin)
    targets = client.post("/api/v1/drain", params)["draining"]
    if not no_wait:
        _watch(client, targets)


def drain_line(row: dict[str, Any]) -> str:
    """Say how a drain goes on, in a line."""
    ended = f", {row['ended']} ended" if row["ended"] else ""
    if row["phase"] == "done":
        return f"{_name(row)}: drained{ended}"
    what = "ending them" if row["phase"] == "ending" else "waiting for them to end"
    left = format_span(row["seconds_left"])
    return f"{_name(row)}: {_count(row['flows'])} left{ended}; {what}, done within {left}"


def _watch(client: AdminClient, targets: list[dict[str, str]]) -> None:
    """Show progress until all have drained."""
    progress = _Progress()
    while True:
        rows = _rows_of(client.get("/api/v1/status")["drains"], targets)
        progress.show([drain_line(row) for row in rows if row["phase"] != "done"])
        if len(rows) < len(targets):
            progress.clear()
            raise click.ClickException("a reload, or a restart, has ended the drain")
        if all(row["phase"] == "done" for row in rows):
            break
        Event().wait(LOOK_AGAIN)
    progress.clear()
    for row in rows:
        click.echo(printable(drain_line(row)))


class _Progress:
    """Writes where a drain is: over the line before on a terminal, else when it has changed."""

    def __init__(self) -> None:
        self._redraws = sys.stderr.isatty()
        self._shown = ""

    def show(self, lines: list[str]) -> None:
        text = printable("; ".join(lines))
        if not text:
            return
        if self._redraws:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        elif text.partition(";")[0] != self._shown.partition(";")[0]:
            click.echo(text, err=True)
        self._shown = text

    def clear(self) -> None:
        if self._redraws and self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)


def _rows_of(rows: list[dict[str, Any]], targets: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [row for row in rows if any(target.items() <= row.items() for target in targets)]


def _name(row: dict[str, Any]) -> str:
    if row["listener"] is not None:
        return f"listener {row['listener']}"
    if row["endpoint"] is not None:
        return f"endpoint {row['endpoint']} of upstream {row['upstream']}"
    return "everything"


def _count(flows: int) -> str:
    return "1 flow" if flows == 1 else f"{flows} flows"
