"""Which process of an earlier life still serves its last flows by a port that we cannot bind.

A listener of datagrams that moves to another port leaves its socket to its flows, which drain where
they are; back it cannot move before they have ended. Whoever tries is told whom to wait for.

Source: proc(5), /proc/net/udp and /proc/PID/fd.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from proxy.control.listen import BindError

TABLES: Final = (Path("/proc/net/udp"), Path("/proc/net/udp6"))
LOCAL, INODE = 1, 9
"""Columns of these tables."""


def explained(error: BindError, pids: Iterable[int]) -> BindError:
    """The same error; one that says who has the address, if that is a process of ours.

    Args:
        error: why we could not be bound.
        pids: of processes of earlier lives that drain.

    """
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE:
        return error
    pid = holder_of(error.value, pids)
    if pid is None:
        return error
    reason = (
        f"process {pid}, of an earlier life, serves its last flows by this port; "
        'wait for its end ("sockpair status" shows it), or choose another port'
    )
    return BindError(error.place, error.value, OSError(errno.EBUSY, reason))


def holder_of(value: str, pids: Iterable[int]) -> int | None:
    """The process among these that has a socket of datagrams at a port; None if none has.

    Args:
        value: where somebody wants to listen, as a URL.
        pids: which processes.

    """
    port = value.rpartition(":")[2]
    if not value.startswith("udp://") or not port.isdigit():
        return None
    links = {f"socket:[{inode}]" for inode in _inodes_at(int(port))}
    return next((pid for pid in pids if not links.isdisjoint(_files_of(pid))), None)


def _inodes_at(port: int) -> Iterator[str]:
    for table in TABLES:
        with suppress(OSError):  # no IPv6
            for line in table.read_text().splitlines()[1:]:
                columns = line.split()
                if int(columns[LOCAL].rpartition(":")[2], 16) == port:
                    yield columns[INODE]


def _files_of(pid: int) -> Iterator[str]:
    folder = Path("/proc", str(pid), "fd")
    with suppress(OSError):  # it has ended, or has become another user's
        for file in folder.iterdir():
            with suppress(OSError):  # closed meanwhile
                yield os.readlink(file)  # noqa: PTH115 - not a path
