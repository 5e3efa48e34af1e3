"""The narrow door between the relay and the rest of the house.

Everything that admin, metrics, logs and signals may ask of the relay goes through ``RelayPort``:
plain values in, plain values out, never a flow object. So it does not matter to them whether the
worker lives in this process or in another, and a slow reader can never hold a flow.

Every method is async because it may cross a process, and because long answers give way to the
relay between slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypedDict

from proxy.core.counters import EndpointSnapshot, ListenerSnapshot
from proxy.core.query import FlowQuery, FlowRow
from proxy.engine.flow_lines import FlowLog, Lines

if TYPE_CHECKING:
    from proxy.config.plan import StepRow
    from proxy.core.condition import Administration
    from proxy.core.explanation import Explanation, FlowQuestion
    from proxy.core.live_limit import LimitValues, LiveLimit, OrderRow
    from proxy.core.queue_counters import QueueSnapshot
    from proxy.core.route_counters import RouteSnapshot
    from proxy.engine.specs import Change, DrainOrder, EndpointOrder, HealthReport, UpstreamSpec
    from proxy.engine.watch import Told


class ListenRow(TypedDict):
    """One address that listens, as ``ss -l`` would show it; and what its flows live on through."""

    listener: str
    transport: str
    local: str
    upstream: str
    survive: str


class FlowPage(TypedDict):
    """Rows of the table: ``matched`` counts all that matched, also those beyond the limit.

    ``silent`` are workers that do not answer, by their index: their flows are missing.
    """

    rows: list[FlowRow]
    matched: int
    silent: list[int]


class FlowIds(TypedDict):
    """The same without the rows: what a long answer is made from, while it is sent.

    ``keys`` are what the flows are sorted by, rising.
    """

    ids: list[int]
    keys: list[float]
    matched: int
    silent: list[int]


class MovedFlows(TypedDict):
    """Flows that moved bytes since the last call, and how many did beside those that are told.

    ``flows`` are pairs: the watches that a flow matches, and what it has moved so far, as JSON.
    """

    flows: list[tuple[tuple[int, ...], str]]
    omitted: int


class RelayCounters(TypedDict):
    """One consistent reading of every running aggregate; taken between two events."""

    listeners: list[ListenerSnapshot]
    endpoints: list[EndpointSnapshot]
    queues: list[QueueSnapshot]
    routes: list[RouteSnapshot]
    table_entries: int
    table_limit: int
    recent_entries: int
    log_dropped: int
    worker_restarts: int


class DrainRow(TypedDict):
    """A drain, for those who watch it.

    ``listener``, or ``upstream`` and ``endpoint``, name its target; all are None where everything
    drains. ``flows`` are left, ``ended`` were ended by the drain, ``seconds_left`` until the last
    flow is ended; None when it is over.
    """

    listener: str | None
    upstream: str | None
    endpoint: str | None
    phase: str
    flows: int
    ended: int
    seconds_left: float | None


class WorkerRow(TypedDict):
    """One worker: its process, which is the supervisor's own where there is one worker.

    ``silent`` is for how many seconds it has owed an answer; None if it answers. What is told of
    one that does not is what was last known.
    """

    pid: int
    flows: int
    silent: float | None


class OrderCount(TypedDict):
    """How many live flows an order is for; see ``core.live_limit``."""

    number: int
    flows: int


class RelayStatus(TypedDict):
    """Answers "is it alive, and is it ready": every listener bound, its upstream usable."""

    version: str
    pid: int
    started: float
    draining: bool
    drains: list[DrainRow]
    listening: list[ListenRow]
    flows: int
    workers: list[WorkerRow]
    table_limit: int
    file_descriptors: int
    file_descriptor_limit: int
    not_ready: list[str]


class ReloadRecord(TypedDict):
    """How the last reload went, and when (Unix seconds) one last succeeded; the start counts."""

    successful: bool
    success_timestamp: float


class NameRow(TypedDict):
    """What is known of the name of an endpoint, for those who watch it.

    Addresses are those in use; ``omitted`` counts what there is beyond the most that are used;
    ``stale`` are those of an earlier look-up, since ``reason`` kept the last from succeeding.
    Times are Unix seconds.
    """

    upstream: str
    endpoint: str
    addresses: list[str]
    omitted: int
    stale: bool
    reason: str
    lookups: dict[str, int]
    last_success: float | None
    next_lookup: float


class CheckRow(TypedDict):
    """How one address of an endpoint is, as active checks of it show.

    ``since`` its health is that; ``last`` is when the last check ended, which took ``duration``
    seconds; its ``result`` is "passed", "failed" or "silent". Times are Unix seconds, and None
    before the first result.
    """

    upstream: str
    endpoint: str
    address: str
    health: str
    since: float | None
    result: str | None
    reason: str
    last: float | None
    duration: float
    results: dict[str, int]


class ReloadAnswer(TypedDict):
    """What a reload did, or would do.

    ``problems`` say why it did nothing; ``lines`` and ``steps`` are the plan, for people and
    programs.
    """

    reloaded: bool
    dry_run: bool
    problems: list[str]
    warnings: list[str]
    lines: list[str]
    steps: list[StepRow]


class UpgradeAnswer(TypedDict):
    """What an upgrade did, or would do.

    ``problems`` say why it did nothing. ``pid`` and ``version`` are the successor's; ``flows`` were
    handed over, of which none stood still for longer than ``pause`` seconds; ``stayed`` drain.
    """

    upgraded: bool
    dry_run: bool
    problems: list[str]
    pid: int
    version: str
    flows: int
    stayed: int
    pause: float


class PredecessorRow(TypedDict):
    """A process of an earlier life, which has flows yet that drain."""

    pid: int
    flows: int
    draining: bool


class DrainAnswer(TypedDict):
    """What began to drain, and how long (seconds) its flows may take to end by themselves."""

    draining: list[dict[str, str]]
    timeout: float


class ConfiguredLimit(TypedDict):
    """A limit that the configuration sets: where it stands, and its value as a person writes it."""

    listener: str
    key: str
    value: str


class LimitsAnswer(TypedDict):
    """Every limit in force, and where it comes from."""

    configured: list[ConfiguredLimit]
    orders: list[OrderRow]


class StandingDownError(Exception):
    """A successor takes over at this moment: whatever is to be ordered, it is for that one."""


class StewardPort(Protocol):
    """What may be asked of the house as a whole."""

    def last_reload(self) -> ReloadRecord:
        """Say how the last reload went."""
        ...

    def names(self) -> list[NameRow]:
        """Say what is known of the names of endpoints."""
        ...

    def checks(self) -> list[CheckRow]:
        """Say how endpoints are, as active checks show."""
        ...

    @property
    def is_standing_down(self) -> bool:
        """Whether a successor takes over now, so that nothing can be ordered here any more."""
        ...

    async def reload(self, by: str, *, dry_run: bool = False) -> ReloadAnswer:
        """Read the configuration again, and do what it says; or only say what would be done."""
        ...

    async def upgrade(self, by: str, *, dry_run: bool = False) -> UpgradeAnswer:
        """Start the program anew, and leave everything to that; or only have it check the file."""
        ...

    def predecessors(self) -> list[PredecessorRow]:
        """Say which processes of earlier lives have flows yet."""
        ...

    async def drain(
        self,
        listener: str | None = None,
        endpoint: str | None = None,
        upstream: str | None = None,
        patience: float | None = None,
        by: str = "",
    ) -> DrainAnswer:
        """Begin to drain a listener, or an endpoint; ``draining`` is empty if there is none."""
        ...

    async def administer(
        self, endpoint: str, upstream: str | None, administration: Administration, by: str
    ) -> list[dict[str, str]]:
        """Disable or enable an endpoint of an upstream, or of all; say where there was one."""
        ...

    async def limits(self) -> LimitsAnswer:
        """Every limit in force."""
        ...

    async def limit(
        self, query: FlowQuery, values: LimitValues, lasting: float | None, by: str
    ) -> OrderRow | None:
        """Keep flows to an order from now on, for so many seconds; None if there are too many."""
        ...

    async def lift_limit(self, number: int, by: str) -> OrderRow | None:
        """Keep flows to an order no more; None if there is none of this number."""
        ...


class RelayPort(Protocol):
    """What the rest of the house may ask of the relay."""

    async def apply(self, change: Change) -> None:
        """Be what the change says; it has been rehearsed, and does not fail."""
        ...

    async def readdress(self, upstreams: Sequence[UpstreamSpec]) -> None:
        """Have these upstreams the endpoints that are named; nothing else of them changes.

        Flows to addresses that are gone live on. One that there is no more is passed over.
        """
        ...

    async def drain(self, order: DrainOrder) -> bool:
        """Begin to drain; false if there is no such listener or endpoint.

        How it goes on is told by ``RelayStatus.drains``.
        """
        ...

    async def administer(self, order: EndpointOrder) -> bool:
        """Disable or enable an endpoint; false if there is none of this name."""
        ...

    async def set_health(self, reports: Sequence[HealthReport]) -> None:
        """Know what active checks say; of endpoints that are not named, nothing has changed."""
        ...

    async def limit(self, orders: Sequence[LiveLimit]) -> None:
        """Keep flows to these orders, those that live too, and to no others any more."""
        ...

    async def order_counts(self) -> list[OrderCount]:
        """How many live flows each order is for."""
        ...

    async def wait_drained(self) -> None:
        """Wait until the drain of everything, which was ordered, is over."""
        ...

    async def flows(self, query: FlowQuery) -> FlowPage:
        """List live (or, with ``query.recent``, recently closed) flows: for short answers."""
        ...

    async def flow_ids(self, query: FlowQuery) -> FlowIds:
        """Find the same flows, and return their ids in the query's order."""
        ...

    async def flow_rows(self, ids: Sequence[int], *, recent: bool) -> list[str | None]:
        """Describe flows as JSON, each id's; None where the flow is gone."""
        ...

    async def kill(self, query: FlowQuery) -> int:
        """End every live flow that matches as ``killed``; return how many there were."""
        ...

    async def counters(self) -> RelayCounters:
        """Read every running aggregate at once."""
        ...

    async def status(self) -> RelayStatus:
        """Say how the relay is."""
        ...

    async def finish(self) -> int:
        """Accept no more, and end every flow as ``drained``; return how many there were."""
        ...

    async def alive(self) -> None:
        """Return when the relay has proved that it moves; never, if it hangs."""
        ...

    async def explain(self, question: FlowQuestion) -> Explanation | None:
        """Say what a new flow would meet with, and why, by looks that change nothing.

        None if there is no such listener, or the client's worker is just being started again.
        """
        ...

    async def log_flows(self, flow_log: FlowLog) -> None:
        """Have lines of these flows, written like this, from now on."""
        ...

    async def wait_flow_lines(self) -> Lines:
        """Wait for flows to end, and return lines of those that did, oldest first.

        It is for whoever has called ``log_flows``. What waits between two calls is bounded; what
        does not fit is counted in ``RelayCounters.log_dropped``.
        """
        ...

    async def watch(self, queries: Mapping[int, FlowQuery]) -> None:
        """Tell what happens to the flows that these match, from now on, and to no others."""
        ...

    async def wait_flow_events(self) -> Told:
        """Wait for something to happen to flows that are watched; tell it, oldest first.

        One task at a time. The list between two calls is bounded; that something is missing in it
        is told, too.
        """
        ...

    async def moved_flows(self) -> MovedFlows:
        """Which watched flows have moved bytes since the last call; the first tells of none."""
        ...
