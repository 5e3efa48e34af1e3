"""``sockpair upstreams``: every endpoint, with its addresses, and how they are."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from proxy.cli import completion
from proxy.cli.client import AdminClient, admin_option
from proxy.cli.columns import Column, write_table
from proxy.cli.table import output_option
from proxy.core.condition import Condition
from proxy.core.units import format_span

GONE: Final = "gone"
"""Of an endpoint without an address: a former one that still has flows, or a name without any."""


@click.command()
@click.option(
    "--upstream", metavar="NAME", shell_complete=completion.UPSTREAMS, help="Of one upstream."
)
@output_option("table", "json", "ndjson")
@admin_option
def upstreams(admin: str, output: str, upstream: str | None) -> None:
    """Show the endpoints of every upstream: their condition, flows, failures and checks."""
    answer = AdminClient(admin).get("/api/v1/upstreams")["upstreams"]
    found = [each for each in answer if upstream in {None, each["upstream"]}]
    if not found and upstream is not None:
        there = ", ".join(each["upstream"] for each in answer)
        raise click.ClickException(f'there is no upstream "{upstream}"; there are: {there}')
    if output == "json":
        click.echo(json.dumps(found))
    elif output == "ndjson":
        click.echo("".join(f"{json.dumps(row)}\n" for row in found), nl=False)
    else:
        write_table(_columns(time.time()), list(_lines(found)))
        queues = "".join(_queue_lines(found))
        click.echo(f"\n{queues}" if queues else "", nl=False)


def _lines(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A line for each address; what is of the whole name stands in its first."""
    for upstream in found:
        for endpoint in upstream["endpoints"]:
            for number, address in enumerate(endpoint["addresses"] or [None]):
                whole = endpoint if number == 0 else None
                yield {
                    "upstream": upstream["upstream"],
                    "endpoint": endpoint,
                    "whole": whole,
                    "address": address,
                }


def _queue_lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each upstream in which flows wait, or had to."""
    for upstream in found:
        queue = upstream["queue"]
        if queue and (queue["waiting"] or queue["waited"] or queue["turned_away"]):
            yield (
                f"upstream {upstream['upstream']}: {queue['waiting']} of at most "
                f"{queue['ceiling']} flows wait for an endpoint; {queue['waited']} waited so far, "
                f"{queue['expired']} of them in vain, and {queue['turned_away']} found no room to "
                "wait\n"
            )


def _columns(now: float) -> list[Column]:
    return [
        Column("UPSTREAM", lambda line: line["upstream"]),
        Column("ENDPOINT", lambda line: line["endpoint"]["endpoint"]),
        Column("ADDRESS", _address),
        Column("CONDITION", _condition, coloured=True),
        Column("SINCE", lambda line: _since(line["address"], now), number=True),
        Column("WEIGHT", lambda line: _weight(line["address"]), number=True),
        Column("FLOWS", _flows, number=True),
        Column("TRIED", lambda line: _of_whole(line, "attempts"), number=True),
        Column("FAILED", _failed, number=True),
        Column("REASON", lambda line: _reason(line["address"], now)),
    ]


def _address(line: dict[str, Any]) -> str:
    """Where it differs from the name."""
    address = line["address"]
    if address is None or address["address"] == line["endpoint"]["endpoint"]:
        return ""
    return str(address["address"])


def _condition(line: dict[str, Any]) -> str:
    if line["address"] is not None:
        return str(line["address"]["condition"])
    return GONE if line["endpoint"]["draining"] else ""


def _since(address: dict[str, Any] | None, now: float) -> str:
    return format_span(now - address["since"]) if address and address["since"] else ""


def _weight(address: dict[str, Any] | None) -> str:
    if address is None:
        return ""
    share = "" if address["share"] == 100 else f" ({address['share']}%)"
    return f"{address['weight']}{share}{' backup' if address['backup'] else ''}"


def _flows(line: dict[str, Any]) -> str:
    address = line["address"]
    if address is None:
        return str(line["endpoint"]["flows"])
    ceiling = address["ceiling"]
    return str(address["flows"]) if ceiling is None else f"{address['flows']}/{ceiling}"


def _of_whole(line: dict[str, Any], key: str) -> str:
    return str(line["whole"][key]) if line["whole"] else ""


def _failed(line: dict[str, Any]) -> str:
    return str(sum(line["whole"]["failures"].values())) if line["whole"] else ""


def _reason(address: dict[str, Any] | None, now: float) -> str:
    """Why it is as it is; else what its last check showed."""
    if address is None:
        return ""
    if address["seconds_left"] is not None:
        return f"{address['reason']}; back in {format_span(address['seconds_left'])}"
    check = address["check"]
    is_usable = Condition(address["condition"]).is_usable
    if not check or check["last"] is None or (is_usable and address["reason"]):
        return str(address["reason"])
    last = f"checked {format_span(now - check['last'])} ago"
    return f"{check['reason']}, {last}" if check["reason"] else last
