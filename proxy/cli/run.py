"""``sockpair run``: relay what the configuration says, until SIGTERM or SIGINT.

SIGHUP reloads the configuration, SIGUSR2 leaves what lives to a successor; see ``control.signals``.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

import click
import trio

from proxy.cli.check import FileCommand, config_option, load_or_exit
from proxy.cli.serve import serve
from proxy.control.endpoints import ResolveError
from proxy.control.inherited import Inheritance, take_inherited
from proxy.control.listen import BindError
from proxy.control.newcomer import Newcomer, UnwantedError, arrive
from proxy.control.notify import Notifier
from proxy.control.outbound import OptionError
from proxy.control.signals import obey_signals
from proxy.engine.garbage import spare_collector
from proxy.engine.process_name import SERVICE, name_process

THREAD_TURN: Final = 0.0005
"""Seconds that a thread keeps the interpreter while the relay wants it, and that at every system
call. A reload reads large files in a thread; by Python's default of 5 ms a round trip took 28 ms
meanwhile."""


@click.command(cls=FileCommand)
@config_option
def run(path: str) -> None:
    """Relay what the configuration says, until SIGTERM or SIGINT."""
    name_process(SERVICE)
    try:
        newcomer = arrive(os.environ)
    except UnwantedError as error:
        raise click.ClickException(str(error)) from error
    if newcomer is not None:
        with newcomer.notifier as notifier:
            _run(path, notifier, newcomer.inheritance, newcomer)
        return
    inheritance = take_inherited(os.environ)
    with Notifier.from_environment(os.environ) as notifier:
        _run(path, notifier, inheritance)


def _run(
    path: str, notifier: Notifier, inheritance: Inheritance, newcomer: Newcomer | None = None
) -> None:
    config = load_or_exit(path)
    spare_collector()
    sys.setswitchinterval(THREAD_TURN)
    for number in (signal.SIGHUP, signal.SIGUSR2):  # before and after the house waits for signals
        signal.signal(number, signal.SIG_IGN)
    try:
        trio.run(serve, config, obey_signals, path, notifier, inheritance, newcomer)
    except (BindError, OptionError, ResolveError) as exc:
        for line in str(exc).splitlines():
            click.echo(f"sockpair: {line}", err=True)
        if newcomer is not None:
            newcomer.fail(*str(exc).splitlines())
        notifier.status(str(exc))
        notifier.wait_done()  # what a process said that is gone may be lost
        sys.exit(1)
