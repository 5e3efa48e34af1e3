"""A start of sockpair as by systemd: it has descriptors, and knows where to tell how it goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.control.manager import Manager
from tests.e2e.program import Program, start
from tests.e2e.subject import Settings, command_of

LAUNCH = """
import fcntl, os, sys
files, names, address, *command = sys.argv[1:]
files = [int(file) for file in files.split(",") if file]
high = [fcntl.fcntl(file, fcntl.F_DUPFD, 3 + len(files)) for file in files]
for file in files:
    os.close(file)
for index, file in enumerate(high):
    os.dup2(file, 3 + index)
    os.close(file)
os.environ.update(NOTIFY_SOCKET=address, WATCHDOG_USEC="3000000")
if files:
    os.environ.update(
        LISTEN_FDS=str(len(files)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names
    )
os.execv(command[0], command)
"""
"""What systemd does between fork and exec."""


async def launch(
    settings: Settings, manager: Manager, given: Mapping[str, int], name: str
) -> Program:
    """Start a life with these descriptors, under a name for its log."""
    files = given.values()
    for fd in files:
        os.set_inheritable(fd, True)
    command: list[str | Path] = [sys.executable, "-c", LAUNCH]
    command += [",".join(map(str, files)), ":".join(given), manager.address]
    return await start(
        [*command, *command_of(settings)], settings.folder, name=name, pass_fds=files
    )
