"""The succession channel: how a worker that was left behind is found, and spoken to.

Every worker process has one end of a Unix socket pair; its supervisor has the other, and has the
service manager keep it, too. So when the supervisor is gone, whoever is started in its place gets
the end, and can speak to a worker that it did not start.

What goes over the pair is a *knock*: one packet (SOCK_SEQPACKET), which brings one end of a stream
socket pair that was made for the occasion. The conversation goes over that, see ``wire``. So a
successor that dies in the middle of a word leaves nothing behind that the next would stumble over,
and its end is seen.

A conversation is questions and answers in turn, JSON objects. It is begun by the successor with
``{"ask": "greet"}``. The answer has the ``version`` of all this: of another one only the greeting
and ``drain`` are to be relied upon.

==========  ======================================================================================
greet       who we are, and what the successor goes on from
leave       hand over flows, by the sockets that come beside it, see ``handover``
settle      know that they stay there, whatever comes, see ``custody``; and drain, if all could go
counters    the latest reading, and how many flows there are
drain       accept no more, and end when the last flow has
end         end now, with every flow
==========  ======================================================================================

An *orphan*, whose supervisor is gone, relays and accepts on until a successor says what to do. If
nobody comes for ``PATIENCE`` it drains. If nobody can come, because nobody has the channel's other
end, it ends at once, as without a channel. A hand-over that fails leaves it as it is, with the
flows that have not gone, for the next successor.
"""

from __future__ import annotations

import json
import os
import socket as stdlib
import stat
from contextlib import closing, suppress
from socket import AF_UNIX, MSG_CMSG_CLOEXEC, SOCK_SEQPACKET
from socket import socket as Socket
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import structlog
import trio

from proxy import __version__
from proxy.core.flow_state import STATE_VERSION
from proxy.core.pace import Pace
from proxy.core.steering import BITS_V4, BITS_V6
from proxy.engine.handover.transfer import HandOverError
from proxy.engine.specs import EVERYTHING, DrainOrder, Steered
from proxy.engine.wire import Wire, WireError, files_in, rights, room_for

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from trio.socket import SocketType

    from proxy.engine.handover.leaving import Left
    from proxy.engine.port import RelayCounters, RelayStatus
    from proxy.engine.specs import LeaveOrder

VERSION: Final = 1
"""Of the questions and answers."""

PATIENCE: Final = 120.0
"""Seconds for a successor to come: RestartSec= and TimeoutStartSec= of our unit, and some more."""

KNOCK: Final = b"successor"
KNOCK_BYTES: Final = 64
KNOCK_FILES: Final = 4
"""Room for more than there should be, so that what should not be there is seen, and closed."""

CONVERSATIONS: Final = 4
"""With whoever looks after us, who comes next, and some that died a moment ago; further ones wait
in the channel."""

AT_ONCE: Final = Pace(0.0, 1000.0, 10.0)
"""How a worker drains that was never told how: it has no flows."""

Answer: TypeAlias = "dict[str, Any]"

log = structlog.get_logger()


class Ancestor(Protocol):
    """What of a worker is asked for here."""

    async def leave(
        self, order: LeaveOrder, heirs: Sequence[Socket], *, served: Container[int] | None = None
    ) -> Left:
        """Hand over all flows that heirs can have."""
        ...

    async def counters(self, *, former: bool = False) -> RelayCounters:
        """Read every running aggregate; with those of former names, if wanted."""
        ...

    async def status(self) -> RelayStatus:
        """Say how the relay is."""
        ...

    async def settle(self) -> None:
        """Know that the heirs have settled."""
        ...

    async def drain(self, order: DrainOrder) -> bool:
        """Begin to drain."""
        ...

    async def wait_drained(self) -> None:
        """Wait until the drain of everything is over."""
        ...


def channel() -> tuple[Socket, Socket]:
    """Both ends of a channel; neither is inherited, unless it is passed on by intent."""
    return stdlib.socketpair(AF_UNIX, SOCK_SEQPACKET)


