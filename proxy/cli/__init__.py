"""The command ``sockpair``.

Each subcommand lives in a module that is imported only when it is called, so that
``sockpair check`` does not pay for the relay, nor ``sockpair flows`` for the admin server.

Exit codes: 0 done, 1 failed, 2 usage. stdout is the product, stderr is for people.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from proxy import __version__
from proxy.cli.standard import fill_standard_descriptors
from proxy.cli.stdout import ending_in_order

# Subcommand -> the module that defines a click command of the same name (with _ for -).
COMMANDS: Final = {
    "run": "proxy.cli.run",
    "check": "proxy.cli.check",
    "schema": "proxy.cli.check",
    "demo": "proxy.cli.demo",
    "flows": "proxy.cli.table",
    "find": "proxy.cli.table",
    "top": "proxy.cli.top",
    "events": "proxy.cli.events",
    "kill": "proxy.cli.table",
    "status": "proxy.cli.table",
    "upstreams": "proxy.cli.upstreams",
    "explain": "proxy.cli.explain",
    "reload": "proxy.cli.reload",
    "upgrade": "proxy.cli.upgrade",
    "drain": "proxy.cli.drain",
    "disable": "proxy.cli.administer",
    "enable": "proxy.cli.administer",
    "limit": "proxy.cli.limit",
    "limits": "proxy.cli.limit",
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; for one that there is not, name the nearest."""
        if args[0] not in COMMANDS:
            from difflib import get_close_matches  # noqa: PLC0415 - its import is felt

            if near := get_close_matches(args[0], COMMANDS, 1):
                ctx.fail(f'no such command "{args[0]}"; did you mean "{near[0]}"?')
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; whoever does not take its output gets no traceback for it."""
        fill_standard_descriptors()
        with ending_in_order():
            return super().main(*args, **kwargs)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sockpair")
def main() -> None:
    """A layer-4 TCP/UDP proxy that keeps, and shows, the table of its socket pairs."""
