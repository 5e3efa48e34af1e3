"""A process of another one's, held by a descriptor: whether it is over, and how to end it.

Unlike a process id, the descriptor never comes to mean another process. It can be sent over a
socket, and is readable once the process is over: by then all its other descriptors are closed.

Source: pidfd_open(2), pidfd_send_signal(2); do_exit in kernel/exit.c.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path

import trio


class ProcessFile:
    """Owns the descriptor.

    Args:
        fd: a pidfd.

    Attributes:
        pid: of the process.

    Raises:
        ValueError: it is none; it is the caller's then.

    """

    def __init__(self, fd: int) -> None:
        self.pid = _pid_of(fd)
        self._fd = fd

    @property
    def is_over(self) -> bool:
        """Whether the process has ended by now."""
        events = select.poll()
        events.register(self._fd, select.POLLIN)
        return bool(events.poll(0))

    async def wait_over(self) -> None:
        """Wait until the process has ended."""
        await trio.lowlevel.wait_readable(self._fd)

    def kill(self) -> None:
        """End the process, unless it is our own."""
        if self.pid != os.getpid():
            with suppress(OSError):  # ESRCH: it is over; EPERM: it has become another user's
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it; nobody may wait for its end any more."""
        os.close(self._fd)


def _pid_of(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Pid":
            return int(value)
    raise ValueError(f"descriptor {fd} is of no process")
