"""The crew: worker processes, which together are one ``RelayPort``.

What is whose is for ``division`` to say; here the workers are kept at work, told what to do, and
asked; their answers become one.

A worker that ends is started again at once, with a growing pause if it does so again soon, and gets
everything that was ordered before. Its clients wait meanwhile, see ``duplicates``; its flows are
gone, unless it has a standby, and counted by ``readings``.

Who asks does not wait for a worker that is silent, see there: what was last known of it stands in
for its answer, so that no counter goes backwards, or it is said whose part is missing.

Order of changes: one at a time, for all workers, the one just starting among them.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from time import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import structlog
import trio

from proxy.control.asking import Answer, Ask, ask_all, hear_all, known_status
from proxy.control.division import Division, whole
from proxy.control.duplicates import Duplicates
from proxy.control.line_queue import LineQueue
from proxy.control.lineage import Lineage
from proxy.control.readings import Readings
from proxy.control.remote import RemoteWorker, WorkerLostError, start_line
from proxy.control.silence import SILENT
from proxy.control.slots import Slots
from proxy.control.tenure import Tenure
from proxy.core.condition import Administration
from proxy.core.query import ROW_SORTS
from proxy.engine.commons import Commons, make_commons
from proxy.engine.drains import untold_row
from proxy.engine.handover.forebears import Forebears
from proxy.engine.merge import (
    merge_counters,
    merge_ids,
    merge_order_counts,
    merge_status,
    only_names_of,
    uncounted,
)
from proxy.engine.readiness import drained_listener
from proxy.engine.specs import EVERYTHING, Change, DrainOrder, DrainTarget
from proxy.engine.watch import Pending, Told

if TYPE_CHECKING:
    from socket import SocketType as Socket

    from proxy.control.remote import ChannelKeeper
    from proxy.core.address import Address
    from proxy.core.events import FlowEvent
    from proxy.core.explanation import Explanation, FlowQuestion
    from proxy.core.live_limit import LiveLimit
    from proxy.core.query import FlowQuery
    from proxy.engine.flow_lines import FlowLog, Lines
    from proxy.engine.port import (
        DrainRow,
        FlowIds,
        FlowPage,
        MovedFlows,
        OrderCount,
        RelayCounters,
        RelayStatus,
    )
    from proxy.engine.specs import EndpointOrder, HealthReport, UpstreamSpec

READING: Final = 0.5
"""Seconds between two readings of a worker: what may be unknown of one that was killed."""

HUNG: Final = 10.0
"""Seconds without an answer after which a worker is ended, and its clients get another."""

HEALTHY: Final = 60.0
"""Seconds after which an end is not laid to the charge of the start."""

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""Seconds before a worker is started again that ended soon; doubled each time."""

REPORTS_MAX: Final = 10_000
"""Endpoints whose health a worker that begins is told; far more than are checked."""

Expect: TypeAlias = "Callable[[Sequence[Socket]], Awaitable[None]]"
Introduce: TypeAlias = "Callable[[int, Expect], Awaitable[bool]]"

log = structlog.get_logger()


