"""The log of a worker whose supervisor is gone: straight to standard error, which both share.

The supervisor writes the log of its workers; who has none writes by itself, to where it would have
gone. Lines of flows come as they are; events are JSON, whatever the configured format.

What standard error does not take within ``ROOM_SECONDS`` is dropped: a log ends nobody's flows.
"""

from __future__ import annotations

import json
import os
import select
from time import time
from typing import Any, Final

import trio

from proxy.engine.flow_lines import iso, whole_lines

ROOM_SECONDS: Final = 0.5
PIECE_BYTES: Final = select.PIPE_BUF
"""A pipe that polls writable takes so many bytes without blocking (pipe(7))."""


class OrphanLog:
    """Writes lines.

    Args:
        worker: our number, from 0 on.
        fd: where they go.

    """

    def __init__(self, worker: int, fd: int = 2) -> None:
        self._worker = worker
        self._fd = fd
        self._writing = trio.Lock()

    async def event(self, event: dict[str, Any]) -> None:
        """Write an event, as the supervisor would have."""
        rest = dict(event)
        head = {"time": iso(time()), "level": rest.pop("level", "info")}
        row = {**head, "event": rest.pop("event", ""), "worker": self._worker, **rest}
        line = json.dumps(row, separators=(",", ":"), default=str)
        await self.lines(f"{line}\n".encode("utf-8", "backslashreplace"))

    async def lines(self, text: bytes) -> None:
        """Write finished lines."""
        async with self._writing:
            await trio.to_thread.run_sync(_write, self._fd, text)


def _write(fd: int, text: bytes) -> None:
    """Write as much as finds room; never raises, for there is nobody to tell."""
    room = select.poll()
    room.register(fd, select.POLLOUT)
    view = memoryview(text)
    try:
        while view and room.poll(ROOM_SECONDS * 1000):
            view = view[os.write(fd, whole_lines(view, PIECE_BYTES)) :]
    except OSError:  # EPIPE, EIO, ENOSPC
        return
