"""Finished log lines of workers, on their way to the log.

Bounded like the outbox of a worker: whoever writes the log is quick, because a slow reader is the
sink's affair; so this is full only if the supervisor itself stands still. The oldest falls out.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from proxy.engine.flow_lines import Lines
from proxy.engine.relay import OUTBOX

LINES_MAX: Final = OUTBOX
"""Lines that wait, give or take those that came with one message; 40 MiB."""


class LineQueue:
    """Lines that wait, in the order in which they came.

    Attributes:
        dropped: how many fell out.

    """

    def __init__(self) -> None:
        self._parts: deque[Lines] = deque()
        self._count = 0
        self._filled = trio.Event()
        self.dropped = 0

    def put(self, lines: Lines) -> None:
        """Add lines behind the others."""
        self._parts.append(lines)
        self._count += lines.count
        while self._count > LINES_MAX and len(self._parts) > 1:
            self.dropped += self._take().count
        self._filled.set()

    async def wait(self) -> Lines:
        """Wait for lines, and take some."""
        await self._filled.wait()
        lines = self._take()
        if not self._parts:
            self._filled = trio.Event()
        return lines

    def _take(self) -> Lines:
        lines = self._parts.popleft()
        self._count -= lines.count
        return lines
