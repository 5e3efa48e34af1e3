"""``sockpair check`` and ``sockpair schema``: whether a file is right, and what it may say.

A valid file is summed up on stdout, so that a person sees what would be forwarded where. Every
problem is one line on stderr, ``FILE:LINE: KEY: MESSAGE``, as editors and CI read it. Nothing is
opened, resolved or bound.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from proxy.config.load import DEFAULT_FILE, ConfigError, Problem, load
from proxy.config.model import Config
from proxy.config.schema import schema_text
from proxy.core.printable import printable

config_option = click.option(
    "-c",
    "--config",
    "path",
    default=DEFAULT_FILE,
    show_default=True,
    metavar="FILE",
    help='The configuration; "-" is standard input.',
)


class FileCommand(click.Command):
    """A command whose file is named with -c, and which says so to those who leave that out."""

    allow_extra_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; there are none but options."""
        rest = super().parse_args(ctx, args)
        if ctx.args:
            word = printable(ctx.args[0])
            ctx.fail(f'unexpected argument "{word}"; did you mean -c {word}?')
        return rest


def load_or_exit(path: str) -> Config:
    """Read a configuration; report every problem on stderr, and exit with 1 if there is one."""
    try:
        return load(path, warn=_tell)
    except ConfigError as exc:
        for problem in exc.problems:
            _tell(problem)
        sys.exit(1)


@click.command(cls=FileCommand)
@config_option
def check(path: str) -> None:
    """Check a configuration file, and report every problem it has."""
    config = load_or_exit(path)
    click.echo(f"{printable(path)}: valid")
    for line in summary(config):
        click.echo(f"  {line}")


@click.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    click.echo(schema_text(), nl=False)


def summary(config: Config) -> Iterator[str]:
    """Say in a line each, aligned, what is forwarded where and how to reach the admin."""
    rows: list[tuple[str, str, str, str]] = []
    for name, listener in config.listener.items():
        head = name, str(listener.listen)
        for upstream in listener.upstreams:
            rows.append((*head, upstream, _endpoints(config, upstream)))
            head = "", "by server name"
    names, addresses, upstreams, _ = (max(map(len, cells)) for cells in zip(*rows, strict=True))
    for name, address, upstream, endpoints in rows:
        yield f"{name:{names}}  {address:{addresses}}  ->  {upstream:{upstreams}}  {endpoints}"
    yield f"admin: {config.admin.socket or 'off'}, http: {config.admin.http or 'off'}"


def _endpoints(config: Config, upstream: str) -> str:
    return ", ".join(map(str, config.upstream[upstream].endpoints))


def _tell(problem: Problem) -> None:
    click.echo(str(problem), err=True)
