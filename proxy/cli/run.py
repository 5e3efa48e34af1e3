"""``sockpair run``: relay what the configuration says, until SIGTERM or SIGINT.

SIGHUP reloads the configuration; see ``control.signals``.
"""

from __future__ import annotations

import gc
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


def spare_collector() -> None:
    """Have Python's garbage collector look seldom, and never at what the program is made of.

    Flows are freed by their reference counts; looking for circles among tens of thousands of live
    ones costs milliseconds, in which nothing is relayed.
    """
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
