"""``sockpair upgrade``: have the running sockpair start its successor, and leave everything to it.

What the successor is made of is what is installed now, and the configuration file as it is now. If
it does not come up nothing has changed, and this says why.
"""

from __future__ import annotations

import json
import sys
from typing import Final

import click

from proxy.cli.client import AdminClient, admin_option
from proxy.cli.table import output_option
from proxy.core.printable import printable

TIMEOUT: Final = 240.0
"""Seconds for the answer; each step of an upgrade has a bound, and all of them come to less."""


@click.command()
@click.option(
    "--dry-run", is_flag=True, help="Have the new version check the file; change nothing."
)
@output_option("text", "json")
@admin_option
def upgrade(admin: str, output: str, dry_run: bool) -> None:
    """Start sockpair anew, with all its flows: a new version, or keys that need a restart.

    The new process gets the listening sockets and every flow that can be handed over; none of
    these is cut. What cannot drains in the old process, which ends then. If the new one does not
    come up everything goes on as it was, and the exit code is 1.
    """
    params = {"dry_run": "true"} if dry_run else {}
    answer = AdminClient(admin, TIMEOUT).post("/api/v1/upgrade", params)
    if output == "json":
        click.echo(json.dumps(answer))
    for line in answer["problems"]:
        click.echo(printable(line), err=True)
    if answer["problems"]:
        sys.exit(1)
    if output == "text":
        click.echo(_summary(answer))


def _summary(answer: dict[str, object]) -> str:
    if answer["dry_run"]:
        return "the new version accepts the file; nothing was changed"
    flows, stayed = answer["flows"], answer["stayed"]
    text = f"upgraded: version {answer['version']}, pid {answer['pid']}, {flows} flows handed over"
    return f"{text}; {stayed} drain in the old process" if stayed else text
