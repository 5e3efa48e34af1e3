"""A worker in a process of its own: ``python -m proxy.engine.child INDEX FD CHANNEL``.

It is told what to be by the supervisor, over the wire at the descriptor FD, and lives as long as
that; or longer, as an orphan, if somebody may come by CHANNEL, see ``succession``. It takes no
signals but those that cannot be refused: the supervisor decides when to stop.

Down come orders, pickled: a number, the name of a ``RelayPort`` method, its arguments. Sockets of
an ``apply`` come beside it, in the order of the listeners they belong to, and so do those of an
``expect``. Two more orders are about its being left behind: ``entrust`` is what the supervisor
leaves to its successor, and ``part`` is the last word before it goes. And ``renew_standby`` is for
a worker that had one. Up go, as JSON objects:

* ``{"answer": NUMBER, "value": ..., "serving": [COOKIE, ...]}`` or ``{"answer": NUMBER, "error":
  TEXT}``; ``serving`` are the listening sockets that are still in use, so that the supervisor can
  close its duplicates of the others;
* ``{"ask": "open"}``: a predecessor gives nothing. Shall what was applied be opened without? Only a
  supervisor that lives says so (``open``, an order without an answer). If it has died, the wires to
  the predecessors may have ended with it, and these have their flows and their clients yet;
* ``{"log": {...}}``, an event for the log.

And up go, without being asked for one by one, finished log lines of flows that ended, once it has
been said which are to have one: ``L`` and the lines, as bytes. They are not JSON, because whoever
hears of them only passes them on. The last are sent before ``finish`` is answered.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from socket import socket as Socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeAlias

import structlog
import trio

from proxy.engine.commons import Commons
from proxy.engine.drains import SLICE
from proxy.engine.flow_lines import Lines
from proxy.engine.garbage import spare_collector
from proxy.engine.handover.succession import Succession
from proxy.engine.orphan_log import OrphanLog
from proxy.engine.process_name import name_process, worker_name
from proxy.engine.specs import OpenListener
from proxy.engine.unix import BoundUnixSocket
from proxy.engine.wire import Message, Wire, WireError
from proxy.engine.worker import Worker

if TYPE_CHECKING:
    from proxy.engine.survival.executor import Legacy
    from proxy.engine.survival.will import Will

Event: TypeAlias = "dict[str, Any]"

LOG_MAX: Final = 1000
"""Events that wait to be sent; further ones are dropped, and the next one says how many."""

GATHER_LINES: Final = 0.1
"""Seconds that ended flows gather before their lines are sent. It is the message that costs the
supervisor something: with the usual ``GATHER`` a flow cost it 8 microseconds, and costs it 4 so; as
a row of JSON that it wrote a line from, 18."""

MESSAGE_SIZE: Final = 128 * 1024
"""Bytes of lines that are sent at once: about as many as a socket takes without waiting."""

LINES: Final = b"L"
"""How a message begins that is log lines; every other begins with a brace."""


class Hello(NamedTuple):
    """The first message down: what the worker is made of; see ``Worker``."""

    table_limit: int
    recent: int
    first_id: int
    step: int


def hello(settings: Hello, commons: int) -> Message:
    """Write the first message; the memory of all workers goes beside it."""
    return Message(pickle.dumps(settings), (commons,))


def order(
    number: int, method: str, arguments: Sequence[Any], options: Mapping[str, Any]
) -> Message:
    """Write an order; the sockets of a change go beside it."""
    files: list[int] = []
    if method == "expect":
        (sockets,) = arguments
        files, arguments = [socket.fileno() for socket in sockets], ()
    elif method == "apply":
        (change,) = arguments
        counts = [len(each.sockets) for each in change.opened]
        files = [socket.fileno() for each in change.opened for socket in each.sockets]
        bare = tuple(each._replace(sockets=()) for each in change.opened)
        arguments = (replace(change, opened=bare), counts)
    return Message(pickle.dumps((number, method, tuple(arguments), options)), tuple(files))


def read_order(message: Message) -> tuple[int, str, tuple[Any, ...], dict[str, Any]]:
    """Read an order; its sockets are the caller's."""
    number, method, arguments, options = pickle.loads(message.body)  # noqa: S301 - it is trusted
    if method == "expect":
        arguments = ([Socket(fileno=fd) for fd in message.files],)
    elif method == "apply":
        bare, counts = arguments
        files = iter(message.files)
        opened = tuple(
            each._replace(sockets=tuple(_received(each, next(files)) for _ in range(count)))
            for each, count in zip(bare.opened, counts, strict=True)
        )
        arguments = (replace(bare, opened=opened),)
    return number, method, arguments, options


