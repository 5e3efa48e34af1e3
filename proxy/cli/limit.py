"""``sockpair limit`` and ``sockpair limits``: limits on the running sockpair, beside the file's.

The options are the parameters of the API, which checks them; ``--for`` cannot be the name of an
argument in Python, and is renamed here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import click

from proxy.cli import completion
from proxy.cli.client import AdminClient, admin_option
from proxy.cli.columns import Column, write_table
from proxy.cli.table import filter_options, output_option
from proxy.core.printable import printable
from proxy.core.units import format_bandwidth, format_size, format_span

LIMITS: Final = "/api/v1/limits"

FILTERS: Final = ("listener", "client", "endpoint", "id")

VALUES: Final[dict[str, Callable[[Any], str]]] = {
    "bandwidth": format_bandwidth,
    "flow_bandwidth": format_bandwidth,
    "flows": str,
    "bytes": format_size,
}


@click.command()
@filter_options("listener", "client", "endpoint")
@click.option("--id", "id", metavar="ID", help="One flow.")
@click.option(
    "--bandwidth", metavar="RATE", help="All of them together, each way: 10Mbit/s, 1MiB/s."
)
@click.option("--flow-bandwidth", metavar="RATE", help="Each of these flows, each way.")
@click.option("--flows", metavar="N", help="Live flows; further ones are refused.")
@click.option("--bytes", metavar="SIZE", help="Payload of each flow's life, as 10GiB; then RST.")
@click.option("--for", "lasting", metavar="TIME", help="Lift it after so long, such as 10m.")
@click.option(
    "--lift",
    metavar="NUMBER",
    type=click.IntRange(1),
    shell_complete=completion.ORDERS,
    help="Lift this limit.",
)
@admin_option
def limit(admin: str, lift: int | None, lasting: str | None, **params: str | None) -> None:
    """Limit flows of the running sockpair, those that live and new ones.

    The limit holds beside those of the file, and through a reload, until its time is over, it is
    lifted, or sockpair ends. With several workers each keeps its flows to it by itself; a client
    has one worker.
    """
    client = AdminClient(admin)
    given = {**params, "for": lasting}
    if lift is None:
        _ask_for("what to limit", params, VALUES)
        _ask_for("which flows", params, FILTERS)
        row = client.post(LIMITS, given)
        click.echo(f"limit {row['number']}: {_sentence(row)}")
        return
    if any(value is not None for value in given.values()):
        raise click.UsageError("--lift stands alone: a limit is lifted as a whole")
    row = client.delete(f"{LIMITS}/{lift}")
    click.echo(f"lifted limit {row['number']}: {_sentence(row)}")


@click.command()
@output_option("table", "json")
@admin_option
def limits(admin: str, output: str) -> None:
    """List every limit in force, and where it comes from.

    First those set with "sockpair limit", with the live flows that each is for, then those of the
    file, by listener.
    """
    answer = AdminClient(admin).get(LIMITS)
    if output == "json":
        click.echo(json.dumps(answer))
        return
    if answer["orders"]:
        write_table(_order_columns(time.time()), answer["orders"])
        click.echo()
    write_table(CONFIGURED, answer["configured"])


CONFIGURED: Final = [
    Column("LISTENER", lambda row: row["listener"]),
    Column("KEY", lambda row: row["key"]),
    Column("VALUE", lambda row: row["value"]),
]


def _order_columns(now: float) -> list[Column]:
    return [
        Column("LIMIT", lambda row: str(row["number"]), number=True),
        Column("FOR", _chosen),
        Column("VALUE", _allowed),
        Column("MATCHED", lambda row: str(row["matched"]), number=True),
        Column("SINCE", lambda row: format_span(now - row["since"]), number=True),
        Column("LEFT", lambda row: _left(row, now), number=True),
        Column("BY", lambda row: row["by"]),
    ]


def _ask_for(what: str, params: dict[str, str | None], names: Iterable[str]) -> None:
    """Refuse a command without any of these options; the API would name its parameters."""
    if all(params[name] is None for name in names):
        *most, last = (f"--{name.replace('_', '-')}" for name in names)
        raise click.UsageError(f"say {what}: {', '.join(most)} or {last}")


def _sentence(row: dict[str, Any]) -> str:
    matched = "1 live flow" if row["matched"] == 1 else f"{row['matched']} live flows"
    return printable(f"{_allowed(row)} for {_chosen(row)}; {matched}")


def _chosen(row: dict[str, Any]) -> str:
    return " ".join(f"{name} {row[name]}" for name in FILTERS if row[name] is not None)


def _allowed(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {write(row[name])}" for name, write in VALUES.items() if row[name] is not None
    )


def _left(row: dict[str, Any], now: float) -> str:
    return "-" if row["until"] is None else format_span(max(0.0, row["until"] - now))
