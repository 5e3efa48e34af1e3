"""The worker: the relay with its listeners, and the answers it gives through ``RelayPort``.

Only here do flow objects meet questions about them. Long answers are made in slices, and between
two slices the pump has its turn; each row is consistent in itself, and a flow that ends between
two slices is left out.
"""

from __future__ import annotations

import heapq
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from socket import SOCK_DGRAM, SOCK_STREAM
from socket import SocketType as Socket
from time import monotonic, time
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import trio

from proxy import __version__
from proxy.core.address import Transport, format_address
from proxy.core.counters import ListenerCounters
from proxy.core.expiry import FlowLimits, limits_in_force, limits_json
from proxy.core.flow import CloseReason, CloseSide, Flow
from proxy.core.query import SORTS, FlowQuery, FlowRow, flow_row
from proxy.core.row_json import ClosedFlow, closed_flow, row_json
from proxy.engine.accept import StreamListener
from proxy.engine.counted import flow_type_of
from proxy.engine.datagram import DatagramFlow
from proxy.engine.datagram_listener import DatagramListener
from proxy.engine.datagram_options import ORDINARY, DatagramOptions
from proxy.engine.options import NODELAY, SocketOptions
from proxy.engine.outbound import PLAIN, Outbound
from proxy.engine.relay import Relay
from proxy.engine.sockaddr import canonical
from proxy.engine.stream import StreamFlow
from proxy.engine.transparent import TransparentListener
from proxy.engine.unix_listeners import UnixgramListener, UnixListener

if TYPE_CHECKING:
    from proxy.core.upstream import Upstream
    from proxy.engine.port import FlowIds, FlowPage, ListenRow, RelayCounters, RelayStatus

SLICE: Final = 100
"""Flows looked at between two turns of the pump: a fraction of a millisecond."""

CLOCK_SET: Final = 0.1
"""Seconds; a larger jump of the wall clock is followed in the times shown."""

Description = TypeVar("Description")
Listener: TypeAlias = StreamListener | DatagramListener