class Crew:
    """Worker processes as one ``RelayPort``.

    Args:
        size: how many.
        table_limit: flows at once, of all together.
        recent: ended flows remembered, of all together.
        keeper: keeps the succession channels of workers.
        standbys: whether each worker has a standby, which goes on with its flows.

    Attributes:
        forebears: what was counted in earlier lives.
        inherits: has the first life of each worker expect flows; see ``Heritage.introduce``.
        tenure: that of the house. Workers that begin when it goes to a successor, in place of some
            that were killed, take nobody in: the successor has the sockets, and datagrams that come
            to them are of its flows.

    """

    def __init__(
        self,
        size: int,
        table_limit: int,
        recent: int,
        keeper: ChannelKeeper,
        *,
        standbys: bool = False,
    ) -> None:
        self.size = size
        self._lineages = [Lineage(index, start_line) if standbys else None for index in range(size)]
        self._keeper = keeper
        self.inherits: Introduce | None = None
        self._division = Division(size, table_limit, recent)
        self._estate: Mapping[str, Any] = {}
        self._commons = make_commons(size)
        self._slots = Slots(Commons(self._commons, size))
        self._remotes: list[RemoteWorker | None] = [None] * size
        self._joined = trio.lowlevel.ParkingLot()
        self._wanted: Change | None = None
        self._orders: tuple[LiveLimit, ...] = ()
        self._drains: dict[DrainTarget, DrainOrder] = {}
        self._disabled: dict[DrainTarget, EndpointOrder] = {}
        self._health: dict[tuple[str, str, Address], HealthReport] = {}
        self._duplicates = Duplicates(size)
        self._changing = trio.Lock()
        self._finishing = False
        self._owns = False
        self.tenure = Tenure.OURS
        self._aside: list[RemoteWorker] = []  # workers that began when it was not ours
        self._begun = set[int]()  # workers of which one has been at work
        self._readings = Readings(size)
        self._lost_flows: list[int | None] = [0] * size  # with the last of each that was lost
        self._losses = trio.Event()
        self.forebears = Forebears()
        self._flow_log: FlowLog | None = None
        self._lines = LineQueue()
        self._queries: Mapping[int, FlowQuery] = {}
        self._events: Pending[FlowEvent] = Pending()
        self.restarts = 0
        self._started = round(time(), 3)

    @property
    def _there(self) -> list[RemoteWorker]:
        """Workers that are at work."""
        return [remote for remote in self._remotes if remote is not None]

    @property
    def has_standbys(self) -> bool:
        """Whether flows can outlive their worker."""
        return None not in self._lineages

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Have every worker at work until cancelled; started when all have begun."""
        try:
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as starting:
                    for index in range(self.size):
                        starting.start_soon(nursery.start, self._keep, index)
                task_status.started()
        finally:
            self._duplicates.close()
            self._slots.close()
            os.close(self._commons)

    async def apply(self, change: Change) -> None:
        """Have every worker be what the change says, and remember it for those to come."""
        async with self._changing:
            self._drains = {
                target: each
                for target, each in self._drains.items()
                if target == EVERYTHING  # a reload opens what was drained by hand
            }
            change = self._slots.given(change)
            self._wanted = whole(self._wanted, change)
            self._readings.expect_names()
            await self._all(lambda remote: self._apply(remote, change))
            self._duplicates.add(each.sockets for each in change.opened)

    async def readdress(self, upstreams: Sequence[UpstreamSpec]) -> None:
        """Have every worker's upstreams other endpoints, and those of workers to come too."""
        new = {spec.name: spec for spec in upstreams}
        async with self._changing:
            if self._wanted is not None:
                known = (new.get(spec.name, spec) for spec in self._wanted.upstreams)
                self._wanted = replace(self._wanted, upstreams=tuple(known))
            self._readings.expect_names()
            divided = self._division.upstreams
            await self._all(lambda each: each.readdress(divided(upstreams, each.index)))

    async def drain(self, order: DrainOrder) -> bool:
        """Begin to drain; false if there is no such listener or endpoint."""
        order = self._division.order(order)
        async with self._changing:
            self._drains[order.target] = order
            known = any(await self._all(lambda remote: remote.drain(order)))
            if not known and order.target != EVERYTHING:
                del self._drains[order.target]
        return known or order.target == EVERYTHING

    async def administer(self, order: EndpointOrder) -> bool:
        """Disable or enable an endpoint in every worker, and in those to come."""
        target = DrainTarget(upstream=order.upstream, endpoint=order.endpoint)
        async with self._changing:
            self._drains.pop(target, None)
            self._disabled.pop(target, None)
            known = any(await self._all(lambda remote: remote.administer(order)))
            if known and order.administration is Administration.DISABLED:
                self._disabled[target] = order
        return known

    async def set_health(self, reports: Sequence[HealthReport]) -> None:
        """Have every worker know what active checks say, and those to come too."""
        async with self._changing:
            for report in reports:
                self._health.pop(report[:3], None)  # the latest stand last
                self._health[report[:3]] = report
            for key in list(self._health)[: max(0, len(self._health) - REPORTS_MAX)]:
                del self._health[key]
            await self._all(lambda remote: remote.set_health(reports))

    async def limit(self, orders: Sequence[LiveLimit]) -> None:
        """Have every worker keep its flows to these orders, and those to come too."""
        async with self._changing:
            self._orders = tuple(orders)
            await self._all(lambda remote: remote.limit(self._orders))

    async def order_counts(self) -> list[OrderCount]:
        """How many live flows each order is for, in all workers."""
        await self._hear(RemoteWorker.order_counts)
        return merge_order_counts([remote.last_counts for remote in self._there])

    async def own(self) -> None:
        """Have all workers know that what came from predecessors stays; those to come too."""
        async with self._changing:
            self._owns = True
            await self._all(RemoteWorker.own)

    async def wait_drained(self) -> None:
        """Wait until the drain of everything is over, everywhere; a lost worker has no flows."""
        await self._all(RemoteWorker.wait_drained)

    async def flows(self, query: FlowQuery) -> FlowPage:
        """List live or recently closed flows: for short answers."""
        pages, silent = await self._hear(lambda remote: remote.flows(query))
        rows = list(heapq.merge(*(page["rows"] for page in pages), key=ROW_SORTS[query.sort]))
        return {
            "rows": rows[: query.limit] if query.limit else rows,
            "matched": sum(page["matched"] for page in pages),
            "silent": silent,
        }

    async def flow_ids(self, query: FlowQuery) -> FlowIds:
        """Find the same flows, and return their ids."""
        parts, silent = await self._hear(lambda remote: remote.flow_ids(query))
        return merge_ids(parts, query.limit, silent)

    async def flow_rows(self, ids: Sequence[int], *, recent: bool) -> list[str | None]:
        """Describe flows as JSON, each id's; None where the flow is gone."""
        rows: dict[int, str | None] = {}

        async def ask(remote: RemoteWorker) -> None:
            own = [id for id in ids if self._division.worker_of(id) == remote.index]
            if own:
                rows.update(zip(own, await remote.flow_rows(own, recent=recent), strict=True))

        await self._hear(ask)
        strayed = [id for id in ids if rows.get(id) is None]
        if strayed:  # they came from more workers, or fewer, and are with another
            parts, _ = await self._hear(lambda one: one.flow_rows(strayed, recent=recent))
            for found in parts:
                there = zip(strayed, found, strict=True)
                rows |= {id: row for id, row in there if row is not None}
        return [rows.get(id) for id in ids]

    async def kill(self, query: FlowQuery) -> int:
        """End matching live flows as ``killed``."""
        return sum(await self._all(lambda remote: remote.kill(query)))

    async def counters(self) -> RelayCounters:
        """Read every running aggregate; each worker's is consistent in itself."""
        await self._hear(self._read)
        # One that ended while others were asked is among the past by now.
        readings = [self._readings.shown(remote.index) for remote in self._there]
        parts = [reading for reading in readings if reading is not None]
        # Workers that are there know which names there still are; but of a listener that one worker
        # serves alone nobody else knows while that one is away.
        if parts and len(parts) < len(self._remotes) and self._wanted is not None:
            parts.append(uncounted(each.spec for each in self._wanted.opened))
        counters = merge_counters([*parts, *self.past()])
        return only_names_of(merge_counters(parts), counters) if parts else counters

    def past(self) -> list[RelayCounters]:
        """What was counted by those that are no more, here and in earlier lives, and by us."""
        ours = merge_counters(())
        ours["log_dropped"] = self._lines.dropped
        ours["worker_restarts"] = self.restarts
        return [*self._readings.past, *self.forebears.readings(), ours]

    async def wait_losses(self) -> None:
        """Wait until more is past than at the last call."""
        await self._losses.wait()
        self._losses = trio.Event()

    async def status(self) -> RelayStatus:
        """Say how the relay is; of drains also what no worker is there to tell."""
        await self._hear(RemoteWorker.status)
        status = merge_status([*known_status(self._there, self._readings)])
        draining = status["draining"] or EVERYTHING in self._drains
        not_ready = [*status["not_ready"], *self._not_ready(draining=draining)]
        return {
            **status,
            "pid": os.getpid(),
            "started": self._started,
            "draining": draining,
            "drains": [*status["drains"], *self._untold_drains(status["drains"])],
            "not_ready": list(dict.fromkeys(not_ready)),
        }

    def _not_ready(self, *, draining: bool) -> Iterator[str]:
        """What is not ready that we know of ourselves; no listener is missed if all drains."""
        for target in () if draining else self._drains:
            if target.listener is not None:
                yield drained_listener(target.listener)
        for index, remote in enumerate(self._remotes):
            if remote is None:
                yield f"worker {index}: not running"
            elif remote.silence.seconds is not None:
                yield f"worker {index}: does not answer"

    def _untold_drains(self, rows: Sequence[DrainRow]) -> Iterator[DrainRow]:
        told = {DrainTarget(row["listener"], row["upstream"], row["endpoint"]) for row in rows}
        return (untold_row(each) for target, each in self._drains.items() if target not in told)

    async def alive(self) -> None:
        """Return at once: that workers move is seen to here, see ``_read_often``."""
        await trio.lowlevel.checkpoint()

    async def finish(self) -> int:
        """Accept no more, and end every flow as ``drained``; return how many there were."""
        self._finishing = True
        return sum(await self._all(RemoteWorker.finish))

    async def entrust(self, estate: Mapping[str, Any]) -> None:
        """Have every worker know what a successor gets from us, and those to come too."""
        async with self._changing:
            self._estate = estate
            await self._all(lambda remote: remote.entrust(estate))

    async def wait_whole(self) -> None:
        """Wait until every worker is at work."""
        while None in self._remotes:
            await self._joined.park()

    def channels(self) -> list[tuple[int, Socket]]:
        """Our ends of the workers' channels, by their process ids; they stay ours."""
        return [(each.pid, each.channel) for each in self._there if each.channel is not None]

    async def stand_up(self) -> None:
        """Have those that stand aside take clients in: the successor has failed."""
        async with self._changing:
            aside, self._aside = self._aside, []
            for remote in aside:
                with suppress(WorkerLostError):
                    await remote.stand_up()

    async def settle(self) -> None:
        """Have those that stand aside drain: the successor has everything, and knows no more."""
        async with self._changing:
            for remote in self._aside:
                with suppress(WorkerLostError):
                    await remote.settle()

    async def part(self) -> None:
        """Leave all workers to whoever comes after us; they live on when ``run`` is cancelled."""
        self._finishing = True
        await self._all(RemoteWorker.part)

    async def explain(self, question: FlowQuestion) -> Explanation | None:
        """Ask the client's worker; None if there is no such listener, or the worker is away.

        Or it is silent.
        """
        opened = self._wanted.opened if self._wanted is not None else ()
        for each in opened:
            if each.spec.name == question.listener:
                remote = self._remotes[self._division.worker_for(each, question.peer)]
                if remote is not None:
                    with suppress(WorkerLostError), remote.silence.asking():
                        return await remote.explain(question)
        await trio.lowlevel.checkpoint()
        return None

    async def log_flows(self, flow_log: FlowLog) -> None:
        """Have every worker send lines of these flows, and those to come too."""
        async with self._changing:
            self._flow_log = flow_log
            await self._all(lambda remote: remote.log_flows(flow_log))

    async def wait_flow_lines(self) -> Lines:
        """Wait for lines of flows that ended, in any worker."""
        return await self._lines.wait()

    async def watch(self, queries: Mapping[int, FlowQuery]) -> None:
        """Have every worker tell what happens to these flows, and those to come too."""
        async with self._changing:
            self._queries = queries
            await self._hear(lambda remote: remote.watch(queries))  # see ``_heard_again``

    async def wait_flow_events(self) -> Told:
        """Wait for something to happen to flows that are watched, in any worker."""
        await self._events.wait()
        return Told(*self._events.take())

    async def moved_flows(self) -> MovedFlows:
        """Which watched flows have moved bytes since the last call."""
        parts, _ = await self._hear(RemoteWorker.moved_flows)
        return {
            "flows": [flow for part in parts for flow in part["flows"]],
            "omitted": sum(part["omitted"] for part in parts),
        }

    def serves(self, index: int, cookies: set[int]) -> None:
        """Close our duplicates of the sockets that no worker uses any more."""
        self._duplicates.serves(index, cookies)

    def logged(self, lines: Lines) -> None:
        """Keep lines of flows that ended until they are asked for."""
        self._lines.put(lines)

    def lost(self, index: int) -> None:
        """Count what a worker that has ended leaves behind."""
        self._remotes[index] = None
        self._slots.lost(index)
        self._duplicates.lost(index)
        if self._queries:  # of its flows nothing more will be told
            self._events.lose()
        lineage = self._lineages[index]
        lives_on = lineage is not None and not self._finishing and lineage.has_standby
        self._lost_flows[index] = self._readings.lost(index, lives_on=lives_on)
        self._losses.set()

    async def _keep(self, index: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Have a worker at work, and another when it has ended, until all are to end."""
        lineage = self._lineages[index]
        try:
            await self._keep_line(index, lineage, task_status)
        finally:
            if lineage is not None:
                await lineage.end()

    async def _keep_line(
        self, index: int, lineage: Lineage | None, task_status: trio.TaskStatus[None]
    ) -> None:
        pause = 0.0
        while True:
            began = trio.current_time()
            settings = self._division.settings(index)
            remote = RemoteWorker(index, settings, self._commons, self, self._keeper, lineage)
            async with trio.open_nursery() as life:
                life.start_soon(self._employ, remote, task_status)
                if lineage is not None:
                    life.start_soon(lineage.watch, remote)
                code = await self._live(remote)
                life.cancel_scope.cancel()
            if self._finishing or EVERYTHING in self._drains:
                return
            if trio.current_time() - began > HEALTHY or (
                lineage is not None and lineage.has_standby
            ):
                pause = 0.0  # flows wait for the standby
            lost = self._lost_flows[index]
            what = {"worker": index, "pid": remote.pid, "exit": code, "lost": lost}
            log.error("worker_lost", **what, again_in=pause)
            await trio.sleep(pause)
            pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * pause))
            self.restarts += 1

    async def _live(self, remote: RemoteWorker) -> int | None:
        """Run a worker to its end; None if it could not even be started."""
        try:
            return await remote.run()
        except OSError as error:  # EMFILE, ENOMEM, EAGAIN
            log.error("worker_not_started", worker=remote.index, error=str(error))
            return None

    async def _employ(self, remote: RemoteWorker, task_status: trio.TaskStatus[None]) -> None:
        """Tell a worker that has started what to do, and look after it."""
        with suppress(WorkerLostError):  # ``_live`` hears of it, too
            await remote.wait_started()
            inherited = await self._inherit(remote)
            async with self._changing:
                await self._brief(remote, inherited=inherited)
                self._remotes[remote.index] = remote
                self._joined.unpark_all()
            if self._lineages[remote.index] is not None:  # at once, for it may be killed again
                await self._read(remote)
                self._losses.set()  # what lives on is told from what is past
            await remote.status()  # what is known of it, should it fall silent
            log.info("worker_started", worker=remote.index, pid=remote.pid)
            if remote.index not in self._begun:  # not before: who waits for it waits for another
                self._begun.add(remote.index)
                task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_often, remote)
                nursery.start_soon(self._collect_events, remote)

    async def _brief(self, remote: RemoteWorker, *, inherited: bool) -> None:
        """Tell a worker all that those before it were told."""
        if self._flow_log is not None:
            await remote.log_flows(self._flow_log)
        if self.tenure is not Tenure.OURS:
            await remote.stand_aside()
            self._aside.append(remote)
        if self._owns:  # before it has anything, of a killed one or its own
            await remote.own()
        if self._wanted is not None and not inherited:
            await self._apply(remote, self._wanted)
        for each in self._disabled.values():
            await remote.administer(each)
        if self._health:
            await remote.set_health(tuple(self._health.values()))
        if self._estate:
            await remote.entrust(self._estate)
        if self._orders:
            await remote.limit(self._orders)
        for order in self._drains.values():
            await remote.drain(order)
        if self._queries:
            await remote.watch(self._queries)
        if self.tenure is Tenure.GONE:
            await remote.settle()

    async def _inherit(self, remote: RemoteWorker) -> bool:
        """Have a worker take over flows; false if there are none.

        It is told then what to be, all of them at once: each waits for the predecessors, and each
        predecessor for all of them. Nothing is changed before they are at work.
        """
        if self.inherits is None or self._wanted is None:
            return False
        if not await self.inherits(remote.index, remote.expect):
            return False
        await self._apply(remote, self._wanted)
        return True

    async def _apply(self, remote: RemoteWorker, change: Change) -> None:
        await remote.apply(self._division.part(change, remote.index))

    async def _read_often(self, remote: RemoteWorker) -> None:
        """Read a worker's counters, and end it if it does not answer: it hangs."""
        with suppress(WorkerLostError):
            while True:
                await trio.sleep(READING)
                with trio.move_on_after(HUNG) as waiting:
                    await self._read_patiently(remote)
                    await self._read_former(remote)
                if waiting.cancelled_caught:
                    log.error("worker_hung", worker=remote.index, pid=remote.pid, silent=HUNG)
                    remote.kill_process()

    async def _read_patiently(self, remote: RemoteWorker) -> None:
        """Read a worker's counters; while it does not answer it is silent."""
        with trio.move_on_after(SILENT):
            await self._read(remote)
            return
        log.warning("worker_silent", worker=remote.index, pid=remote.pid)
        with remote.silence.lasting():
            await self._read(remote)
        await self._heard_again(remote)

    async def _heard_again(self, remote: RemoteWorker) -> None:
        """Have one that was silent know what is watched, and readers that they have missed some."""
        log.info("worker_answers", worker=remote.index, pid=remote.pid)
        if self._queries:
            await remote.watch(self._queries)
            self._events.lose()

    async def _read(self, remote: RemoteWorker) -> None:
        reading = await remote.counters()
        if self._remotes[remote.index] is remote:
            self._readings.keep(remote.index, reading)

    async def _read_former(self, remote: RemoteWorker) -> None:
        """Read those of former names, too, when they may have changed; once, for they are many."""
        if self._readings.take_unsettled(remote.index):
            reading = await remote.counters(former=True)
            if self._remotes[remote.index] is remote:
                self._readings.keep_whole(remote.index, reading)

    async def _collect_events(self, remote: RemoteWorker) -> None:
        with suppress(WorkerLostError):
            while True:
                events, lost = await remote.wait_flow_events()
                if lost:
                    self._events.lose()
                for event in events:
                    self._events.put(event)

    async def _all(self, ask: Ask[Answer]) -> list[Answer]:
        """Ask every worker at once; those that end meanwhile are left out."""
        return await ask_all(self._there, ask)

    async def _hear(self, ask: Ask[Answer]) -> tuple[list[Answer], list[int]]:
        """Ask every worker at once, but do not wait for silent ones; say which these are."""
        return await hear_all(self._there, ask)