def read_lines(body: bytes) -> Lines | None:
    """The log lines that a message brings; None if it is another message."""
    if not body.startswith(LINES):
        return None
    text = body[len(LINES) :]
    return Lines(text, text.count(b"\n"))


def _received(opened: OpenListener, fd: int) -> Socket:
    """A listening socket that came as a descriptor, and tells its address as the table has it."""
    return BoundUnixSocket(fileno=fd) if opened.spec.transport.is_unix else Socket(fileno=fd)


class Child:
    """Serves a supervisor, and then whoever comes after it.

    Args:
        wire: to the supervisor.
        worker: the relay.
        succession: how a successor comes.
        orphan_log: where lines go when nobody is there who writes them.
        renew: makes a standby, in place of one that has ended.

    """

    def __init__(
        self,
        wire: Wire,
        worker: Worker,
        succession: Succession,
        orphan_log: OrphanLog,
        renew: Callable[[], None],
    ) -> None:
        self._wire = wire
        self._worker = worker
        self._succession = succession
        self._log = orphan_log
        self._renew = renew
        self._logging = trio.Event()
        self._lines = b""  # of flows that ended, not sent yet
        self._opening = trio.Event()
        self._orphaned = False
        self._finishing = False

    async def serve(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        """Relay and obey until the supervisor is gone, and nobody comes; then end every flow.

        Args:
            events: what is logged meanwhile.

        """
        self._worker.when_bereaved(self._ask_to_open)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._worker.run)
            nursery.start_soon(self._tell_events, events)
            nursery.start_soon(self._tell_flows)
            nursery.start_soon(self._succession.run)
            with suppress(WireError):
                while True:
                    nursery.start_soon(self._obey, *read_order(await self._wire.receive()))
            if not self._finishing:
                self._orphaned = True
                await self._succession.outlive()
                self._worker.give_back()
            ended = await self._worker.finish()
            if self._orphaned:
                await self._tell_last_flows()
                log.info("orphan_ended", pid=os.getpid(), ended=ended)
            nursery.cancel_scope.cancel()
        if self._orphaned:
            with suppress(trio.WouldBlock):
                while True:
                    await self._log.event(events.receive_nowait())

    async def _ask_to_open(self) -> None:
        await self._tell({"ask": "open"})
        await self._opening.wait()

    async def _obey(
        self, number: int, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        if method == "open":
            self._opening.set()
            return
        try:
            value = await self._do(method, arguments, options)
        except Exception as error:
            log.exception("order_failed", order=method)
            await self._tell({"answer": number, "error": f"{type(error).__name__}: {error}"})
            return
        serving = self._worker.serving()
        await self._tell({"answer": number, "value": value, "serving": serving})

    async def _do(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Carry out an order; what of it is needed when nobody orders any more is kept first."""
        match method:
            case "entrust":
                (self._succession.estate,) = arguments
                return None
            case "renew_standby":
                self._renew()
                return None
            case "part":
                await self._tell_last_flows()
                self._orphaned = True
                return None
            case "apply":
                self._succession.pace = arguments[0].pace
            case "settle":
                await self._succession.settle()
                return None
            case "stand_aside" | "stand_up":
                self._succession.has_left = method == "stand_aside"
            case "finish":
                self._finishing = True
        value = await getattr(self._worker, method)(*arguments, **options)
        match method:
            case "log_flows":
                self._logging.set()
            case "finish":
                await self._tell_last_flows()
        return value

    async def _tell_flows(self) -> None:
        await self._logging.wait()
        while True:
            lines = await self._worker.wait_flow_lines(GATHER_LINES)
            self._lines += lines.text
            if lines.count < SLICE or len(self._lines) >= MESSAGE_SIZE:
                await self._tell_lines()

    async def _tell_last_flows(self) -> None:
        await self._tell_lines()
        while self._logging.is_set() and (lines := self._worker.flow_lines()).count:
            self._lines += lines.text
            await self._tell_lines()

    async def _tell_lines(self) -> None:
        """Tell what has gathered."""
        text, self._lines = self._lines, b""
        if text and self._orphaned:
            await self._log.lines(text)
        elif text:
            with suppress(WireError):
                await self._wire.send(LINES + text)

    async def _tell_events(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        async for event in events:
            if not self._orphaned:
                await self._tell({"log": event})
                continue
            with trio.CancelScope(shield=True):  # it takes a moment, and may be the last word
                await self._log.event(event)

    async def _tell(self, message: dict[str, Any]) -> None:
        with suppress(WireError):  # ``serve`` hears of it too
            await self._wire.send(json.dumps(message, separators=(",", ":"), default=str).encode())


class EventQueue:
    """What is logged, on its way to the supervisor: bounded; what does not fit is counted."""

    def __init__(self) -> None:
        self._into, self.out = trio.open_memory_channel[Event](LOG_MAX)
        self._dropped = 0

    def put(self, _logger: object, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        """Take an event from structlog, as its last processor."""
        if self._dropped:
            event["dropped_before"] = self._dropped
        try:
            self._into.send_nowait({**event, "level": method})
        except trio.WouldBlock:
            self._dropped += 1
        else:
            self._dropped = 0
        raise structlog.DropEvent


def main(index: int, fd: int, channel: int) -> None:
    """Serve the supervisor at the other end of a descriptor, or who comes by a channel."""
    name_process(worker_name(index))
    prepare()
    serve(fd, channel)


def prepare() -> None:
    """Make a process fit for a worker: it takes no signals, and seldom looks for garbage.

    None of those that mean something to the service, for who signals that by its name means us too.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    spare_collector()


def serve(
    fd: int,
    channel: int,
    will: Will | None = None,
    legacy: Legacy | None = None,
    renew: Callable[[], None] = lambda: None,
) -> None:
    """Serve likewise, in a process that is prepared.

    Args:
        fd: of the wire to the supervisor.
        channel: by which a successor comes.
        will: where flows are left behind, should this process be killed; see ``standby``.
        legacy: what was left behind to us.
        renew: makes a standby, in place of one that has ended.

    """
    trio.run(_main, fd, channel, will, legacy, renew)


async def _main(
    fd: int, channel: int, will: Will | None, legacy: Legacy | None, renew: Callable[[], None]
) -> None:
    events = EventQueue()
    structlog.configure(processors=[structlog.processors.format_exc_info, events.put])
    wire = Wire(Socket(fileno=fd))
    message = await wire.receive()
    hello: Hello = pickle.loads(message.body)  # noqa: S301 - from the supervisor
    (memory,) = message.files
    commons = Commons(memory, hello.step)
    os.close(memory)
    worker = Worker(*hello, commons, will)
    if will is not None:
        immortal.append(worker)
    if legacy is not None:
        worker.inherit(legacy)
    place = ((hello.first_id - 1) % hello.step, hello.step)
    succession = Succession(Socket(fileno=channel), worker, place)
    await Child(wire, worker, succession, OrphanLog(place[0]), renew).serve(events.out)


immortal: Final[list[Worker]] = []
"""Workers that are never collected, whatever fails: their sockets are their standby's, too."""

log = structlog.get_logger()

if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
