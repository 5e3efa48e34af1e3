"""The commands that read and change the flow table: ``flows``, ``find``, ``kill``, ``status``.

Strategy: each command asks the admin socket and writes the answer: aligned text for people, JSON
for programs. The options are the parameters of the API, which checks them; only closed sets of
words are checked here, so that the shell's completion and the help know them.

JSON is the product: ``-o json`` is one array of rows, ``-o ndjson`` one row a line, exactly as the
API gives them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Final, TypeVar

import click

from proxy.cli.client import AdminClient, admin_option
from proxy.cli.columns import LISTEN_COLUMNS, Column, flow_columns, write_table
from proxy.core.address import Transport
from proxy.core.flow import State
from proxy.core.printable import printable
from proxy.core.query import SORTS
from proxy.core.units import format_duration

FLOWS: Final = "/api/v1/flows"
SHOWN_FOUND: Final = 100
"""Flows ``find`` shows: the address of a listener belongs to all its flows."""

Command = TypeVar("Command", bound=Callable[..., Any])


def _words(enum: type[StrEnum]) -> click.Choice[str]:
    """The words themselves: click would offer the names of the members."""
    return click.Choice([member.value for member in enum])


def filter_options(command: Command) -> Command:
    """Give a command the options that choose flows; their names are the API's."""
    cidr = "CIDR"
    options = (
        click.option("--listener", metavar="NAME", help="Flows of one listener."),
        click.option("--client", metavar=cidr, help="Client in this prefix, or of this address."),
        click.option("--endpoint", metavar=cidr, help="Endpoint in this prefix."),
        click.option("--state", type=_words(State), help="Flows in this state."),
        click.option("--transport", type=_words(Transport), help="TCP or UDP only."),
        click.option("--min-bytes", metavar="SIZE", help="At least so much, such as 10MiB."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def output_option(*formats: str) -> Callable[[Command], Command]:
    """Give a command the option ``-o``; the first format is the default."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="For people, or for programs.",
    )


@click.command()
@filter_options
@click.option("--sort", type=click.Choice([*SORTS]), help="Largest or latest first; id counts up.")
@click.option("--limit", type=click.IntRange(0), help="At most so many rows.")
@click.option("--recent", is_flag=True, help="Recently closed flows in place of live ones.")
@click.option("-l", "--listen", is_flag=True, help="Listening sockets in place of flows.")
@click.option("-b", "--bytes", "exact", is_flag=True, help="Bytes as plain numbers.")
@output_option("table", "json", "ndjson")
@admin_option
def flows(admin: str, output: str, listen: bool, exact: bool, **params: Any) -> None:
    """Show the flow table: every flow with both its socket pairs.

    CLIENT and LOCAL are the client's socket pair, VIA and ENDPOINT that of the upstream side.
    """
    client = AdminClient(admin)
    recent = params.pop("recent")
    if listen:
        _write(_listening(client, {**params, "recent": recent or None}), output, LISTEN_COLUMNS)
        return
    answer = client.get(FLOWS, {**params, "recent": "true" if recent else None})
    _write_flows(answer["flows"], output, recent=recent, exact=exact)
    _note_cut(answer)


@click.command()
@click.argument("address", metavar="ADDR:PORT")
@click.option("-b", "--bytes", "exact", is_flag=True, help="Bytes as plain numbers.")
@output_option("table", "json", "ndjson")
@admin_option
def find(admin: str, output: str, exact: bool, address: str) -> None:
    """Show which flow owns an address on either of its pairs, live or recently closed."""
    answer = AdminClient(admin).get("/api/v1/find", {"address": address, "limit": SHOWN_FOUND})
    rows = answer["flows"]
    if not rows:
        message = f"no flow has {printable(address)} on either pair, live or recently closed"
        raise click.ClickException(message)
    if output != "table":
        _write(rows, output, ())
    for recent in (False, True) if output == "table" else ():
        part = [row for row in rows if (row["close_reason"] is not None) == recent]
        if part:
            _write_flows(part, output, recent=recent, exact=exact)
    _note_cut(answer)


@click.command()
@click.argument("flow_id", metavar="[ID]", type=click.IntRange(1), required=False)
@filter_options
@click.option("--all", "everything", is_flag=True, help="Every live flow.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@admin_option
def kill(
    admin: str, flow_id: int | None, everything: bool, yes: bool, **filters: str | None
) -> None:
    """End one flow by its id, or all that match."""
    client = AdminClient(admin)
    chosen = {name: value for name, value in filters.items() if value is not None}
    if [flow_id is not None, bool(chosen), everything].count(True) != 1:
        raise click.UsageError("say which: the ID of a flow, or filters, or --all")
    if flow_id is not None:
        client.delete(f"{FLOWS}/{flow_id}")
        click.echo(f"killed flow {flow_id}")
        return
    if not yes:
        _ask_first(client, chosen)
    answer = client.delete(FLOWS, chosen or {"all": "true"})
    click.echo(f"killed {_count(answer['killed'])}")


@click.command()
@output_option("text", "json")
@admin_option
def status(admin: str, output: str) -> None:
    """Show how the running sockpair is."""
    answer = AdminClient(admin).get("/api/v1/status")
    if output == "json":
        click.echo(json.dumps(answer))
        return
    for line in _status_lines(answer, time.time()):
        click.echo(printable(line))


def _ask_first(client: AdminClient, chosen: dict[str, str]) -> None:
    """Say how many would be killed, and go on only if the user agrees."""
    if not _is_terminal():
        raise click.UsageError("killing by filters asks first; without a terminal add --yes")
    matched = client.get(FLOWS, {**chosen, "limit": 1})["matched"]
    if not matched:
        raise click.ClickException("no live flow matches")
    click.confirm(f"kill {_count(matched)}?", abort=True, err=True)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _listening(client: AdminClient, params: dict[str, Any]) -> list[dict[str, Any]]:
    """Listening sockets; of the filters only those that a socket without a client can have."""
    wanted = {name: value for name, value in params.items() if value is not None}
    if other := wanted.keys() - {"listener", "transport"}:
        option = min(other).replace("_", "-")
        raise click.UsageError(f"--listen shows sockets that have no flow: leave out --{option}")
    rows = client.get("/api/v1/status")["listening"]
    return [{**row, "state": "listen"} for row in rows if wanted.items() <= row.items()]


def _note_cut(answer: dict[str, Any]) -> None:
    """Say on standard error when there is more than was shown."""
    shown, matched = len(answer["flows"]), answer["matched"]
    if shown < matched:
        click.echo(f"{shown} of {matched} flows shown", err=True)


def _write_flows(rows: list[Any], output: str, *, recent: bool, exact: bool) -> None:
    _write(rows, output, flow_columns(recent=recent, exact=exact, now=time.time()))


def _write(rows: Iterable[Any], output: str, columns: Iterable[Column]) -> None:
    if output == "json":
        click.echo(json.dumps(rows))
    elif output == "ndjson":
        click.echo("".join(f"{json.dumps(row)}\n" for row in rows), nl=False)
    else:
        write_table([*columns], rows)


def _status_lines(answer: dict[str, Any], now: float) -> list[str]:
    up = format_duration(max(0.0, now - answer["started"]))
    problems = answer["not_ready"]
    lines = [
        f"sockpair {answer['version']}, pid {answer['pid']}, up {up}{_mood(answer)}",
        f"flows        {answer['flows']} of {answer['table_limit']}",
        f"descriptors  {answer['file_descriptors']} of {answer['file_descriptor_limit']}",
        f"ready        {'no' if problems or answer['draining'] else 'yes'}",
        *(f"             {problem}" for problem in problems),
    ]
    for row in answer["listening"]:
        where = f"{row['transport']}://{row['local']}"
        lines.append(f"listen       {row['listener']}  {where}  to {row['upstream']}")
    return lines


def _mood(answer: dict[str, Any]) -> str:
    return ", draining" if answer["draining"] else ""


def _count(flows: int) -> str:
    return "1 flow" if flows == 1 else f"{flows} flows"
