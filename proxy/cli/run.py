"""``sockpair run``: relay what the configuration says, until SIGTERM or SIGINT.

SIGHUP reloads the configuration; see ``control.signals``.
"""

from __future__ import annotations

import signal
import sys

import click
import trio

from proxy.cli.check import FileCommand, config_option, load_or_exit
from proxy.cli.serve import serve
from proxy.control.listen import BindError
from proxy.control.names import ResolveError
from proxy.control.outbound import OptionError
from proxy.control.signals import obey_signals
from proxy.engine.garbage import spare_collector


@click.command(cls=FileCommand)
@config_option
def run(path: str) -> None:
    """Relay what the configuration says, until SIGTERM or SIGINT."""
    config = load_or_exit(path)
    spare_collector()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # before and after the house waits for signals
    try:
        trio.run(serve, config, obey_signals, path)
    except (BindError, OptionError, ResolveError) as exc:
        for line in str(exc).splitlines():
            click.echo(f"sockpair: {line}", err=True)
        sys.exit(1)
