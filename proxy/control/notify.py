"""Words to the service manager: ready, reloading, stopping, alive, and descriptors to keep.

Strategy: one datagram a message, to the Unix socket that $NOTIFY_SOCKET names. Without that
variable nobody listens, and every method does nothing; so nobody has to ask.

Invariants: a message that is not taken ends nothing. What is said over and over (status, watchdog)
never waits; what is said once waits for room at most ``PATIENCE``, because the manager's queue is
as short as net.unix.max_dgram_qlen.

Source: sd_notify(3), sd_watchdog_enabled(3), sd_pid_notify_with_fds(3), systemd 252.
"""

from __future__ import annotations

import array
import os
import select
from collections.abc import MutableMapping, Sequence
from socket import AF_UNIX, SCM_RIGHTS, SOCK_DGRAM, SOL_SOCKET
from socket import SocketType as Socket
from socket import socket as open_socket
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Final

import structlog

PATIENCE: Final = 2.0
"""Seconds for a message that is said once; a manager that takes none so long is not there."""

FILES_PER_MESSAGE: Final = 253
"""SCM_MAX_FD: unix(7)."""

HELD_MAX: Final = 4096
"""Messages that are held back: more than any unit may store descriptors."""

STATUS_EVERY: Final = 5.0
"""Seconds between two lines of status; people look, no program waits for it."""

FEEDS_PER_WATCH: Final = 3
"""So that one that is late, or lost, kills nobody; sd_watchdog_enabled(3) advises two."""

log = structlog.get_logger()


class Notifier:
    """Speaks to the service manager; used as a context manager, which closes the line.

    Args:
        address: a path, or ``@name`` for an abstract name; "" for nobody.
        watchdog: seconds within which the manager wants to hear that we are alive; None: never.
        held: keep what is said once until ``speak``, and leave the rest unsaid.

    Attributes:
        address: the same.

    """

    def __init__(
        self, address: str = "", watchdog: float | None = None, *, held: bool = False
    ) -> None:
        self.address = address
        self._held: list[tuple[tuple[str, ...], list[int]]] | None = [] if held else None
        self._address = "\0" + address[1:] if address[:1] == "@" else address
        self._socket = open_socket(AF_UNIX, SOCK_DGRAM) if address else None
        self._failed = False
        self.watchdog = watchdog

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Read what the manager left, and remove it, so that no child speaks in our name."""
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):  # vsock: is for virtual machines
            return cls()
        ours = pid in {"", str(os.getpid())}
        watched = ours and microseconds.isdecimal() and int(microseconds) > 0
        return cls(address, int(microseconds) / 1e6 if watched else None)

    def __enter__(self) -> Notifier:
        return self

    def __exit__(self, *_: object) -> None:
        for _, files in self._held or []:
            for fd in files:
                os.close(fd)
        if self._socket is not None:
            self._socket.close()

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return self._socket is not None

    @property
    def interval(self) -> float:
        """Seconds between two signs of life."""
        if self.watchdog is None:
            return STATUS_EVERY
        return min(STATUS_EVERY, self.watchdog / FEEDS_PER_WATCH)

    def ready(self, status: str = "") -> None:
        """Tell that we serve: after the start, and after every ``reloading``."""
        self._say("READY=1", *_status(status))

    def reloading(self, status: str = "") -> None:
        """Tell that a reload has begun; ``ready`` ends it, whether it succeeded or not."""
        now = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
        self._say("RELOADING=1", f"MONOTONIC_USEC={now}", *_status(status))

    def stopping(self, status: str = "", patience: float | None = None) -> None:
        """Tell that the end has begun.

        Args:
            status: for people.
            patience: seconds that it may take from now, if that is longer than the unit's own
                TimeoutStopSec; None leaves it at that.

        """
        more = () if patience is None else (f"EXTEND_TIMEOUT_USEC={round(patience * 1e6)}",)
        self._say("STOPPING=1", *more, *_status(status))

    def alive(self, status: str = "") -> None:
        """Feed the watchdog, and say how we are."""
        self._say("WATCHDOG=1", *_status(status), wait=False)

    def main_process(self, pid: int) -> None:
        """Tell whose the service is from now on, and wait until that is known."""
        self._say(f"MAINPID={pid}")
        self.wait_done()

    def speak(self) -> None:
        """Say what was held back, and hold nothing back any more."""
        held, self._held = self._held or [], None
        for lines, files in held:
            self._say(*lines, files=files)
            for fd in files:
                os.close(fd)

    def status(self, status: str) -> None:
        """Say how we are, in one line for people."""
        self._say(*_status(status))

    def store(self, name: str, sockets: Sequence[Socket]) -> None:
        """Have the manager keep sockets under a name, for the next start of this service.

        They are not polled there: a socket with an error waiting would be thrown away.
        """
        for start in range(0, len(sockets), FILES_PER_MESSAGE):
            files = [socket.fileno() for socket in sockets[start : start + FILES_PER_MESSAGE]]
            self._say("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", files=files)

    def forget(self, name: str) -> None:
        """Have the manager close what it keeps under a name."""
        self._say("FDSTOREREMOVE=1", f"FDNAME={name}")

    def wait_done(self) -> None:
        """Wait until the manager has done all that it was told, as after ``forget``.

        It blocks, for ``PATIENCE`` at most; so it is for the start, before anything is relayed.
        The manager closes the pipe's end that comes with BARRIER=1: sd_notify_barrier(3).
        """
        if self._socket is None or self._held is not None:
            return
        ours, theirs = os.pipe()
        try:
            try:
                self._say("BARRIER=1", files=[theirs])
            finally:
                os.close(theirs)
            poll = select.poll()
            poll.register(ours, 0)  # the hang-up is always told
            if not poll.poll(PATIENCE * 1000):
                log.warning("notify_unanswered", waited=PATIENCE)
        finally:
            os.close(ours)

    def _say(self, *lines: str, files: Sequence[int] = (), wait: bool = True) -> None:
        if self._socket is None or not lines:
            return
        if self._held is not None:
            if wait and len(self._held) < HELD_MAX:
                self._held.append((lines, [os.dup(fd) for fd in files]))
            return
        rights = [(SOL_SOCKET, SCM_RIGHTS, array.array("i", files))] if files else []
        self._socket.settimeout(PATIENCE if wait else 0)
        try:
            self._socket.sendmsg(["\n".join(lines).encode()], rights, 0, self._address)
        except BlockingIOError:
            return  # the next sign of life comes soon
        except OSError as error:
            self._complain(lines[0], error)
        else:
            self._failed = False

    def _complain(self, line: str, error: OSError) -> None:
        """Say once that nobody takes our words; what is to be done is up to the manager."""
        if not self._failed:
            where = self._address.replace("\0", "@")
            log.warning("notify_failed", message=line, socket=where, error=str(error))
        self._failed = True


def _status(text: str) -> tuple[str, ...]:
    """The line of status; a line break in it would begin another assignment."""
    return ("STATUS=" + " ".join(text.split()),) if text else ()
