"""The worker: the relay with its listeners, and the answers it gives through ``RelayPort``.

Only here do flow objects meet questions about them. Long answers are made in slices, and between
two slices the pump has its turn; each row is consistent in itself, and a flow that ends between
two slices is left out.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from itertools import count
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

import trio

from proxy import __version__
from proxy.core.flow import CloseReason, CloseSide, Flow
from proxy.core.query import SORTS, FlowQuery, FlowRow
from proxy.engine.datagram import DatagramFlow
from proxy.engine.drains import SLICE, Drains, slices
from proxy.engine.explain import Explainer
from proxy.engine.flow_lines import FlowLog, Lines
from proxy.engine.flow_rows import FlowRows
from proxy.engine.handover.arriving import Arriving
from proxy.engine.handover.custody import Custody
from proxy.engine.handover.doors import Doors
from proxy.engine.handover.forebears import Forebears
from proxy.engine.handover.leaving import Leaving, Left
from proxy.engine.handover.transfer import PATIENCE, Bequeather, Heir
from proxy.engine.limited import limit_live
from proxy.engine.pulse import Pulse
from proxy.engine.readiness import not_ready
from proxy.engine.relay import GATHER, Relay
from proxy.engine.roster import Roster
from proxy.engine.sampler import Sampler
from proxy.engine.search import FlowSearch
from proxy.engine.specs import (
    EVERYTHING,
    Change,
    DrainOrder,
    DrainTarget,
    EndpointOrder,
    HealthReport,
)
from proxy.engine.stream import StreamFlow
from proxy.engine.tally import Tally
from proxy.engine.turns import Turn
from proxy.engine.watch import Told, Watch
from proxy.engine.wire import wire_on

if TYPE_CHECKING:
    from socket import SocketType as Socket

    from proxy.core.counters import ListenerCounters
    from proxy.core.explanation import Explanation, FlowQuestion
    from proxy.core.live_limit import LiveLimit
    from proxy.engine.commons import Commons
    from proxy.engine.port import (
        FlowIds,
        FlowPage,
        MovedFlows,
        OrderCount,
        RelayCounters,
        RelayStatus,
    )
    from proxy.engine.specs import LeaveOrder, UpstreamSpec
    from proxy.engine.survival.executor import Legacy
    from proxy.engine.survival.will import Will
    from proxy.engine.terms import Terms

LISTED: Final = 25
"""Flows whose ids are listed, or their bytes looked at, before a turn may end: a hundredth of a
millisecond."""


class Worker:
    """Relays until cancelled; a ``RelayPort``.

    Args:
        table_limit: flows at once.
        recent: ended flows remembered.
        first_id: of its flows.
        step: from one id to the next: the number of workers, whose ids do not meet.
        commons: what the others tell.
        will: where flows are left behind, should the worker be killed; None if nobody reads it.

    Attributes:
        forebears: what was counted in earlier lives, where that is not for others to know.

    """

    def __init__(
        self,
        table_limit: int,
        recent: int,
        first_id: int = 1,
        step: int = 1,
        commons: Commons | None = None,
        will: Will | None = None,
    ) -> None:
        self._relay = Relay(table_limit, recent, monotonic(), first_id, step, commons)
        self._relay.will = will
        self._roster = Roster(self._relay)
        self._drains = Drains(self._relay, self._roster)
        self._search = FlowSearch(self._relay.table)
        self._explainer = Explainer(self._relay, self._roster, self._search)
        self._sampler = Sampler(self._relay)
        self._pulse = Pulse(self._relay.pump)
        self._flow_log = FlowLog()
        self._started = time()
        self._rows = FlowRows(self._relay, self._roster, self._started)
        self._watch = Watch(self._rows.json)
        self._arriving = Arriving(self._relay, self._roster)
        self._custody = Custody(self._relay, self._roster)
        self.forebears = Forebears()
        self._aside: Doors | None = None
        self._tally = Tally()
        self._tallying = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled, then close every socket without a word about it."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._relay.pump.run)
                nursery.start_soon(self._relay.keep_time)
                nursery.start_soon(self._drains.run)
                nursery.start_soon(self._sampler.run)
                nursery.start_soon(self._arriving.run)
                nursery.start_soon(self._custody.run)
                if self._relay.commons is not None:
                    nursery.start_soon(self._look_around)
                task_status.started()
        finally:
            self._pulse.close()
            self._relay.pipes.close()

    async def apply(self, change: Change) -> None:
        """Be what the change says, at once for new flows; then tell live ones of other clocks."""
        await self._arriving.take_datagrams()
        now = monotonic()
        relay, roster = self._relay, self._roster
        relay.table.resize(change.table_limit, change.recent)
        self._sampler.rate = change.sample_rate
        changed = roster.apply(change, now)
        if self._aside is not None:
            self._aside.pause()
        self._arriving.revive_datagrams(now)
        self._rows.go_by(self._arriving.offset)
        self._drains.cancel(roster.is_wanted)
        for name in change.closed:
            target = DrainTarget(listener=name)
            if target not in self._drains:
                self._drains.start(DrainOrder(target, change.pace), now, stays=False)
        if changed:
            await self._look_again(changed)

    def when_bereaved(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Have this awaited before we open without what a predecessor should have given."""
        self._arriving.bereaved = ask

    async def expect(self, predecessors: Sequence[Socket]) -> None:
        """Have flows of these predecessors come; said before the first ``apply``.

        Args:
            predecessors: a connected Unix stream socket to each; the worker's from now on.

        """
        await trio.lowlevel.checkpoint()
        will = self._relay.will
        life = None if will is None else will.life
        self._arriving.expect([Heir(wire_on(socket), life) for socket in predecessors])

    async def own(self) -> None:
        """Know that what came from predecessors stays here."""
        await trio.lowlevel.checkpoint()
        self._arriving.own()

    def give_back(self) -> None:
        """Let go of what predecessors take back when this process ends, which it is about to."""
        self._arriving.give_back(monotonic())

    def inherit(self, legacy: Legacy) -> None:
        """Have flows of a worker that was killed live on here, from the first ``apply`` on."""
        self._arriving.inherit(legacy)
        if self._relay.will is not None:
            self._relay.will.suspect = legacy.suspect

    async def leave(
        self,
        order: LeaveOrder,
        heirs: Sequence[Socket],
        patience: float = PATIENCE,
        served: Container[int] | None = None,
    ) -> Left:
        """Hand over all flows that heirs can have, and the listening sockets; the rest stays.

        Args:
            order: who gets which.
            heirs: a connected Unix stream socket to each; the worker's from now on.
            patience: seconds to wait for flows that are connecting.
            served: the listening sockets that they have, by their cookies; None: all.

        Raises:
            HandOverError: an heir has failed at once; everything is as it was.

        """
        bequeathers = [Bequeather(wire_on(socket)) for socket in heirs]
        leaving = Leaving(
            self._relay,
            self._roster,
            order,
            bequeathers,
            self._rows.offset,
            self._custody,
            served,
        )
        with self._relay.pump.short_rounds():
            await leaving.give_datagrams()
            await leaving.give_streams(patience)
        return await leaving.finish(self._rows.ended(self._relay.table.recent))

    async def settle(self) -> None:
        """Know that the heirs have settled: what has gone to them never comes back."""
        await trio.lowlevel.checkpoint()
        self._custody.release()
        if self._aside is not None:
            self._aside.leave(monotonic())

    async def stand_aside(self) -> None:
        """Take nobody in, from the first ``apply`` on: we follow one whose sockets heirs have."""
        await trio.lowlevel.checkpoint()
        self._aside = Doors(self._roster)

    async def stand_up(self) -> None:
        """Take clients in again: the heirs have failed."""
        await trio.lowlevel.checkpoint()
        aside, self._aside = self._aside, None
        if aside is not None:
            aside.resume()

    async def readdress(self, upstreams: Sequence[UpstreamSpec]) -> None:
        """Have these upstreams other endpoints from now on; flows that live go on."""
        await trio.lowlevel.checkpoint()
        self._roster.upstreams.readdress(upstreams, monotonic())

    async def drain(self, order: DrainOrder) -> bool:
        """Begin to drain; false if there is no such listener or endpoint."""
        await trio.lowlevel.checkpoint()
        now, target, roster = monotonic(), order.target, self._roster
        if target == EVERYTHING:
            self._custody.release()
            roster.retire_all(now)
            self._relay.draining = True
        elif not roster.knows(target):
            return False
        elif target.listener is not None:
            roster.retire(target.listener, now)
        else:
            assert target.upstream is not None
            assert target.endpoint is not None
            roster.upstreams.retire(target.upstream, target.endpoint, now)
        self._drains.start(order, now)
        return True

    async def administer(self, order: EndpointOrder) -> bool:
        """Disable or enable an endpoint; one that is enabled drains no more."""
        await trio.lowlevel.checkpoint()
        known = self._roster.upstreams.administer(order, monotonic())
        self._drains.cancel(self._roster.is_wanted)
        return known

    async def set_health(self, reports: Sequence[HealthReport]) -> None:
        """Know what active checks say of endpoints; those that are gone by now are left out."""
        await trio.lowlevel.checkpoint()
        self._roster.upstreams.set_health(reports, monotonic())

    async def limit(self, orders: Sequence[LiveLimit]) -> None:
        """Keep flows to these orders: new ones at once, then those that live."""
        held = self._relay.orders
        held.become(orders, monotonic())
        if not held:
            self._roster.serve_again()
        for part in slices(list(self._relay.table)):
            now = monotonic()
            for flow in part:
                if flow.close_reason is None:
                    assert isinstance(flow, StreamFlow | DatagramFlow)
                    held.hold(flow, now)
            await trio.lowlevel.checkpoint()

    async def order_counts(self) -> list[OrderCount]:
        """How many live flows each order is for."""
        await trio.lowlevel.checkpoint()
        return self._relay.orders.counts()

    async def wait_drained(self) -> None:
        """Wait until the drain of everything is over."""
        await self._drains.wait_all_done()

    def stop(self) -> int:
        """Accept no more, and end every flow as ``drained``; return how many there were."""
        self._custody.release()
        self._relay.draining = True
        self._roster.close()
        return self._end(list(self._relay.table), CloseReason.DRAINED)

    async def alive(self) -> None:
        """Return when the pump has made a round."""
        await self._pulse.wait_turn()

    async def finish(self) -> int:
        """Do as ``stop``, for whoever asks through the port."""
        ended = self.stop()
        await trio.lowlevel.checkpoint()
        return ended

    def serving(self) -> list[int]:
        """The cookies of the listening sockets in use."""
        return self._roster.cookies()

    async def flows(self, query: FlowQuery) -> FlowPage:
        """List live or recently closed flows: for short answers."""
        matching, matched = await self._search.find(query)
        if query.id is not None:  # whoever asks for one shall have the latest
            self._sample(matching)
        rows: list[FlowRow] = []
        turn = Turn()
        for flow in matching:
            rows.append(self._rows.row(flow))
            await turn.may_end()
        return {"rows": rows, "matched": matched, "silent": []}

    async def flow_ids(self, query: FlowQuery) -> FlowIds:
        """Find the same flows, and return their ids.

        The usual listing asks for all: the table knows their ids, and no flow is looked at, which
        would have to be fetched from memory for it.
        """
        if query.is_for_the_table:
            await trio.lowlevel.checkpoint()
            every = self._relay.table.ids()
            ids = every[: query.limit or None]
            return {"ids": ids, "keys": list(ids), "matched": len(every), "silent": []}
        matching, matched = await self._search.find(query)
        places = count()  # several workers' evictions are shown in turn
        key = SORTS[query.sort] if not query.evictable else lambda _: next(places)
        ids, keys = list[int](), list[Any]()
        turn = Turn()
        for part in slices(matching, LISTED):
            ids += [flow.id for flow in part]
            keys += map(key, part)
            await turn.may_end()
        return {"ids": ids, "keys": keys, "matched": matched, "silent": []}

    async def flow_rows(self, ids: Sequence[int], *, recent: bool) -> list[str | None]:
        """Describe flows as JSON, each id's; None where the flow is gone."""
        table = self._relay.table
        find: Callable[[int], Flow | None] = table.get
        if recent:
            find = {flow.id: flow for flow in table.recent}.get
        return await self._relay.errands.run(map(self._rows.shown, map(find, ids)))

    async def kill(self, query: FlowQuery) -> int:
        """End matching live flows as ``killed``."""
        killed = 0
        matching, _ = await self._search.find(query)
        for part in slices(matching):
            killed += self._end(part, CloseReason.KILLED)
            await trio.lowlevel.checkpoint()
        return killed

    async def counters(self, *, former: bool = False) -> RelayCounters:
        """Read every running aggregate at once.

        Args:
            former: with those of names that are no more, but may come again.

        """
        await trio.lowlevel.checkpoint()
        relay, now = self._relay, monotonic()
        self._roster.count_kernel_drops()
        self._roster.upstreams.refresh(now)
        offset = self._rows.offset
        roster = self._roster
        upstreams = roster.upstreams
        listeners, endpoints = roster.counters, upstreams.counters
        queues, routes = upstreams.queues, roster.route_counters
        if former:
            listeners, endpoints = roster.remembered, upstreams.remembered
            queues, routes = upstreams.remembered_queues, roster.remembered_routes
        reading: RelayCounters = {
            "listeners": [counters.snapshot() for counters in listeners],
            "endpoints": [
                counters.snapshot(now, upstreams.addresses(counters, now, offset))
                for counters in endpoints
            ],
            "queues": [counters.snapshot() for counters in queues],
            "routes": [counters.snapshot() for counters in routes],
            "table_entries": len(relay.table),
            "table_limit": relay.table.limit,
            "recent_entries": len(relay.table.recent),
            "log_dropped": relay.outbox.dropped,
            "worker_restarts": 0,
        }
        return self.forebears.added_to(reading, former=former)

    async def status(self) -> RelayStatus:
        """Say how the relay is."""
        await trio.lowlevel.checkpoint()
        relay = self._relay
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": round(self._started, 3),
            "draining": relay.draining,
            "drains": self._drains.rows(monotonic()),
            "listening": self._roster.listening(),
            "flows": len(relay.table),
            "workers": [{"pid": os.getpid(), "flows": len(relay.table), "silent": None}],
            "table_limit": relay.table.limit,
            "file_descriptors": open_files(),
            "file_descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "not_ready": list(not_ready(self._roster, monotonic(), draining=relay.draining)),
        }

    async def explain(self, question: FlowQuestion) -> Explanation | None:
        """Say what a new flow would meet with; None if there is no such listener."""
        await trio.lowlevel.checkpoint()
        return await self._explainer.explain(question, monotonic(), self._rows.offset)

    async def log_flows(self, flow_log: FlowLog) -> None:
        """Have lines of these flows, written like this, from now on."""
        await trio.lowlevel.checkpoint()
        self._flow_log = flow_log
        self._relay.outbox.wants = None if flow_log.flows == "all" else flow_log.wants

    async def wait_flow_lines(self, gather: float = GATHER) -> Lines:
        """Wait for flows to end, and for more; return the lines of a slice of those that did."""
        await self._relay.outbox.wait(SLICE, gather)
        return self.flow_lines()

    @property
    def flow_log(self) -> FlowLog:
        """Which flows have lines, and how they are written."""
        return self._flow_log

    def flow_lines(self) -> Lines:
        """The lines of a slice of the flows that have ended; none if that is all."""
        return self._flow_log.lines(self._rows.closed(self._relay.outbox.take(SLICE)))

    async def watch(self, queries: Mapping[int, FlowQuery]) -> None:
        """Tell what happens to the flows that these match, from now on, and to no others."""
        await trio.lowlevel.checkpoint()
        self._watch.become(queries)
        self._relay.watch = self._watch if queries else None
        if not queries:
            self._tally.forget()

    async def wait_flow_events(self) -> Told:
        """Wait for something to happen to flows that are watched, and tell a slice of it."""
        await self._watch.wait()
        return self._watch.take()

    async def moved_flows(self) -> MovedFlows:
        """Which watched flows have moved bytes since the last call."""
        run = self._relay.errands.run
        async with self._tallying:
            parts = slices(list(self._relay.table), LISTED)
            await run(map(self._tally.look, (filter(_lives, part) for part in parts)))
            moved, omitted = self._tally.settle()
            told = await run(map(self._told_of, moved))
        return {"flows": [each for each in told if each is not None], "omitted": omitted}

    def _told_of(self, flow: Flow) -> tuple[tuple[int, ...], str] | None:
        """Who watches a flow that has moved bytes, and what it has moved; None if nobody does."""
        watches = self._watch.watches(flow)
        return (watches, self._rows.counts(flow)) if watches and _lives(flow) else None

    def _sample(self, flows: Sequence[Flow]) -> None:
        now = monotonic()
        for flow in flows:
            if isinstance(flow, StreamFlow):
                self._sampler.look(flow, now)

    async def _look_again(self, changed: dict[ListenerCounters, Terms]) -> None:
        """Tell the live flows of these listeners that their limits are others."""
        for part in slices(list(self._relay.table)):
            now = monotonic()
            for flow in part:
                terms = changed.get(flow.counters)
                if terms is not None and flow.close_reason is None:
                    assert isinstance(flow, StreamFlow | DatagramFlow)
                    if isinstance(flow, DatagramFlow):
                        limit_live(flow, terms, now)
                    flow.look_again(terms, now)
                    self._relay.orders.hold(flow, now, anew=True)
            await trio.lowlevel.checkpoint()

    async def _look_around(self) -> None:
        """Learn often what other workers admit, so that it is taken at its time."""
        while True:
            await trio.sleep(self._relay.wheel.tick)
            self._roster.look_around(monotonic())

    def _end(self, flows: Sequence[Flow], reason: CloseReason) -> int:
        now = monotonic()
        ended = 0
        for flow in flows:
            if flow.close_reason is None:
                assert isinstance(flow, StreamFlow | DatagramFlow)
                flow.abort(reason, CloseSide.PROXY, now)
                ended += 1
        return ended


def _lives(flow: Flow) -> bool:
    return flow.close_reason is None


def open_files() -> int:
    """Descriptors this process has open.

    Linux 6.2 and later tell the number as the size of the directory (fs/proc/fd.c); before that
    it has to be listed, which costs a microsecond for each.
    """
    return Path("/proc/self/fd").stat().st_size or len(os.listdir("/proc/self/fd"))  # noqa: PTH208
