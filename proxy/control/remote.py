"""One worker process, seen from the supervisor: its life, and its ``RelayPort`` at a distance.

Every call is an order over the wire (see ``engine.child``) and waits for the answer with its
number. A caller who leaves takes nothing back: the order is obeyed, its answer unheard.

The process also has one end of a succession channel; the other is here, and with whoever keeps it
for a successor, who can so speak to the process when we are gone. ``part`` leaves it to that.

When the process ends, however that happens, every call that waits fails with ``WorkerLostError``,
and so does each later one: what to do then is the crew's affair.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, closing, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
import trio

import proxy
from proxy.control.lineage import Born
from proxy.control.silence import Silence
from proxy.core.events import EventKind, FlowEvent
from proxy.engine.child import Hello, hello, order, read_lines
from proxy.engine.handover.succession import channel
from proxy.engine.watch import Told
from proxy.engine.wire import Wire, WireError, wire_pair

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from socket import SocketType
    from socket import socket as Socket

    from proxy.control.lineage import Origin, Process
    from proxy.core.explanation import Explanation, FlowQuestion
    from proxy.core.live_limit import LiveLimit
    from proxy.core.query import FlowQuery
    from proxy.engine.flow_lines import FlowLog, Lines
    from proxy.engine.port import (
        FlowIds,
        FlowPage,
        MovedFlows,
        OrderCount,
        RelayCounters,
        RelayStatus,
    )
    from proxy.engine.specs import Change, DrainOrder, EndpointOrder, HealthReport, UpstreamSpec

LAST_WORDS: Final = 5.0
"""Seconds a process has to end by itself when its wire is closed; it has only to end its flows."""

UNANSWERED: Final = 0
"""The number of an order that has no answer."""

LEVELS: Final = {"debug", "info", "warning", "error", "critical"}

log = structlog.get_logger()


class WorkerLostError(Exception):
    """The process has ended."""


class OrderError(Exception):
    """The worker could not do what it was told: a fault of ours, which its log tells more of."""


class Watcher(Protocol):
    """Who wants to know what happens to a worker. None may wait."""

    def serves(self, index: int, cookies: set[int]) -> None:
        """These listening sockets are in use there; after every answer since it was told which."""
        ...

    def logged(self, lines: Lines) -> None:
        """These lines are for the log."""
        ...

    def lost(self, index: int) -> None:
        """It has ended; before those who wait for an answer are told."""
        ...


class ChannelKeeper(Protocol):
    """Who keeps our ends of succession channels for whoever comes after us."""

    def keep(self, pid: int, end: Socket) -> None:
        """Keep that of the worker with this process id."""
        ...

    def drop(self, pid: int) -> None:
        """Keep it no more: the worker has ended."""
        ...


class RemoteWorker:
    """A worker process, and the calls to it. Owns the process, and its ends of wire and channel.

    Args:
        index: of the worker, from 0 on.
        settings: what it is made of.
        commons: the memory of all workers.
        watcher: told what happens to it.
        keeper: keeps the channel.
        origin: where the process comes from; it is started anew by default.

    Attributes:
        pid: of the process; 0 before it was started.
        channel: our end of its succession channel; None before it was started.
        silence: whether it answers; its crew notices.
        last_status: how it was when it last told.
        last_counts: how many flows each order was for then.

    """

    def __init__(
        self,
        index: int,
        settings: Hello,
        commons: int,
        watcher: Watcher,
        keeper: ChannelKeeper,
        origin: Origin | None = None,
    ) -> None:
        self.index = index
        self.pid = 0
        self._settings = settings
        self._commons = commons
        self._watcher = watcher
        self._keeper = keeper
        self._origin = origin or NewProcess(index)
        self.channel: Socket | None = None
        self.silence = Silence()
        self.last_status: RelayStatus | None = None
        self.last_counts: list[OrderCount] = []
        self._parted = False
        self._wire: Wire | None = None
        self._process: Process | None = None
        self._numbers = count(1)
        self._waiting: dict[int, _Call] = {}
        self._is_told = False  # what to be; until then nothing follows from what it serves
        self._started = trio.Event()
        self._lost = trio.Event()

    async def wait_started(self) -> None:
        """Wait until it can be told what to do."""
        await self._started.wait()

    async def run(self) -> int:
        """Start the process, hear what it says until it ends, and return its exit status.

        Cancelling ends the process.

        Raises:
            OSError: it could not be started.

        """
        process, wire, self.channel = await self._origin.begin()
        with closing(wire), self.channel:
            self._process, self._wire = process, wire
            self.pid = process.pid
            self._keeper.keep(self.pid, self.channel)
            try:
                with suppress(WireError):
                    await self._hear_to_end(process, wire)
            finally:
                self._lose()
                if not self._parted:
                    self._keeper.drop(self.pid)
                    self.channel.close()
                    wire.close()
                    with trio.CancelScope(shield=True):
                        await _see_off(process)
        return process.returncode or 0

    async def _hear_to_end(self, process: Process, wire: Wire) -> None:
        """Hear the process until it has ended, whoever else has its end of the wire."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_hang_up_after, process, wire)
            with suppress(WireError):
                await wire.send(*hello(self._settings, self._commons))
                self._started.set()
                await self._hear(wire)
            nursery.cancel_scope.cancel()

    async def part(self) -> None:
        """Leave the process to whoever comes after us; it lives on when ``run`` is cancelled.

        Its lines have come by then, and further ones it writes by itself.
        """
        await self._call("part")
        self._parted = True

    def kill_process(self) -> None:
        """End the process, which does not do it by itself."""
        if self._process is not None:
            self._process.kill()

    async def expect(self, predecessors: Sequence[SocketType]) -> None:
        """Have it expect flows; the sockets stay the caller's."""
        await self._call("expect", predecessors)

    async def apply(self, change: Change) -> None:
        """Be what the change says."""
        self._is_told = True
        await self._call("apply", change)

    async def readdress(self, upstreams: Sequence[UpstreamSpec]) -> None:
        """Have these upstreams other endpoints."""
        await self._call("readdress", upstreams)

    async def drain(self, drain_order: DrainOrder) -> bool:
        """Begin to drain."""
        return bool(await self._call("drain", drain_order))

    async def administer(self, endpoint_order: EndpointOrder) -> bool:
        """Disable or enable an endpoint."""
        return bool(await self._call("administer", endpoint_order))

    async def set_health(self, reports: Sequence[HealthReport]) -> None:
        """Know what active checks say."""
        await self._call("set_health", reports)

    async def limit(self, orders: Sequence[LiveLimit]) -> None:
        """Keep flows to these orders."""
        await self._call("limit", orders)

    async def order_counts(self) -> list[OrderCount]:
        """How many live flows each order is for."""
        counts: list[OrderCount] = await self._call("order_counts")
        self.last_counts = counts
        return counts

    async def stand_aside(self) -> None:
        """Have it take nobody in: it follows one whose sockets a successor has."""
        await self._call("stand_aside")

    async def stand_up(self) -> None:
        """Have it take clients in again, if it stood aside."""
        await self._call("stand_up")

    async def settle(self) -> None:
        """Have it drain: the successor has settled, and it has stood aside, or given all."""
        await self._call("settle")

    async def own(self) -> None:
        """Have it know that what came from predecessors stays."""
        await self._call("own")

    async def wait_drained(self) -> None:
        """Wait until the drain of everything is over."""
        await self._call("wait_drained")

    async def flows(self, query: FlowQuery) -> FlowPage:
        """List flows."""
        page: FlowPage = await self._call("flows", query)
        return page

    async def flow_ids(self, query: FlowQuery) -> FlowIds:
        """Find flows."""
        found: FlowIds = await self._call("flow_ids", query)
        return found

    async def flow_rows(self, ids: Sequence[int], *, recent: bool) -> list[str | None]:
        """Describe flows."""
        rows: list[str | None] = await self._call("flow_rows", ids, recent=recent)
        return rows

    async def kill(self, query: FlowQuery) -> int:
        """End flows."""
        return int(await self._call("kill", query))

    async def counters(self, *, former: bool = False) -> RelayCounters:
        """Read every running aggregate; with those of former names, if wanted."""
        counters: RelayCounters = await self._call("counters", former=former)
        return counters

    async def status(self) -> RelayStatus:
        """Say how the relay is."""
        status: RelayStatus = await self._call("status")
        self.last_status = status
        return status

    async def explain(self, question: FlowQuestion) -> Explanation | None:
        """Say what a new flow would meet with."""
        explanation: Explanation | None = await self._call("explain", question)
        return explanation

    async def log_flows(self, flow_log: FlowLog) -> None:
        """Send lines of these flows."""
        await self._call("log_flows", flow_log)

    async def watch(self, queries: Mapping[int, FlowQuery]) -> None:
        """Tell what happens to these flows."""
        await self._call("watch", queries)

    async def wait_flow_events(self) -> Told:
        """Wait for something to happen to them."""
        events, lost = await self._call("wait_flow_events")
        return Told([_read_event(*event) for event in events], lost)

    async def moved_flows(self) -> MovedFlows:
        """Which of them have moved bytes."""
        moved: MovedFlows = await self._call("moved_flows")
        return moved

    async def entrust(self, estate: Mapping[str, Any]) -> None:
        """Have it know what a successor gets from us, which can be written as JSON."""
        await self._call("entrust", estate)

    async def renew_standby(self) -> bool:
        """Have it make a standby in place of one that has ended; false if it cannot now."""
        try:
            await self._call("renew_standby")
        except (WorkerLostError, OrderError):
            return False
        return True

    async def finish(self) -> int:
        """End every flow; return how many there were. Their lines have come by then."""
        return int(await self._call("finish"))

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        if self._wire is None or self._lost.is_set():
            await trio.lowlevel.checkpoint()
            raise WorkerLostError(f"worker {self.index} is not running")
        number = next(self._numbers)
        call = self._waiting[number] = _Call()
        try:
            await self._wire.send(*order(number, method, arguments, options))
            return await call.wait()
        except WireError as error:
            raise WorkerLostError(f"worker {self.index} has ended") from error
        finally:
            del self._waiting[number]

    async def _hear(self, wire: Wire) -> None:
        while True:
            body = (await wire.receive()).body
            lines = read_lines(body)
            if lines is not None:
                self._watcher.logged(lines)
                continue
            message = json.loads(body)
            if "log" in message:
                self._relog(message["log"])
                continue
            if "ask" in message:  # whether it shall open without what it expected
                await wire.send(*order(UNANSWERED, "open", (), {}))
                continue
            if "serving" in message and self._is_told:
                self._watcher.serves(self.index, set(message["serving"]))
            call = self._waiting.get(message["answer"])
            if call is not None:
                call.answer(message)

    def _relog(self, event: dict[str, Any]) -> None:
        level, name = event.pop("level", "info"), event.pop("event", "")
        write = getattr(log, level if level in LEVELS else "error")
        write(name, worker=self.index, **event)

    def _lose(self) -> None:
        self._lost.set()
        self._watcher.lost(self.index)
        for call in self._waiting.values():
            call.answer({})


