"""``sockpair explain``: what a new flow of a client would meet with, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import click

from proxy.cli import completion
from proxy.cli.client import AdminClient, admin_option
from proxy.cli.columns import Column, table_lines
from proxy.cli.table import output_option
from proxy.core.explanation import Outcome, Trust
from proxy.core.printable import printable

MARKS: Final = {True: "*", False: ""}

PROXIES: Final = {
    Trust.TRUSTED: "who comes is a trusted proxy, and must send a PROXY header",
    Trust.UNTRUSTED: "who comes is no trusted proxy: a PROXY header would be payload",
    Trust.REFUSED: "who comes is no trusted proxy, and nobody else may come",
}


@click.command()
@click.argument("transport", type=click.Choice(["tcp", "udp"]))
@click.argument("client", metavar="ADDR[:PORT]")
@click.argument("listener", metavar="LISTENER", shell_complete=completion.LISTENERS)
@click.option("--via", metavar="ADDR", help="The proxy whose PROXY header declares the client.")
@click.option("--server-name", metavar="NAME", help="That its ClientHello asks for, for routes.")
@click.option("--alpn", metavar="NAMES", help='Protocols it speaks, such as "h2,http/1.1".')
@output_option("text", "json")
@admin_option
def explain(admin: str, output: str, **params: str | None) -> None:
    """Say which rule, limit, route and endpoint a new flow of a client would get, and why.

    Nothing is sent, no token is taken, no turn moves on. It is what the next flow would get if it
    came now; another one may come before it. Limits and flows are those of the client's worker.
    """
    answer = AdminClient(admin).get("/api/v1/explain", params)
    if output == "json":
        click.echo(json.dumps(answer))
        return
    for line in _lines(answer):
        click.echo(line)


def _lines(answer: dict[str, Any]) -> Iterator[str]:
    asked = f"{answer['transport']} {answer['client']} to {answer['listener']}"
    yield f"{asked}: {_verdict(answer)}"
    yield f"worker    {answer['worker']}"
    yield f"rule      {_rule(answer['rule'])}"
    yield f"route     {_route(answer['route'])}"
    yield ""
    yield from table_lines(LIMITS, answer["limits"], width=None)
    if answer["waiting"]:
        yield f"who is over a limit of the listener waits: {_queue(answer['waiting'])}"
    yield ""
    yield from _choice(answer["endpoint"])


def _verdict(answer: dict[str, Any]) -> str:
    """What becomes of it, in a few words."""
    match answer["outcome"]:
        case Outcome.REFUSE:
            return f"refused, {answer['reason']}"
        case Outcome.WAIT:
            return f"waits, {answer['reason']}"
        case Outcome.NO_ENDPOINT:
            return f"admitted, and ends as {answer['reason']}"
    goes = "" if answer["evicted"] is None else f"; flow {answer['evicted']} is evicted for it"
    return f"admitted, {_next(answer['endpoint'])}{goes}"


def _next(choice: dict[str, Any]) -> str:
    if choice["original"]:
        return "to where the client means to go"
    names = [_name(row) for row in choice["candidates"] if row["next"]]
    return f"to {' or '.join(names)}"


def _name(row: dict[str, Any]) -> str:
    name, address = printable(row["endpoint"]), row["address"]
    return name if name == address else f"{name} ({address})"


def _rule(rule: dict[str, Any]) -> str:
    word = "admitted" if rule["admitted"] else "refused"
    by = f"by {rule['entry']}" if rule["entry"] else "no entry holds the client"
    proxy = PROXIES.get(rule["proxy"])
    return f"{word}, {by}" + (f"; {proxy}" if proxy else "")


def _route(route: dict[str, Any]) -> str:
    upstream = f"upstream {route['upstream']}"
    if not route["routes"]:
        return f"{upstream}; the listener has no routes"
    if route["pattern"] is None:
        return f"{upstream}; the default, as no route fits"
    return f'{upstream}, by "{printable(route["pattern"])}"'


def _choice(choice: dict[str, Any]) -> Iterator[str]:
    if choice["original"]:
        yield "the endpoint is where the client means to go"
        return
    yield from table_lines(CANDIDATES, choice["candidates"], width=None)
    yield f"chosen by {choice['balance']}; * the next"
    if choice["queue"]:
        yield f"who finds all of them full waits: {_queue(choice['queue'])}"


def _queue(queue: dict[str, Any]) -> str:
    return f"{queue['flows']} of {queue['ceiling']}, {queue['seconds']:g}s at most"


def _level(row: dict[str, Any]) -> str:
    rate = "" if row["per_second"] is None else f" at {row['per_second']:g}/s"
    return f"{row['level']:g}/{row['ceiling']:g}{rate}"


def _stands(row: dict[str, Any]) -> str:
    if row["refuses"]:
        return "refuses"
    if not row["reached"]:
        return "ok"
    return "another flow is evicted" if row["limit"] == "table_full" else "dry run"


def _limit(row: dict[str, Any]) -> str:
    return row["limit"] if row["order"] is None else f"{row['limit']}, limit {row['order']}"


def _flows(row: dict[str, Any]) -> str:
    return str(row["flows"]) if row["ceiling"] is None else f"{row['flows']}/{row['ceiling']}"


LIMITS: Final = [
    Column("LIMIT", _limit),
    Column("LEVEL", _level),
    Column("STANDS", _stands),
]

CANDIDATES: Final = [
    Column("", lambda row: MARKS[row["next"]]),
    Column("ENDPOINT", _name),
    Column("CONDITION", lambda row: row["condition"]),
    Column("WEIGHT", lambda row: f"{row['weight']}{' backup' if row['backup'] else ''}"),
    Column("FLOWS", _flows, number=True),
    Column("WHY", lambda row: row["why"]),
]