class Worker:
    """Relays until cancelled; a ``RelayPort``.

    Args:
        table_limit: flows at once.
        recent: ended flows remembered.

    """

    def __init__(self, table_limit: int, recent: int) -> None:
        self._relay = Relay(table_limit, recent, monotonic())
        self._listeners: list[Listener] = []
        self._upstreams: dict[str, Upstream] = {}
        self._searching = trio.CapacityLimiter(1)
        self._started = time()
        self._offset = self._started - monotonic()

    async def run(self) -> None:
        """Relay until cancelled, then close every socket without a word about it."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._relay.pump.run)
                nursery.start_soon(self._relay.keep_time)
        finally:
            self._relay.pipes.close()

    def open_listener(
        self,
        name: str,
        transport: Transport,
        upstream: Upstream,
        limits: FlowLimits,
        sockets: Sequence[Socket],
        options: SocketOptions = NODELAY,
        outbound: Outbound = PLAIN,
        datagrams: DatagramOptions = ORDINARY,
        transparent: bool = False,
    ) -> None:
        """Relay what comes in on these bound sockets, which the worker owns from now on.

        Args:
            name: of the listener.
            transport: of the sockets.
            upstream: where its flows go.
            limits: the clocks of its flows.
            sockets: bound, non-blocking.
            options: for the sockets to endpoints (TCP); accepted ones inherit the listening one's.
            outbound: how flows leave for the endpoints.
            datagrams: how datagram flows are treated.
            transparent: whether datagrams tell where they were sent to before they were diverted.

        """
        counters = ListenerCounters(name, transport, upstream.name)
        self._upstreams[upstream.name] = upstream
        listener: Listener
        connect, way = outbound.way(SOCK_STREAM, options), outbound.way(SOCK_DGRAM)
        kind = flow_type_of(datagrams)
        for socket in sockets:
            self._relay.own(canonical(socket.getsockname()))
            if transport is Transport.UNIX:
                listener = UnixListener(self._relay, socket, counters, limits, upstream, connect)
            elif transport is Transport.UNIXGRAM:
                listener = UnixgramListener(
                    self._relay, socket, counters, limits, upstream, datagrams, way
                )
            elif transport is Transport.TCP:
                listener = StreamListener(self._relay, socket, counters, limits, upstream, connect)
            else:
                serve = TransparentListener if transparent else DatagramListener
                listener = serve(
                    self._relay, socket, counters, limits, upstream, datagrams, kind, way
                )
            self._listeners.append(listener)

    def stop(self) -> int:
        """Accept no more, and end every flow as ``drained``; return how many there were."""
        self._relay.draining = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        return self._end(list(self._relay.table), CloseReason.DRAINED)

    async def flows(self, query: FlowQuery) -> FlowPage:
        """List live or recently closed flows: for short answers."""
        matching, matched = await self._find(query)
        rows: list[FlowRow] = []
        for part in _slices(matching):
            rows += self._rows(part)
            await trio.lowlevel.checkpoint()
        return {"rows": rows, "matched": matched}

    async def flow_ids(self, query: FlowQuery) -> FlowIds:
        """Find the same flows, and return their ids."""
        matching, matched = await self._find(query)
        return {"ids": [flow.id for flow in matching], "matched": matched}

    async def flow_rows(self, ids: Sequence[int], *, recent: bool) -> list[str]:
        """Describe flows as JSON, in the order of their ids; those that are gone are left out."""
        await trio.lowlevel.checkpoint()
        table = self._relay.table
        if recent:
            ring = {flow.id: flow for flow in table.recent}
            found = map(ring.get, ids)
        else:
            found = map(table.get, ids)
        return self._describe(row_json, [flow for flow in found if flow is not None])

    async def kill(self, query: FlowQuery) -> int:
        """End matching live flows as ``killed``."""
        killed = 0
        matching, _ = await self._find(query)
        for part in _slices(matching):
            killed += self._end(part, CloseReason.KILLED)
            await trio.lowlevel.checkpoint()
        return killed

    async def counters(self) -> RelayCounters:
        """Read every running aggregate at once."""
        await trio.lowlevel.checkpoint()
        relay, now = self._relay, monotonic()
        for listener in self._listeners:
            if isinstance(listener, DatagramListener):
                listener.count_kernel_drops()
        return {
            "listeners": [listener.counters.snapshot() for listener in self._listeners],
            "endpoints": [
                endpoint.counters.snapshot(now)
                for upstream in self._upstreams.values()
                for endpoint in upstream.endpoints
            ],
            "table_entries": len(relay.table),
            "table_limit": relay.table.limit,
            "recent_entries": len(relay.table.recent),
            "log_dropped": relay.outbox.dropped,
        }

    async def status(self) -> RelayStatus:
        """Say how the relay is."""
        await trio.lowlevel.checkpoint()
        relay = self._relay
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": round(self._started, 3),
            "draining": relay.draining,
            "listening": [_listen_row(listener) for listener in self._listeners],
            "flows": len(relay.table),
            "table_limit": relay.table.limit,
            "file_descriptors": open_files(),
            "file_descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "not_ready": self._not_ready(),
        }

    async def wait_closed_flows(self) -> list[ClosedFlow]:
        """Wait for flows to end, and return a slice of those that did."""
        return self._describe(closed_flow, await self._relay.outbox.take(SLICE))

    async def _find(self, query: FlowQuery) -> tuple[list[Flow], int]:
        """The flows a query asks for, in its order, and how many match without its limit.

        One search at a time, in slices: however many people ask, the relay loses one slice a turn.
        """
        async with self._searching:
            order = SORTS[query.sort]
            matched, parts = 0, []
            for part in _slices(self._candidates(query)):
                fitting = sorted(filter(query.matches, part), key=order)
                matched += len(fitting)
                parts.append(fitting)
                if query.limit:
                    parts = [heapq.nsmallest(query.limit, heapq.merge(*parts, key=order), order)]
                await trio.lowlevel.checkpoint()
            found: list[Flow] = []
            for flow in heapq.merge(*parts, key=order):
                found.append(flow)
                if len(found) % SLICE == 0:
                    await trio.lowlevel.checkpoint()
        return found, matched

    def _candidates(self, query: FlowQuery) -> list[Flow]:
        table = self._relay.table
        if query.recent:
            return list(table.recent)
        if query.id is not None:
            flow = table.get(query.id)
            return [] if flow is None else [flow]
        return list(table)

    def _rows(self, flows: Sequence[Flow]) -> list[FlowRow]:
        offset = self._wall_offset()
        return [
            flow_row(flow, offset, limits_in_force(flow.transport, _limits_of(flow)))
            for flow in flows
        ]

    def _describe(
        self, describe: Callable[[Flow, float, str], Description], flows: Sequence[Flow]
    ) -> list[Description]:
        offset = self._wall_offset()
        return [
            describe(flow, offset, limits_json(flow.counters.transport, _limits_of(flow)))
            for flow in flows
        ]

    def _not_ready(self) -> list[str]:
        now = monotonic()
        return [
            f'upstream "{upstream.name}": no endpoint answered the last attempt'
            for upstream in self._upstreams.values()
            if not any(endpoint.counters.up(now) for endpoint in upstream.endpoints)
        ]

    def _wall_offset(self) -> float:
        """Unix time less monotonic time: the same value, so that times do not waver, until set."""
        offset = time() - monotonic()
        if abs(offset - self._offset) > CLOCK_SET:
            self._offset = offset
        return self._offset

    def _end(self, flows: Sequence[Flow], reason: CloseReason) -> int:
        now = monotonic()
        ended = 0
        for flow in flows:
            if flow.close_reason is None:
                assert isinstance(flow, StreamFlow | DatagramFlow)
                flow.abort(reason, CloseSide.PROXY, now)
                ended += 1
        return ended


def open_files() -> int:
    """Descriptors this process has open.

    Linux 6.2 and later tell the number as the size of the directory (fs/proc/fd.c); before that
    it has to be listed, which costs a microsecond for each.
    """
    return Path("/proc/self/fd").stat().st_size or len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def _limits_of(flow: Flow) -> FlowLimits:
    assert isinstance(flow, StreamFlow | DatagramFlow)
    return flow.limits


def _listen_row(listener: Listener) -> ListenRow:
    counters = listener.counters
    return {
        "listener": counters.listener,
        "transport": counters.transport.value,
        "local": format_address(canonical(listener.socket.getsockname())),
        "upstream": counters.upstream,
    }


def _slices(flows: Sequence[Flow]) -> Iterator[Sequence[Flow]]:
    for start in range(0, len(flows), SLICE):
        yield flows[start : start + SLICE]