class Succession:
    """Answers whoever comes by a channel. Owns its end of it.

    Args:
        end: of the channel.
        worker: what is asked about.
        place: of how many workers it is which, from 0 on.

    Attributes:
        has_left: whether everything of the worker could go to heirs.
        pace: how it drains, if it is to.
        estate: what the supervisor leaves to a successor, as it wrote it.

    """

    def __init__(self, end: Socket, worker: Ancestor, place: tuple[int, int]) -> None:
        end.setblocking(False)
        self._end = trio.socket.from_stdlib_socket(end)
        self._worker = worker
        self._place = place
        self._decided = trio.Event()
        self._draining = False
        self._leaving = trio.Lock()
        self._ended = trio.Event()
        self.has_left = False
        self.pace = AT_ONCE
        self.estate: Answer = {}

    async def run(self) -> None:
        """Answer successors until there can be none any more.

        Several at a time: who looks after us while we drain may get a successor himself.
        """
        room = trio.CapacityLimiter(CONVERSATIONS)
        with closing(self._end):
            async with trio.open_nursery() as nursery:
                while (conversation := await _next(self._end)) is not None:
                    wire = Wire(conversation)
                    await room.acquire_on_behalf_of(wire)
                    nursery.start_soon(self._answer_all, wire, room)
        self._decided.set()

    async def _answer_all(self, wire: Wire, room: trio.CapacityLimiter) -> None:
        """Answer whatever one successor asks."""
        try:
            with closing(wire), suppress(WireError):
                await self._converse(wire)
        finally:
            room.release_on_behalf_of(wire)

    async def outlive(self) -> None:
        """Be an orphan, until there is nothing more to do."""
        with trio.move_on_after(PATIENCE) as waiting:
            await self._decided.wait()
        if waiting.cancelled_caught:
            log.warning("orphan_unclaimed", waited=PATIENCE, remedy="its flows drain")
            await self._drain()
        if self._draining:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_at_word, nursery.cancel_scope)
                await self._worker.wait_drained()
                nursery.cancel_scope.cancel()

    async def settle(self) -> None:
        """Know that what has gone stays gone; and drain, if everything could go."""
        await self._worker.settle()
        if self.has_left:
            await self._drain()

    async def wait_ended(self) -> None:
        """Wait until a successor says that it is time to end."""
        await self._ended.wait()

    async def _end_at_word(self, scope: trio.CancelScope) -> None:
        await self._ended.wait()
        scope.cancel()

    async def _converse(self, wire: Wire) -> None:
        while True:
            message = await wire.receive()
            if not _are_sockets(message.files):
                for fd in message.files:
                    os.close(fd)
                return
            sockets = [Socket(fileno=fd) for fd in message.files]
            try:
                answer = await self._answer(message.body, sockets)
            finally:
                for socket in sockets:
                    socket.close()
            await wire.send(json.dumps(answer, separators=(",", ":")).encode())

    async def _answer(self, body: bytes, sockets: Sequence[Socket]) -> Answer:
        try:
            question = json.loads(body)
            ask = question["ask"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"error": 'expected a JSON object with "ask"'}
        match ask:
            case "greet":
                return await self._greeting()
            case "leave":
                return await self._leave(question, sockets)
            case "settle":
                await self.settle()
                return await self._reading()
            case "counters":
                return await self._reading()
            case "drain":
                await self._drain()
                return {"draining": True}
            case "end":
                await self._drain()
                self._ended.set()
                return {"ending": True}
        return {"error": f"version {VERSION} knows no {ask!r}"}

    async def _leave(self, question: Answer, sockets: Sequence[Socket]) -> Answer:
        try:
            order = read_leave_order(question.get("order"), len(sockets))
            async with self._leaving:
                served = read_served(question.get("served"))
                left = await self._worker.leave(order, sockets, served=served)
        except (ValueError, HandOverError) as error:  # everything is as it was
            return {"error": str(error)}
        self.has_left = not left.failure
        report = {"handed": left.handed, "longest": left.longest, "failure": left.failure}
        return {**report, **await self._reading()}

    async def _greeting(self) -> Answer:
        index, workers = self._place
        return {
            "version": VERSION,
            "program": __version__,
            "pid": os.getpid(),
            "worker": index,
            "workers": workers,
            "states": STATE_VERSION,
            "draining": self._draining,
            "estate": self.estate,
            **await self._reading(),
        }

    async def _reading(self) -> Answer:
        status = await self._worker.status()
        return {
            "flows": status["flows"],
            "counters": await self._worker.counters(former=True),
        }

    async def _drain(self) -> None:
        if not self._draining:
            self._draining = True
            await self._worker.drain(DrainOrder(EVERYTHING, self.pace))
        self._decided.set()


