"""A process of another one's, held by a descriptor: whether it is over, and how to end it.

Unlike a process id, the descriptor never comes to mean another process. It can be sent over a
socket, and is readable once the process is over: by then all its other descriptors are closed.

Of a worker with a standby it is the *line* of both that counts: whoever is next in it goes on with
what a killed one had. A line is known by its *life*: one end of a pipe, whose other end is nowhere
but in the table of descriptors that all its processes share (see ``standby``), beside what they
have of flows. It becomes readable, because it has ended, when that table is gone: not as long as
one of them is left, however many there have been.

Source: pidfd_open(2), pidfd_send_signal(2), pipe(7); do_exit in kernel/exit.c.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path

import trio


class ProcessFile:
    """Owns the descriptors.

    Args:
        fd: a pidfd.
        life: of its line; none if it has no standby.

    Attributes:
        pid: of the process.
        has_standby: whether another one goes on with what it has, if it is killed alone.

    Raises:
        ValueError: the first is no pidfd; both are the caller's then.

    """

    def __init__(self, fd: int, *life: int) -> None:
        self.pid = _pid_of(fd)
        self.has_standby = bool(life)
        self._fd = fd
        self._last = life[0] if life else fd

    @property
    def is_over(self) -> bool:
        """Whether the process has ended by now, and its line."""
        events = select.poll()
        events.register(self._last, select.POLLIN)
        return bool(events.poll(0))

    async def wait_over(self) -> None:
        """Wait until that is so."""
        await trio.lowlevel.wait_readable(self._last)

    def kill(self) -> None:
        """End the process, unless it is our own."""
        if self.pid != os.getpid():
            with suppress(OSError):  # ESRCH: it is over; EPERM: it has become another user's
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it; nobody may wait for its end any more."""
        for fd in {self._fd, self._last}:
            os.close(fd)


def _pid_of(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Pid":
            return int(value)
    raise ValueError(f"descriptor {fd} is of no process")
