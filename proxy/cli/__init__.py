"""The command ``sockpair``.

Each subcommand lives in a module that is imported only when it is called, so that
``sockpair check`` does not pay for the relay, nor ``sockpair flows`` for the admin server.

Exit codes: 0 done, 1 failed, 2 usage. stdout is the product, stderr is for people.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from proxy import __version__

# Subcommand -> the module that defines a click command of the same name (with _ for -).
COMMANDS: Final = {
    "run": "proxy.cli.run",
    "check": "proxy.cli.check",
    "schema": "proxy.cli.check",
    "demo": "proxy.cli.demo",
    "flows": "proxy.cli.table",
    "find": "proxy.cli.table",
    "kill": "proxy.cli.table",
    "status": "proxy.cli.table",
}


class LazyGroup(click.Group):
    """A group that knows the names of its commands, and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The subcommands, in the order of a first visit."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one subcommand."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sockpair")
def main() -> None:
    """A layer-4 TCP/UDP proxy that keeps, and shows, the table of its socket pairs."""