def write_leave_order(order: LeaveOrder) -> dict[str, list[int]]:
    """Who gets which flows, to be written as JSON."""
    return {name: list(steered) for name, steered in order.items()}


def read_leave_order(written: object, heirs: int) -> dict[str, Steered]:
    """Read what ``write_leave_order`` has written.

    Args:
        written: that.
        heirs: how many there are.

    Raises:
        ValueError: it is nothing of the kind.

    """
    if not isinstance(written, dict):
        raise ValueError('expected "order", an object of listeners')
    return {str(name): _steered(name, fields, heirs) for name, fields in written.items()}


def read_served(written: object) -> frozenset[int] | None:
    """Which listening sockets heirs have, by their cookies; None if that is not told: all.

    Raises:
        ValueError: it is told in no way that we know.

    """
    if written is None:
        return None
    if not (isinstance(written, list) and all(type(cookie) is int for cookie in written)):
        raise ValueError(f'"served": expected numbers, not {written!r}')
    return frozenset(written)


def _steered(name: str, fields: object, heirs: int) -> Steered:
    if not (isinstance(fields, list) and len(fields) == 4 and all(type(n) is int for n in fields)):
        raise ValueError(f"{name}: expected four numbers, not {fields!r}")
    steered = Steered(*fields)
    workers, lone, prefix_v4, prefix_v6 = steered
    if not (1 <= workers <= max(1, heirs) and 0 <= lone < heirs):
        raise ValueError(f"{name}: {workers} workers or worker {lone} of {heirs}")
    if not (0 <= prefix_v4 <= BITS_V4 and 0 <= prefix_v6 <= BITS_V6):
        raise ValueError(f"{name}: prefixes of {prefix_v4} and {prefix_v6} bits")
    return steered


async def _next(end: SocketType) -> Socket | None:
    """Wait for the next knock, and return what it brings; None if there can be none."""
    room = room_for(KNOCK_FILES)
    while True:
        try:
            data, control, _, _ = await end.recvmsg(KNOCK_BYTES, room, MSG_CMSG_CLOEXEC)
        except OSError:  # ECONNRESET: the other end was closed with something of ours unread
            return None
        files = files_in(control)
        if len(files) == 1 and data == KNOCK and _are_sockets(files):
            return Socket(fileno=files[0])
        for fd in files:
            os.close(fd)
        if not data:
            return None


def _are_sockets(files: Iterable[int]) -> bool:
    return all(stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in files)


def knock(end: Socket) -> Wire:
    """Begin a conversation with whoever has the other end of a channel.

    Raises:
        WireError: nobody has it, or knocks are not heard any more.

    """
    ours, theirs = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_STREAM)
    with theirs:
        try:
            end.sendmsg([KNOCK], rights([theirs.fileno()]), stdlib.MSG_DONTWAIT)
        except OSError as error:  # EPIPE, ECONNRESET, EAGAIN
            ours.close()
            raise WireError("the predecessor is gone, or does not listen") from error
    return Wire(ours)