class _Call:
    """An order that waits for its answer."""

    def __init__(self) -> None:
        self._answered = trio.Event()
        self._answer: dict[str, Any] = {}

    def answer(self, message: dict[str, Any]) -> None:
        self._answer = message
        self._answered.set()

    async def wait(self) -> Any:
        await self._answered.wait()
        if "error" in self._answer:
            raise OrderError(self._answer["error"])
        if "value" not in self._answer:
            raise WorkerLostError("the worker has ended")
        return self._answer["value"]


def _read_event(
    kind: str, watches: list[int], when: float, limit: str | None, row: str
) -> FlowEvent:
    return FlowEvent(EventKind(kind), tuple(watches), when, limit, row)


class NewProcess:
    """A process that is started; an ``Origin``.

    Args:
        index: of the worker.

    """

    def __init__(self, index: int) -> None:
        self._index = index

    async def begin(self) -> Born:
        """Start one.

        Raises:
            OSError: it could not be started.

        """
        wire, theirs = wire_pair()
        ours, line = channel()
        with theirs, line, ExitStack() as undo:
            undo.callback(wire.close)
            undo.callback(ours.close)
            process = await start("child", self._index, (theirs.fileno(), line.fileno()))
            undo.pop_all()
        return Born(process, wire, ours)


async def start_line(index: int, files: Sequence[int]) -> trio.Process:
    """Start a worker that has a standby."""
    return await start("survival.standby", index, files)


async def start(module: str, index: int, files: Sequence[int]) -> trio.Process:
    """Start a module of the engine as this worker, with these descriptors.

    It finds the program where we did.
    """
    home = str(Path(proxy.__file__).parents[1])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    return await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", f"proxy.engine.{module}", str(index), *map(str, files)],
        pass_fds=files,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )


async def _hang_up_after(process: Process, wire: Wire) -> None:
    await process.wait()
    wire.hang_up()


async def _see_off(process: Process) -> None:
    """Wait for a process whose wire is closed; end it if it does not end by itself."""
    with trio.move_on_after(LAST_WORDS):
        await process.wait()
        return
    process.kill()
    await process.wait()
