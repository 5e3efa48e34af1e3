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
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, Final, TypeVar

import click

from proxy.cli import completion
from proxy.cli.client import AdminClient, NotThereError, Rows, admin_option
from proxy.cli.columns import LISTEN_COLUMNS, Column, flow_columns, write_table
from proxy.cli.drain import drain_line
from proxy.core.address import Transport
from proxy.core.flow import State
from proxy.core.printable import printable
from proxy.core.query import SORTS
from proxy.core.units import format_span
from proxy.core.unix import listening_url
from proxy.observe.media import does_not_answer

FLOWS: Final = "/api/v1/flows"
SHOWN_FOUND: Final = 100
"""Flows ``find`` shows: the address of a listener belongs to all its flows."""

NOTHING: Final = "no live flow matches"

Command = TypeVar("Command", bound=Callable[..., Any])


def _words(enum: type[StrEnum]) -> click.Choice[str]:
    """The words themselves, in any case: click would offer the names of the members."""
    return click.Choice([member.value for member in enum], case_sensitive=False)


def _flow_ids(
    _context: click.Context, _argument: click.Parameter, words: tuple[str, ...]
) -> tuple[int, ...]:
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) <= 18):
            shown = f'"{printable(word)}" is not the ID of a flow'
            raise click.BadParameter(f'{shown}: a whole number, as "sockpair flows" shows it')
    return tuple(map(int, words))


FILTERS: Final = {
    "listener": click.option(
        "--listener",
        metavar="NAME",
        shell_complete=completion.LISTENERS,
        help="Flows of one listener.",
    ),
    "client": click.option(
        "--client", metavar="CIDR", help="Client in this prefix; or ADDR, or ADDR:PORT."
    ),
    "endpoint": click.option(
        "--endpoint",
        metavar="CIDR",
        shell_complete=completion.ADDRESSES,
        help="Endpoint in this prefix; or ADDR, or ADDR:PORT.",
    ),
    "state": click.option("--state", type=_words(State), help="Flows in this state."),
    "transport": click.option(
        "--transport", type=_words(Transport), help="Flows of this transport."
    ),
    "server_name": click.option(
        "--server-name",
        metavar="NAME",
        help="TLS server name; also *.NAME for one label before it, or .NAME for any number.",
    ),
    "min_bytes": click.option(
        "--min-bytes", metavar="SIZE", help="At least so much, such as 10MiB."
    ),
}
"""The options that choose flows; their names are the API's."""


def filter_options(*names: str) -> Callable[[Command], Command]:
    """Give a command these options that choose flows."""

    def give(command: Command) -> Command:
        for name in reversed(names):
            command = FILTERS[name](command)
        return command

    return give


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
@filter_options(*FILTERS)
@click.option("--sort", type=click.Choice([*SORTS]), help="Largest or latest first; id counts up.")
@click.option("--limit", type=click.IntRange(0), help="At most so many rows; 0: all.")
@click.option(
    "--recent",
    is_flag=True,
    help="Recently closed flows in place of live ones, the last active first.",
)
@click.option(
    "--evictable", is_flag=True, help="What would go if the table were full, in that order."
)
@click.option(
    "--for",
    "newcomer",
    type=click.Choice(["tcp", "udp"], case_sensitive=False),
    help="With --evictable: for a newcomer of which kind; tcp, which unix is like, if not said.",
)
@click.option("-l", "--listen", is_flag=True, help="Listening sockets in place of flows.")
@click.option("-b", "--bytes", "exact", is_flag=True, help="Bytes as plain numbers.")
@click.option(
    "-w",
    "--wide",
    is_flag=True,
    help="Also the client's proxy and server name, what slows a flow, and of closed ones what "
    "was lost.",
)
@output_option("table", "json", "ndjson")
@admin_option
def flows(admin: str, output: str, listen: bool, exact: bool, wide: bool, **params: Any) -> None:
    """Show the flow table: every flow with both its socket pairs.

    CLIENT and LOCAL are the client's socket pair, OUTBOUND and ENDPOINT that of the upstream side.
    STAYS, where there are such flows, is why one would not go along with a restart or an upgrade.
    """
    client = AdminClient(admin)
    recent, evictable = params["recent"], params["evictable"]
    if params["newcomer"] and not evictable:
        raise click.UsageError("--for goes with --evictable")
    params |= {name: "true" if params[name] else None for name in ("recent", "evictable")}
    if listen:
        _write(_listening(client, params), output, LISTEN_COLUMNS)
        return
    if recent and params["sort"] is None:
        params["sort"] = "active"  # so that --limit does not leave the oldest that are kept
    if output != "table":
        _pass_on(client.lines(FLOWS, params), output)
        return
    answer = client.get(FLOWS, params)
    rows = answer["flows"]
    columns = flow_columns(
        recent=recent,
        exact=exact,
        now=time.time(),
        evictable=evictable,
        stays=_any_stays(rows),
        wide=wide,
    )
    write_table([*columns], rows)
    _note_missing(len(rows), answer["matched"], answer.get("silent", ()))


