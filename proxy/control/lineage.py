"""The line of one worker: its process, the standby behind it, and the one behind that.

A worker that is killed has a successor already, which shares its descriptors: ``survival.standby``.
Here the supervisor hears of each standby, takes the next worker from the line in place of starting
a process, and notices a standby that ends before its worker: then the worker is told to have
another. If it ends before that, the line is broken, and the next worker begins anew, without flows.

All processes of a line are children of ours, which only we can see off.
"""

from __future__ import annotations

import os
import select
import signal
import socket as stdlib
from collections import deque
from contextlib import ExitStack, suppress
from math import inf
from socket import AF_UNIX, MSG_CMSG_CLOEXEC, SOCK_SEQPACKET
from socket import socket as Socket
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog
import trio

from proxy.engine.handover.succession import channel
from proxy.engine.survival.standby import ANNOUNCEMENT
from proxy.engine.wire import Wire, files_in, room_for, wire_pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

SHORT_LIFE: Final = 1.0
"""Seconds; a worker that lives shorter may have been killed by what it inherited."""

SHORT_LIVES: Final = 5
"""So many in a row, and what is inherited is given up: the next worker begins without flows."""

RENEWAL: Final = 1.0
"""Seconds between two standbys of one worker, if they end at once, or none can be had."""

log = structlog.get_logger()


class Process(Protocol):
    """A process of ours."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it lives."""
        ...

    async def wait(self) -> int:
        """Wait until it has ended."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


class Born(NamedTuple):
    """A worker process that has begun.

    Attributes:
        process: itself.
        wire: our end of its wire.
        channel: our end of its succession channel.

    """

    process: Process
    wire: Wire
    channel: Socket


class Origin(Protocol):
    """Where a worker process comes from."""

    async def begin(self) -> Born:
        """Have one.

        Raises:
            OSError: there is none to be had.

        """
        ...


class Begun(Protocol):
    """A worker that begins."""

    async def wait_started(self) -> None:
        """Wait until it can be told what to do."""
        ...

    async def renew_standby(self) -> bool:
        """Have it make a standby in place of one that has ended; false if it cannot now."""
        ...


class ClonedProcess:
    """A process of ours that another one of ours has cloned. It is seen off by ``wait``.

    Args:
        pid: of the process.

    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._fd = os.pidfd_open(pid)

    async def wait(self) -> int:
        """Wait until it has ended."""
        while self.returncode is None:
            await trio.lowlevel.wait_readable(self._fd)
            self._see_off()
        await trio.lowlevel.checkpoint()
        return self.returncode

    def kill(self) -> None:
        """End it."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether it has ended by now."""
        if self.returncode is None:
            events = select.poll()
            events.register(self._fd, select.POLLIN)
            if events.poll(0):
                self._see_off()
        return self.returncode is not None

    def _see_off(self) -> None:
        if self.returncode is None:  # two may wait
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
            os.close(self._fd)


class Standby(NamedTuple):
    """A standby.

    Attributes:
        process: itself.
        wire: our end of the wire that it will have.

    """

    process: ClonedProcess
    wire: Socket


class Lineage:
    """The processes of one worker, one after the other; an ``Origin``. Owns all ends of theirs.

    Args:
        index: of the worker.
        start: starts the first process of this worker, with these descriptors: its wire, channel
            and line.

    """

    def __init__(
        self, index: int, start: Callable[[int, Sequence[int]], Awaitable[Process]]
    ) -> None:
        self._index = index
        self._start = start
        self._line: Socket | None = None
        self._channel: Socket | None = None
        self._standbys: deque[Standby] = deque()  # a standby that begins has one of its own at once
        self._short = 0
        self._began = 0.0
        self._renewed = -inf

    @property
    def has_standby(self) -> bool:
        """Whether a standby is there to take over."""
        self._hear()
        while self._standbys and self._standbys[0].process.has_ended():
            self._standbys.popleft().wire.close()
        return bool(self._standbys)

    async def begin(self) -> Born:
        """Have the standby work, if there is one; or start the first process of a line.

        Raises:
            OSError: it could not be started.

        """
        lived = trio.current_time() - self._began
        self._short = self._short + 1 if lived < SHORT_LIFE else 0
        if self._short > SHORT_LIVES:
            log.error("legacy_given_up", worker=self._index, lives=self._short)
            await self.end()
        self._began = trio.current_time()
        if self.has_standby:
            assert self._channel is not None
            process, end = self._standbys.popleft()
            return Born(process, Wire(end), self._channel.dup())
        await self.end()
        return await self._start_first()

    async def watch(self, worker: Begun) -> None:
        """Have a standby that ends while its worker lives be replaced; until cancelled."""
        await worker.wait_started()
        while self._line is not None:
            if not self._standbys:
                await trio.lowlevel.wait_readable(self._line)
                self._hear()
                if not self._standbys:  # nobody is left who could tell
                    return
            standby = self._standbys[0]
            code = await standby.process.wait()
            if standby in self._standbys:
                self._standbys.remove(standby)
                standby.wire.close()
            if code:
                log.error("standby_lost", worker=self._index, pid=standby.process.pid, exit=code)
                await self._renew(worker)

    async def _renew(self, worker: Begun) -> None:
        """Have a worker make another standby, as soon as it can."""
        is_there = False
        while not is_there:
            await trio.sleep_until(self._renewed + RENEWAL)
            self._renewed = trio.current_time()
            is_there = await worker.renew_standby()
        log.info("standby_renewed", worker=self._index)

    async def end(self) -> None:
        """Want no other worker of this line."""
        self._hear()
        standbys, self._standbys = self._standbys, deque()
        for standby in standbys:
            standby.wire.close()
        for end in (self._line, self._channel):
            if end is not None:
                end.close()
        self._line = self._channel = None
        with trio.CancelScope(shield=True):
            for standby in standbys:
                await standby.process.wait()

    async def _start_first(self) -> Born:
        wire, theirs = wire_pair()
        self._channel, channel_end = channel()
        self._line, line_end = stdlib.socketpair(AF_UNIX, SOCK_SEQPACKET)
        self._line.setblocking(False)
        with theirs, channel_end, line_end, ExitStack() as undo:
            undo.callback(wire.close)
            ends = theirs.fileno(), channel_end.fileno(), line_end.fileno()
            process = await self._start(self._index, ends)
            undo.pop_all()
        return Born(process, wire, self._channel.dup())

    def _hear(self) -> None:
        """Know the standbys that were announced."""
        room = room_for(1)
        while self._line is not None:
            try:
                data, control, _, _ = self._line.recvmsg(ANNOUNCEMENT.size, room, MSG_CMSG_CLOEXEC)
            except OSError:  # EAGAIN
                return
            files = files_in(control)
            if len(data) < ANNOUNCEMENT.size:
                return
            (pid,) = ANNOUNCEMENT.unpack(data)
            with suppress(ProcessLookupError):
                self._standbys.append(Standby(ClonedProcess(pid), Socket(fileno=files[0])))
