"""The log sink: a bounded queue of lines in front of a file descriptor.

Strategy: whoever logs appends a line to a queue and goes on. One Trio task takes batches off the
queue and writes them in a thread, because a file descriptor that people log to (a terminal that was
stopped, a pipe to a slow reader, a full disk) may block, and nothing that blocks may run in the
relay's thread. The thread itself never blocks either: it waits for room with a bound, and then
writes no more than always fits.

Invariants:

* ``put`` never waits and never fails; memory is bounded by ``QUEUE_LINES`` and one batch.
* What does not fit, or could not be written, is counted, and told in one line as soon as writing
  works again. The newest lines are dropped, for the cause of a flood stands at its head.
* No write error ends anything: a proxy outlives its log.

``put`` belongs to the Trio thread; only the writing runs outside it, and it owns other fields.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from proxy.engine.flow_lines import Lines, whole_lines
from proxy.observe.journal import is_journal, reconnect

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE_LINES: Final = 10_000
"""A second of flows that end at the highest rate one worker reaches; about 6 MiB of JSON."""

BATCH_LINES: Final = 2048
"""Lines a thread call writes, and what came with the last of them: few enough that a stop is quick,
enough to pay for the thread."""

GATHER_SECONDS: Final = 0.05
"""How long lines gather before they are written: a call to the thread costs as much as ten flows,
and the thread competes with the relay for the interpreter."""

LINE_FEED: Final = ord("\n")

PIECE_BYTES: Final = select.PIPE_BUF
"""A pipe or terminal that polls writable takes so many bytes without blocking (pipe(7))."""

ROOM_SECONDS: Final = 0.5
"""How long the thread waits for room; also what a stop may have to wait for it."""

RETRY_SECONDS: Final = 0.1
"""Pause after a descriptor said "writable" and then took nothing."""

FLUSH_SECONDS: Final = 2.0
"""How long the end waits for a slow reader to take what is queued."""


class LogSink:
    """A queue of lines, and the task that writes them.

    Args:
        fd: where the lines go. It is not closed here, and may be blocking or not.
        tell: the line that says how many were dropped.
        limit: lines in the queue at most.

    """

    def __init__(self, fd: int, tell: Callable[[int], str], limit: int = QUEUE_LINES) -> None:
        self.fd = fd
        self._tell = tell
        self._limit = limit
        self._queue: deque[Lines] = deque()
        self._queued = 0  # lines in it
        self._filled = trio.Event()
        self._overflowed = 0  # lines that found the queue full
        self._told = 0  # of the dropped ones, those that a line has told of
        # These belong to the writing thread while it runs.
        self._unwritten = b""
        self._lost = 0  # lines that failed to be written
        self._torn = False  # the last line written has no end yet
        self._failing = False  # the last write ended in an error
        self._journal = is_journal(fd, os.environ)

    @property
    def is_journal(self) -> bool:
        """Whether journald reads it, and so the priority at the head of a line."""
        return self._journal

    @property
    def dropped(self) -> int:
        """Lines thrown away so far."""
        return self._overflowed + self._lost

    def put(self, line: str) -> None:
        """Queue one line, without its line feed; drop and count it when the queue is full."""
        self.put_lines(_one_line(line))

    def put_lines(self, lines: Lines) -> None:
        """Queue finished lines; drop and count those that find the queue full."""
        taken = lines.first(max(0, self._limit - self._queued))
        self._overflowed += lines.count - taken.count
        if taken.count:
            self._append(taken)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is queued, until cancelled; then what is left, for ``FLUSH_SECONDS``."""
        task_status.started()
        try:
            while True:
                await self._filled.wait()
                await trio.sleep(GATHER_SECONDS)
                await self._pass_on()
        finally:
            with trio.move_on_after(FLUSH_SECONDS, shield=True):
                while self._pending:
                    await self._pass_on()

    def flush(self) -> None:
        """Write what is queued, blocking at most ``FLUSH_SECONDS``: for the end of a process."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._pending and time.monotonic() < deadline:
            self._take_batch()
            self._write()
            self._settle()

    @property
    def _pending(self) -> bool:
        return bool(self._queue or self._unwritten)

    async def _pass_on(self) -> None:
        """Write one batch, or as much of it as finds room in ``ROOM_SECONDS``."""
        self._take_batch()
        await trio.to_thread.run_sync(self._write)
        if self._unwritten:
            await trio.sleep(RETRY_SECONDS)
        self._settle()

    def _append(self, lines: Lines) -> None:
        self._queue.append(lines)
        self._queued += lines.count
        self._filled.set()

    def _take_batch(self) -> None:
        if self._unwritten:
            return
        parts = [b"\n"] if self._torn else []
        count = 0
        while self._queue and count < BATCH_LINES:
            lines = self._queue.popleft()
            count += lines.count
            parts.append(lines.text)
        self._queued -= count
        self._unwritten = b"".join(parts)

    def _settle(self) -> None:
        """After a batch: tell what was dropped if writing works, and sleep if nothing is left."""
        if not self._unwritten and not self._failing and self.dropped > self._told:
            self._append(_one_line(self._tell(self.dropped - self._told)))
            self._told = self.dropped
        if not self._pending:
            self._filled = trio.Event()

    def _write(self) -> None:
        """Write until all is written or nothing has found room for a while; never raises."""
        room = select.poll()
        room.register(self.fd, select.POLLOUT)
        view = memoryview(self._unwritten)
        try:
            while view and room.poll(ROOM_SECONDS * 1000):
                written = _put_some(self.fd, view)
                self._torn = view[written - 1] != LINE_FEED
                self._failing = False
                view = view[written:]
        except BlockingIOError:
            pass  # a non-blocking descriptor changed its mind; the rest is tried again
        except OSError:
            # EPIPE, ENOSPC, EIO, EBADF and the like. Not named one by one, because there is none
            # for which ending the proxy is the better answer.
            self._lost += bytes(view).count(LINE_FEED)
            self._failing = True
            view = view[:0]
            if self._journal:
                self._torn = False  # what was begun is in another stream
                reconnect(self.fd)
        self._unwritten = bytes(view)


def _one_line(line: str) -> Lines:
    return Lines(f"{line}\n".encode("utf-8", "backslashreplace"), 1)


def _put_some(fd: int, view: memoryview) -> int:
    """Write as much as fits to a descriptor that has polled writable; return how much that was.

    A file takes everything; a socket (journald's standard error is one) can be asked not to block;
    of anything else it is known only that a small piece fits.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.write(fd, view)
    if stat.S_ISSOCK(mode):
        with socket.socket(fileno=os.dup(fd)) as connected:
            return connected.send(view, socket.MSG_DONTWAIT)
    return os.write(fd, whole_lines(view, PIECE_BYTES))