@click.command()
@click.argument("address", metavar="[ADDR:]PORT")
@click.option("-b", "--bytes", "exact", is_flag=True, help="Bytes as plain numbers.")
@output_option("table", "json", "ndjson")
@admin_option
def find(admin: str, output: str, exact: bool, address: str) -> None:
    """Show which flow owns an address on either of its pairs, live or recently closed.

    A port alone (80, or :80) stands for it at any address.
    """
    port = address.removeprefix(":")
    wanted = {"port": port} if port.isdigit() else {"address": address}
    answer = AdminClient(admin).get("/api/v1/find", {**wanted, "limit": SHOWN_FOUND})
    rows = answer["flows"]
    silent = answer.get("silent", ())
    if not rows:
        what = f"port {port}" if port.isdigit() else printable(address)
        but = f"; but {does_not_answer(silent)}" if silent else ""
        nobody = f"no flow has {what} on either pair, live or recently closed"
        raise click.ClickException(f"{nobody}{but}")
    if output == "table":
        _write_found(rows, exact=exact)
    else:
        _write(rows, output, ())
    _note_missing(len(rows), answer["matched"], silent)


@click.command()
@click.argument("flow_ids", metavar="[ID]...", nargs=-1, callback=_flow_ids)
@filter_options(*FILTERS)
@click.option("--all", "everything", is_flag=True, help="Every live flow.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@admin_option
def kill(
    admin: str, flow_ids: tuple[int, ...], everything: bool, yes: bool, **filters: str | None
) -> None:
    """End flows by their IDs, or all that match."""
    client = AdminClient(admin)
    chosen = {name: value for name, value in filters.items() if value is not None}
    ways = [bool(flow_ids), bool(chosen), everything].count(True)
    if ways != 1:
        problem = "say which" if ways == 0 else "not both"
        raise click.UsageError(f"{problem}: IDs of flows, or filters, or --all")
    if flow_ids:
        _kill_each(client, flow_ids)
        return
    if not yes:
        _ask_first(client, chosen)
    answer = client.delete(FLOWS, chosen or {"all": "true"})
    if not answer["killed"]:
        raise click.ClickException(NOTHING)
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


def _kill_each(client: AdminClient, flow_ids: Iterable[int]) -> None:
    """Kill every one that is live, and fail in the end if one was not."""
    missed = 0
    for flow_id in dict.fromkeys(flow_ids):
        try:
            client.delete(f"{FLOWS}/{flow_id}")
        except NotThereError as exc:
            missed += 1
            exc.show()
        else:
            click.echo(f"killed flow {flow_id}")
    if missed:
        sys.exit(1)


def _ask_first(client: AdminClient, chosen: dict[str, str]) -> None:
    """Say how many would be killed, and go on only if the user agrees."""
    if not _is_terminal():
        raise click.UsageError("killing by filters asks first; without a terminal add --yes")
    matched = client.get(FLOWS, {**chosen, "limit": 1})["matched"]
    if not matched:
        raise click.ClickException(NOTHING)
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


def _pass_on(lines: Rows, output: str) -> None:
    """Write the rows that came, each a line, as they are."""
    rows = lines.text.split("\n")[:-1]
    if output == "json":
        click.echo(f"[{', '.join(rows)}]")
    else:
        click.echo(lines.text, nl=False)
    _note_missing(len(rows), lines.matched, lines.silent)


def _note_missing(shown: int, matched: int, silent: Sequence[int]) -> None:
    """Say on standard error when there is more than was shown."""
    if shown < matched:
        click.echo(f"{shown} of {matched} flows shown", err=True)
    if silent:
        click.echo(f"{does_not_answer(silent)}: flows are missing", err=True)


def _write_found(rows: list[Any], *, exact: bool) -> None:
    """Live flows, then closed ones, each under heads of their own."""
    live = [row for row in rows if row["close_reason"] is None]
    closed = [row for row in rows if row["close_reason"] is not None]
    if live:
        _write_flows(live, recent=False, exact=exact)
    if live and closed:
        click.echo()
    if closed:
        _write_flows(closed, recent=True, exact=exact)


def _write_flows(rows: list[Any], *, recent: bool, exact: bool) -> None:
    now, stays = time.time(), _any_stays(rows)
    write_table(flow_columns(recent=recent, exact=exact, now=now, stays=stays), rows)


def _any_stays(rows: Iterable[Any]) -> bool:
    """Whether any flow would stay behind in its process."""
    return any(row.get("stays") for row in rows)


def _write(rows: Iterable[Any], output: str, columns: Iterable[Column]) -> None:
    if output == "json":
        click.echo(json.dumps(rows))
    elif output == "ndjson":
        click.echo("".join(f"{json.dumps(row)}\n" for row in rows), nl=False)
    else:
        write_table([*columns], rows)


def _status_lines(answer: dict[str, Any], now: float) -> list[str]:
    up = format_span(now - answer["started"])
    problems = answer["not_ready"]
    lines = [
        f"sockpair {answer['version']}, pid {answer['pid']}, up {up}{_mood(answer)}",
        f"flows        {answer['flows']} of {answer['table_limit']}",
        f"descriptors  {answer['file_descriptors']} of {answer['file_descriptor_limit']}",
        f"ready        {'no' if problems or answer['draining'] else 'yes'}",
        *(f"             {problem}" for problem in problems),
        *(f"draining     {drain_line(row)}" for row in answer["drains"]),
    ]
    workers = answer["workers"]
    if len(workers) > 1 or any(row.get("silent") for row in workers):
        lines += [f"worker       {_worker(row)}" for row in workers]
    for row in answer.get("predecessors", ()):
        lines.append(f"predecessor  pid {row['pid']}, {_count(row['flows'])}, draining")
    rows = [
        (row["listener"], listening_url(row["transport"], row["local"]), row["upstream"])
        for row in answer["listening"]
    ]
    names = max((len(name) for name, _, _ in rows), default=0)
    places = max((len(where) for _, where, _ in rows), default=0)
    for name, where, upstream in rows:
        lines.append(f"listen       {name:{names}}  {where:{places}}  to {upstream}")
    return lines


def _worker(row: dict[str, Any]) -> str:
    silent = row.get("silent")
    more = "" if silent is None else f", silent for {format_span(silent)}"
    return f"pid {row['pid']}, {_count(row['flows'])}{more}"


def _mood(answer: dict[str, Any]) -> str:
    return ", draining" if answer["draining"] else ""


def _count(flows: int) -> str:
    return "1 flow" if flows == 1 else f"{flows} flows"
