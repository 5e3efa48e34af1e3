"""A relay that is a handful of plain values: what `RelayPort` promises, without a socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from proxy.core.address import Address, Transport
from proxy.core.condition import Administration
from proxy.core.counters import AddressSnapshot, EndpointCounters, ListenerCounters
from proxy.core.events import EventKind, FlowEvent
from proxy.core.flow import CloseReason, CloseSide, Direction, Flow, State
from proxy.core.live_limit import Books, LimitValues, LiveLimit, OrderRow, order_row
from proxy.core.query import SORTS, FlowQuery, FlowRow, flow_row
from proxy.core.queue_counters import QueueCounters
from proxy.core.route_counters import RouteCounters
from proxy.core.row_json import ClosedFlow, closed_flow, counts_json, row_json
from proxy.core.survive import Stay
from proxy.engine.flow_lines import FlowLog, Lines
from proxy.engine.watch import Pending, Told

if TYPE_CHECKING:
    from proxy.core.explanation import Explanation, FlowQuestion
    from proxy.engine.port import (
        CheckRow,
        DrainAnswer,
        FlowIds,
        FlowPage,
        LimitsAnswer,
        MovedFlows,
        NameRow,
        OrderCount,
        PredecessorRow,
        RelayCounters,
        RelayStatus,
        ReloadAnswer,
        ReloadRecord,
        UpgradeAnswer,
    )
    from proxy.engine.specs import Change, DrainOrder, EndpointOrder, HealthReport, UpstreamSpec

WALL = 1_700_000_000.0  # Unix time less monotonic time of every fake flow
ENDPOINT: Address = ("10.0.0.1", 80)


class FakeRelay:
    """Flows are real `Flow` objects, so that filters and rows are the real ones."""

    def __init__(self) -> None:
        self.web = ListenerCounters("web", Transport.TCP, "web")
        self.dns = ListenerCounters("dns", Transport.UDP, "resolvers")
        self.endpoint_counters = [
            EndpointCounters("web", "10.0.0.1:80"),
            EndpointCounters("resolvers", "10.0.0.53:53"),
        ]
        self.addresses: list[AddressSnapshot] = []  # of the first endpoint
        self.queues = [QueueCounters("web")]
        self.routes = [RouteCounters("web", "www.example.org")]
        self.live: list[Flow] = []
        self.closed: list[Flow] = []
        self.stays: dict[int, Stay] = {}
        self.draining = False
        self.not_ready: list[str] = []
        self.silent: list[int] = []
        self.failure: Exception | None = None
        self.watched: dict[int, FlowQuery] = {}
        self.happened: Pending[FlowEvent] = Pending()
        self.questions: list[FlowQuestion] = []
        self.explanation: Explanation | None = None
        self.moved: list[Flow] = []
        self.endings: list[list[ClosedFlow]] = []  # whose lines are to come, one by one
        self.flow_log: FlowLog | None = None

    def open_tcp(
        self, client: Address = ("192.0.2.7", 51000), *, original: int = 0, reply: int = 0
    ) -> Flow:
        flow = self._open(self.web, client, ("192.0.2.1", 8080), State.CONNECTING)
        flow.endpoint_local = ("10.0.0.9", 40000 + flow.id)
        flow.endpoint_remote = ENDPOINT
        flow.enter(State.ESTABLISHED)
        flow.original.bytes = original
        flow.reply.bytes = reply
        return flow

    def open_udp(self, client: Address = ("2001:db8::7", 5353, 0, 0)) -> Flow:
        return self._open(self.dns, client, ("2001:db8::1", 53, 0, 0), State.UNREPLIED)

    def _open(
        self, counters: ListenerCounters, client: Address, local: Address, state: State
    ) -> Flow:
        number = len(self.live) + len(self.closed) + 1
        flow = Flow(number, counters, client, local, Direction(), Direction(), state, 10.0)
        self.live.append(flow)
        return flow

    def end(
        self,
        flow: Flow,
        reason: CloseReason = CloseReason.FINISHED,
        side: CloseSide = CloseSide.CLIENT,
    ) -> ClosedFlow:
        flow.end(reason, side, 12.5)
        self.live.remove(flow)
        self.closed.append(flow)
        return closed_flow(flow, WALL, "{}")

    async def apply(self, change: Change) -> None:
        raise NotImplementedError  # nobody here changes anything

    async def drain(self, order: DrainOrder) -> bool:
        raise NotImplementedError

    async def readdress(self, upstreams: Sequence[UpstreamSpec]) -> None:
        raise NotImplementedError

    async def administer(self, order: EndpointOrder) -> bool:
        raise NotImplementedError  # that is for the steward to do

    async def set_health(self, reports: Sequence[HealthReport]) -> None:
        raise NotImplementedError

    async def limit(self, orders: Sequence[LiveLimit]) -> None:
        raise NotImplementedError  # that is for the steward to do

    async def order_counts(self) -> list[OrderCount]:
        raise NotImplementedError

    async def wait_drained(self) -> None:
        raise NotImplementedError

    async def flows(self, query: FlowQuery) -> FlowPage:
        await self._answer()
        source = self.closed if query.recent else self.live
        found = sorted((flow for flow in source if query.matches(flow)), key=SORTS[query.sort])
        if query.evictable:
            found = self._evictable(found, query.newcomer)
        shown = found[: query.limit] if query.limit else found
        rows = [self._row(flow) for flow in shown]
        return {"rows": rows, "matched": len(found), "silent": self.silent}

    def _row(self, flow: Flow) -> FlowRow:
        return flow_row(flow, WALL, {}, self.stays.get(flow.id))

    def _evictable(self, found: list[Flow], newcomer: Transport) -> list[Flow]:
        """Those that are unreplied, and then for TCP all the others."""
        unreplied = [flow for flow in found if flow.state is State.UNREPLIED]
        rest = [flow for flow in found if flow not in unreplied]
        return unreplied if newcomer is Transport.UDP else [*unreplied, *rest]

    async def flow_ids(self, query: FlowQuery) -> FlowIds:
        page = await self.flows(query)
        ids = [row["id"] for row in page["rows"]]
        return {"ids": ids, "matched": page["matched"], "silent": self.silent}

    async def flow_rows(self, ids: Sequence[int], *, recent: bool) -> list[str]:
        await self._answer()
        by_id = {flow.id: flow for flow in (self.closed if recent else self.live)}
        found = [by_id[id] for id in ids if id in by_id]
        return [row_json(flow, WALL, "{}", self.stays.get(flow.id)) for flow in found]

    async def kill(self, query: FlowQuery) -> int:
        await self._answer()
        found = [flow for flow in self.live if query.matches(flow)]
        for flow in found:
            self.end(flow, CloseReason.KILLED, CloseSide.PROXY)
        return len(found)

    async def counters(self) -> RelayCounters:
        await self._answer()
        return {
            "listeners": [self.web.snapshot(), self.dns.snapshot()],
            "endpoints": [
                endpoint.snapshot(0.0, () if number else self.addresses)
                for number, endpoint in enumerate(self.endpoint_counters)
            ],
            "queues": [queue.snapshot() for queue in self.queues],
            "routes": [route.snapshot() for route in self.routes],
            "table_entries": len(self.live),
            "table_limit": 1000,
            "recent_entries": len(self.closed),
            "log_dropped": 3,
            "worker_restarts": 1,
        }

    async def alive(self) -> None:
        await self._answer()

    async def status(self) -> RelayStatus:
        await self._answer()
        return {
            "version": "1.2.3",
            "pid": 4242,
            "started": WALL,
            "draining": self.draining,
            "drains": [],
            "listening": [
                {
                    "listener": "web",
                    "transport": "tcp",
                    "local": "0.0.0.0:8080",
                    "upstream": "web",
                    "survive": "crash",
                },
                {
                    "listener": "dns",
                    "transport": "udp",
                    "local": "[::]:53",
                    "upstream": "resolvers",
                    "survive": "restart",
                },
            ],
            "flows": len(self.live),
            "workers": [
                {"pid": 4242, "flows": len(self.live), "silent": 2.5 if self.silent else None}
            ],
            "table_limit": 1000,
            "file_descriptors": 20,
            "file_descriptor_limit": 1024,
            "not_ready": self.not_ready,
        }

    async def explain(self, question: FlowQuestion) -> Explanation | None:
        await self._answer()
        self.questions.append(question)
        return self.explanation

    async def log_flows(self, flow_log: FlowLog) -> None:
        await self._answer()
        self.flow_log = flow_log

    async def wait_flow_lines(self) -> Lines:
        while self.flow_log is None or not self.endings:
            await trio.sleep(0.001)
        ended, flow_log = self.endings.pop(0), self.flow_log
        return flow_log.lines(each for each in ended if flow_log.wants(each.reason, each.transport))

    async def watch(self, queries: Mapping[int, FlowQuery]) -> None:
        await self._answer()
        self.watched = dict(queries)

    async def wait_flow_events(self) -> Told:
        await self.happened.wait()
        return Told(*self.happened.take())

    async def moved_flows(self) -> MovedFlows:
        await self._answer()
        flows = [(self._watches(flow), counts_json(flow, WALL)) for flow in self.moved]
        self.moved = []
        return {"flows": flows, "omitted": 0}

    def happens(self, kind: EventKind, flow: Flow, limit: str | None = None) -> None:
        """Tell who watches what happened to a flow."""
        if watches := self._watches(flow):
            row = row_json(flow, WALL, "{}")
            self.happened.put(FlowEvent(kind, watches, WALL, limit, row))

    def _watches(self, flow: Flow) -> tuple[int, ...]:
        return tuple(number for number, query in self.watched.items() if query.matches(flow))

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure


class FakeSteward:
    """A house that does what it is told, and remembers it.

    Attributes:
        problems: what reloads fail with.
        is_standing_down: whether a successor takes over.
        asked: every call, in order.

    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.is_standing_down = False
        self.asked: list[tuple[object, ...]] = []
        self.books = Books()

    def last_reload(self) -> ReloadRecord:
        return {"successful": not self.problems, "success_timestamp": WALL}

    def names(self) -> list[NameRow]:
        return [
            {
                "upstream": "web",
                "endpoint": "web.example:80",
                "addresses": ["192.0.2.1", "192.0.2.2"],
                "omitted": 0,
                "stale": False,
                "reason": "",
                "lookups": {"ok": 5, "failed": 2, "absent": 1},
                "last_success": WALL - 3,
                "next_lookup": WALL + 7,
            }
        ]

    def checks(self) -> list[CheckRow]:
        return [
            {
                "upstream": "web",
                "endpoint": "10.0.0.1:80",
                "address": "10.0.0.1:80",
                "health": "up",
                "since": WALL,
                "result": "passed",
                "reason": "connected",
                "last": WALL + 5,
                "duration": 0.25,
                "results": {"passed": 5, "failed": 1, "silent": 0},
            }
        ]

    async def reload(self, by: str, *, dry_run: bool = False) -> ReloadAnswer:
        await trio.lowlevel.checkpoint()
        self.asked.append(("reload", dry_run))
        return {
            "reloaded": not (dry_run or self.problems),
            "dry_run": dry_run,
            "problems": self.problems,
            "warnings": [],
            "lines": [] if self.problems else ["~ engine.recent: 1 -> 2"],
            "steps": [],
        }

    async def upgrade(self, by: str, *, dry_run: bool = False) -> UpgradeAnswer:
        await trio.lowlevel.checkpoint()
        self.asked.append(("upgrade", dry_run))
        done = not (dry_run or self.problems)
        return {
            "upgraded": done,
            "dry_run": dry_run,
            "problems": self.problems,
            "pid": 7 if done else 0,
            "version": "9" if done else "",
            "flows": 3,
            "stayed": 1,
            "pause": 0.012,
        }

    def predecessors(self) -> list[PredecessorRow]:
        return [{"pid": 6, "flows": 1, "draining": True}]

    async def limits(self) -> LimitsAnswer:
        await trio.lowlevel.checkpoint()
        return {
            "configured": [{"listener": "web", "key": "limits.flows", "value": "7"}],
            "orders": [order_row(each, 2) for each in self.books.orders],
        }

    async def limit(
        self, query: FlowQuery, values: LimitValues, lasting: float | None, by: str
    ) -> OrderRow | None:
        await trio.lowlevel.checkpoint()
        if self.books.full:
            return None
        return order_row(self.books.give(query, values, by, 0.0, WALL, lasting), 2)

    async def lift_limit(self, number: int, by: str) -> OrderRow | None:
        await trio.lowlevel.checkpoint()
        order = self.books.lift(number)
        return None if order is None else order_row(order, 2)

    async def administer(
        self, endpoint: str, upstream: str | None, administration: Administration, by: str
    ) -> list[dict[str, str]]:
        await trio.lowlevel.checkpoint()
        self.asked.append((administration.value, endpoint, upstream))
        return [{"upstream": "web", "endpoint": endpoint}] if endpoint == "10.0.0.1:80" else []

    async def drain(
        self,
        listener: str | None = None,
        endpoint: str | None = None,
        upstream: str | None = None,
        patience: float | None = None,
        by: str = "",
    ) -> DrainAnswer:
        await trio.lowlevel.checkpoint()
        self.asked.append(("drain", listener, endpoint, upstream, patience))
        known = listener == "web" or endpoint == "10.0.0.1:80"
        return {"draining": [{"listener": "web"}] if known else [], "timeout": patience or 30.0}
