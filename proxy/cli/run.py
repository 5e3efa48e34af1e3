"""``sockpair run``: relay what the configuration says, until SIGTERM or SIGINT.

SIGHUP reloads the configuration, SIGUSR2 leaves what lives to a successor; see ``control.signals``.
"""

from __future__ import annotations

import os
import signal
import sys

import click
import trio

from proxy.cli.check import FileCommand, config_option, load_or_exit
from proxy.cli.serve import serve
from proxy.config.model import Config
from proxy.control.endpoints import ResolveError
from proxy.control.inherited import Inheritance, take_inherited
from proxy.control.listen import BindError
from proxy.control.notify import Notifier
from proxy.control.outbound import OptionError
from proxy.control.signals import obey_signals
from proxy.engine.garbage import spare_collector


@click.command(cls=FileCommand)
@config_option
def run(path: str) -> None:
    """Relay what the configuration says, until SIGTERM or SIGINT."""
    inheritance = take_inherited(os.environ)
    with Notifier.from_environment(os.environ) as notifier:
        _run(path, load_or_exit(path), notifier, inheritance)


def _run(path: str, config: Config, notifier: Notifier, inheritance: Inheritance) -> None:
    spare_collector()
    for number in (signal.SIGHUP, signal.SIGUSR2):  # before and after the house waits for signals
        signal.signal(number, signal.SIG_IGN)
    try:
        trio.run(serve, config, obey_signals, path, notifier, inheritance)
    except (BindError, OptionError, ResolveError) as exc:
        for line in str(exc).splitlines():
            click.echo(f"sockpair: {line}", err=True)
        notifier.status(str(exc))
        notifier.wait_done()  # what a process said that is gone may be lost
        sys.exit(1)
