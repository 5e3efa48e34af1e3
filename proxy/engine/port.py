"""The narrow door between the relay and the rest of the house.

Everything that admin, metrics, logs and signals may ask of the relay goes through ``RelayPort``:
plain values in, plain values out, never a flow object. So it does not matter to them whether the
worker lives in this process or in another, and a slow reader can never hold a flow.

Every method is async because it may cross a process, and because long answers give way to the
relay between slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict

from proxy.core.counters import EndpointSnapshot, ListenerSnapshot
from proxy.core.query import FlowQuery, FlowRow
from proxy.core.row_json import ClosedFlow


class ListenRow(TypedDict):
    """One listening socket, as ``ss -l`` would show it."""

    listener: str
    transport: str
    local: str
    upstream: str


class FlowPage(TypedDict):
    """Rows of the table: ``matched`` counts all that matched, also those beyond the limit."""

    rows: list[FlowRow]
    matched: int


class FlowIds(TypedDict):
    """The same without the rows: what a long answer is made from, while it is sent."""

    ids: list[int]
    matched: int


class RelayCounters(TypedDict):
    """One consistent reading of every running aggregate; taken between two events."""

    listeners: list[ListenerSnapshot]
    endpoints: list[EndpointSnapshot]
    table_entries: int
    table_limit: int
    recent_entries: int
    log_dropped: int


class RelayStatus(TypedDict):
    """Answers "is it alive, and is it ready": every listener bound, its upstream usable."""

    version: str
    pid: int
    started: float
    draining: bool
    listening: list[ListenRow]
    flows: int
    table_limit: int
    file_descriptors: int
    file_descriptor_limit: int
    not_ready: list[str]


class RelayPort(Protocol):
    """What the rest of the house may ask of the relay."""

    async def flows(self, query: FlowQuery) -> FlowPage:
        """List live (or, with ``query.recent``, recently closed) flows: for short answers."""
        ...

    async def flow_ids(self, query: FlowQuery) -> FlowIds:
        """Find the same flows, and return their ids in the query's order."""
        ...

    async def flow_rows(self, ids: Sequence[int], *, recent: bool) -> list[str]:
        """Describe flows as JSON, in the order of their ids; those that are gone are left out."""
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

    async def wait_closed_flows(self) -> list[ClosedFlow]:
        """Wait for flows to end, and return those that did since the last call, oldest first.

        The list between two calls is bounded; what does not fit is counted in
        ``RelayCounters.log_dropped``.
        """
        ...
