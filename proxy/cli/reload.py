"""``sockpair reload``: have the running sockpair read its configuration again.

What changes is written on standard output, a line each with its sign before it; see
``config.plan``. What is wrong with the file goes to standard error as ``sockpair check`` would
write it, and then nothing has changed.
"""

from __future__ import annotations

import json
import sys

import click

from proxy.cli.client import AdminClient, admin_option
from proxy.cli.table import output_option
from proxy.core.printable import printable


@click.command()
@click.option("--dry-run", is_flag=True, help="Check the file and show the plan; change nothing.")
@output_option("text", "json")
@admin_option
def reload(admin: str, output: str, dry_run: bool) -> None:
    """Read the configuration again, and do what it says.

    A file with a problem changes nothing: the problems are shown, and the exit code is 1. What was
    drained by hand is opened again.
    """
    params = {"dry_run": "true"} if dry_run else {}
    answer = AdminClient(admin).post("/api/v1/reload", params)
    if output == "json":
        click.echo(json.dumps(answer))
    else:
        for line in answer["lines"]:
            click.echo(printable(line))
    for line in [*answer["problems"], *answer["warnings"]]:
        click.echo(printable(line), err=True)
    if answer["problems"]:
        sys.exit(1)
    click.echo(_summary(answer["lines"], dry_run=dry_run), err=True)


def _summary(lines: list[str], *, dry_run: bool) -> str:
    if dry_run:
        return "the file is valid; nothing was changed" if lines else "nothing would change"
    return "reloaded" if lines else "reloaded; nothing has changed"
