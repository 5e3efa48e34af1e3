"""The way back to journald, whose stream is standard error of a service.

systemd connects a service's standard error to journald, and keeps the stream over a crash or a
restart of it (its own FDSTORE). When journald is *stopped* the stream is gone for good: writing
fails with EPIPE, and would until we are restarted, which for a proxy may be years. So after a
write that failed we connect anew, as systemd did, and put the new stream in the place of the old.

Which unit we are journald takes from our cgroup, so that nothing has to be claimed.

Source: sd_journal_stream_fd(3), JOURNAL_STREAM in systemd.exec(5); the header's lines are
identifier, unit, priority, level prefix, forward to syslog, to kmsg, to console
(src/libsystemd/sd-journal/journal-send.c, systemd 252).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from socket import AF_UNIX, SHUT_RD, SOCK_STREAM
from socket import socket as Socket
from typing import Final

ADDRESS: Final = "/run/systemd/journal/stdout"

HEADER: Final = b"sockpair\n\n6\n1\n0\n0\n0\n"

PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of syslog(3), which journald takes off the head of a line (sd-daemon(3), SyslogLevelPrefix=)."""

PATIENCE: Final = 0.5
"""Seconds to connect; it is done in the log's thread, so nobody else waits."""


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether a descriptor is the stream that systemd gave us, and said so."""
    try:
        status = os.fstat(fd)
    except OSError:  # it may have been closed before we began
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def prefixed(text: str, level: str) -> str:
    """A record with its priority, each line of it; lines without one are ``info``."""
    mark = f"<{PRIORITIES[level]}>"
    return "\n".join(mark + line for line in text.split("\n"))


def reconnect(fd: int) -> None:
    """Put a new stream in the place of one that has failed, if journald is there."""
    with Socket(AF_UNIX, SOCK_STREAM) as stream:
        stream.settimeout(PATIENCE)
        try:
            stream.connect(ADDRESS)
            stream.sendall(HEADER)
            stream.shutdown(SHUT_RD)
        except OSError:
            return  # it is not; whoever fails to write the next line tries again
        stream.setblocking(True)
        os.dup2(stream.fileno(), fd, inheritable=True)
