"""An heir that is a process of its own, and is killed where a test says, whatever it holds.

It is forked, and says what ``handover.transfer`` wants to hear without Trio: so it begins
within milliseconds. What it does with streams that it has got is a test's affair.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from enum import IntEnum
from socket import MSG_WAITALL, socketpair
from socket import socket as Socket
from typing import NoReturn, TypeAlias

from proxy.engine.handover.transfer import (
    ACKNOWLEDGED,
    CLIENTS,
    COMMITTED,
    NO_MORE_DATAGRAMS,
    NOTHING_MORE,
    READY,
    STREAMS,
)
from proxy.engine.wire import HEAD, files_in, rights, room_for

forked: list[int] = []
"""Processes that a test has not seen off yet; the fixture in conftest.py does."""

Deed: TypeAlias = Callable[[Socket, Socket], None]
"""What it does with a stream: with the client's socket, and the endpoint's."""


class Step(IntEnum):
    """Where it may die: when it has ..."""

    BEGUN = 0
    MET = 1
    HEARD_DATAGRAMS = 2
    TAKEN_DATAGRAMS = 3
    OWNED_DATAGRAMS = 4
    GOT_READY = 5
    HEARD_STREAMS = 6
    TAKEN_STREAMS = 7
    OWNED_STREAMS = 8
    READY_AGAIN = 9
    HEARD_CLIENTS = 10
    TAKEN_CLIENTS = 11
    OWNED_CLIENTS = 12
    HEARD_ALL = 13


def nothing(_client: Socket, _endpoint: Socket) -> None:
    """Leave a stream as it is."""


class Dying:
    """A process that takes over until it dies.

    Args:
        step: at which.
        deed: with each stream that it has got.
        last: the streams it must have had for it to die with streams.
        stops: whether it stands still in place of dying.
        standby: whether somebody stands by, who does nothing until it is told to end.

    Attributes:
        end: of the wire, for who leaves.
        pid: of the process.

    """

    def __init__(
        self,
        step: Step,
        deed: Deed = nothing,
        last: int = 1,
        *,
        stops: bool = False,
        standby: bool = False,
    ) -> None:
        self._step, self._deed, self._last = step, deed, last
        self._leash = socketpair() if standby else ()
        self._held: list[Socket] = []
        self._signal = signal.SIGSTOP if stops else signal.SIGKILL
        self.end, self._wire = socketpair()
        self.pid = os.fork()
        if not self.pid:
            self._live()
        forked.append(self.pid)
        self._wire.close()

    def end_standby(self) -> None:
        """Have the standby end."""
        for end in self._leash:
            end.close()

    def has_ended(self) -> bool:
        """Whether it has; then it is seen off."""
        has_ended = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        if has_ended:
            forked.remove(self.pid)
        return has_ended

    def _live(self) -> NoReturn:
        if self._leash:
            os.dup2(self._leash[0].fileno(), 0)
        fd = self._wire.fileno()
        os.closerange(3, fd)
        os.closerange(fd + 1, 1 << 16)
        try:
            self._take_over()
        finally:
            os._exit(1)

    def _take_over(self) -> None:
        self._reach(Step.BEGUN)
        self._say(READY, [os.pidfd_open(os.getpid()), *self._life()])
        self._reach(Step.MET)
        while self._hear()[0][:1] != NO_MORE_DATAGRAMS:
            pass
        self._settle(Step.HEARD_DATAGRAMS)
        self._say(READY)
        self._reach(Step.GOT_READY)
        streams = 0
        while (message := self._hear())[0][:1] != NOTHING_MORE:
            kind, files = message[0][:1], message[1]
            streams += len(files) // 2 if kind == STREAMS else 0
            if kind == CLIENTS:
                self._settle(Step.HEARD_CLIENTS)
            elif kind == STREAMS:
                is_last = streams >= self._last
                self._settle(Step.HEARD_STREAMS, files, is_last=is_last)
                self._say(READY)
                self._reach(Step.READY_AGAIN, is_last)
        self._reach(Step.HEARD_ALL)

    def _life(self) -> tuple[int, ...]:
        """What tells that the standby has ended as well; nothing if there is none."""
        if not self._leash:
            return ()
        life, end = os.pipe()
        if not os.fork():
            os.closerange(3, end)
            os.closerange(end + 1, 1 << 16)
            os.read(0, 1)
            os._exit(0)
        return (life,)

    def _settle(self, step: Step, streams: Sequence[int] = (), *, is_last: bool = True) -> None:
        """Take and own what was heard, which may be streams."""
        self._reach(step, is_last)
        self._say(ACKNOWLEDGED)
        self._reach(Step(step + 1), is_last)
        assert self._hear()[0] == COMMITTED
        sockets = [Socket(fileno=fd) for fd in streams]
        for client, endpoint in zip(sockets[::2], sockets[1::2], strict=True):
            self._deed(client, endpoint)
        self._reach(Step(step + 2), is_last)
        self._held += sockets

    def _reach(self, step: Step, is_last: bool = True) -> None:
        if is_last and step == self._step:
            os.kill(os.getpid(), self._signal)

    def _say(self, body: bytes, files: Sequence[int] = ()) -> None:
        head = HEAD.pack(len(body), len(files))
        self._wire.sendmsg([head + body], rights(files))

    def _hear(self) -> tuple[bytes, list[int]]:
        """A message, and its descriptors, which stay open until the end."""
        head, control, _, _ = self._wire.recvmsg(HEAD.size, room_for(253))
        if len(head) < HEAD.size:
            os._exit(0)  # who leaves has hung up
        length, _ = HEAD.unpack(head)
        return (self._wire.recv(length, MSG_WAITALL) if length else b""), files_in(control)
