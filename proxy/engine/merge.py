"""What several workers answer, as one.

Each worker counts for itself; whoever asks the house gets sums. Counts only grow, and what a worker
counted outlives it: its last reading is *retired*, and added from then on beside that of the worker
that took its place, which begins at zero. So no sum ever falls, as long as what is retired is the
last reading that anybody was shown, or a later one.

Invariants, of one worker and so of any number, dead ones included: a listener's flows were opened
as often as they were closed or are live; of the bytes of a direction none was sent that was not
received. Adding is associative and, but for the order of rows, commutative; what is retired adds
like anything else, and retiring again changes nothing.

Rows stand in the order in which they are first seen. So the living come first among the parts, in
the order of their configuration, and the retired, who may know an older one, last.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Final, TypeVar

from proxy import __version__
from proxy.core.address import Transport
from proxy.core.address_rows import merge_addresses
from proxy.core.counters import ListenerCounters
from proxy.core.flow import CloseReason, CloseSide
from proxy.core.histogram import add_histograms
from proxy.core.queue_counters import add_queues, retire_queue
from proxy.core.route_counters import add_routes
from proxy.core.sample_counters import add_samples
from proxy.engine.drains import Phase

if TYPE_CHECKING:
    from proxy.core.counters import (
        DirectionSnapshot,
        EndpointSnapshot,
        ListenerSnapshot,
    )
    from proxy.core.queue_counters import QueueSnapshot
    from proxy.core.route_counters import RouteSnapshot
    from proxy.engine.port import (
        DrainRow,
        FlowIds,
        ListenRow,
        OrderCount,
        RelayCounters,
        RelayStatus,
    )
    from proxy.engine.specs import ListenerSpec

Row = TypeVar("Row")

PHASES: Final = [phase.value for phase in Phase]
"""Of a drain, in the order it goes through them."""

FINISHED: Final = CloseReason.FINISHED.value


def merge_counters(parts: Sequence[RelayCounters]) -> RelayCounters:
    """Add the readings of workers, and of those that are retired; of none it is all zero.

    A listener is known by its name and transport, an endpoint by its upstream and address, a
    queue by its upstream, a route by its listener and pattern.
    """
    return {
        "listeners": _merge_rows(
            (row for part in parts for row in part["listeners"]),
            _listener_key,
            _add_listeners,
        ),
        "endpoints": _merge_rows(
            (row for part in parts for row in part["endpoints"]),
            _endpoint_key,
            _add_endpoints,
        ),
        "queues": _merge_rows(
            (row for part in parts for row in part["queues"]), _queue_key, add_queues
        ),
        "routes": _merge_rows(
            (row for part in parts for row in part["routes"]), _route_key, add_routes
        ),
        "table_entries": sum(part["table_entries"] for part in parts),
        "table_limit": sum(part["table_limit"] for part in parts),
        "recent_entries": sum(part["recent_entries"] for part in parts),
        "log_dropped": sum(part["log_dropped"] for part in parts),
        "worker_restarts": sum(part["worker_restarts"] for part in parts),
    }


def carry_counters(before: RelayCounters | None, now: RelayCounters) -> RelayCounters:
    """A worker's new reading, with the last that was known of names that are not in it any more."""
    if before is None:
        return now
    return {
        **now,
        "listeners": _merge_rows([*now["listeners"], *before["listeners"]], _listener_key, _first),
        "endpoints": _merge_rows([*now["endpoints"], *before["endpoints"]], _endpoint_key, _first),
        "queues": _merge_rows([*now["queues"], *before["queues"]], _queue_key, _first),
        "routes": _merge_rows([*now["routes"], *before["routes"]], _route_key, _first),
    }


def retire_counters(
    last: RelayCounters, fate: CloseReason | None = CloseReason.INTERNAL
) -> RelayCounters:
    """Turn the last known reading of a worker that died into something to go on adding.

    Levels are zero. Its live flows died with it: they are closed as ``internal``, the word for a
    fault of ours, or as what became of them; where that is None they live on, and what of them did
    not is told by ``settle_counters``. How long they had lived is not known, so no duration is
    observed for them. What it held in its buffers was received, and will never have been sent.
    """
    return {
        "listeners": [_retire_listener(row, fate) for row in last["listeners"]],
        "endpoints": [_retire_endpoint(row) for row in last["endpoints"]],
        "queues": [retire_queue(row) for row in last["queues"]],
        "routes": last["routes"],
        "table_entries": 0,
        "table_limit": 0,
        "recent_entries": 0,
        "log_dropped": last["log_dropped"],
        "worker_restarts": last["worker_restarts"],
    }


def beside_counters(reading: RelayCounters) -> RelayCounters:
    """The reading of a worker that is on its way out, to be added to those of others.

    Its flows live, and some may wait; but its table is not the house's, nor is the room to wait,
    and what it knows of endpoints is old.
    """
    return {
        **reading,
        "endpoints": [_retire_endpoint(row) for row in reading["endpoints"]],
        "queues": [{**row, "ceiling": 0} for row in reading["queues"]],
        "table_entries": 0,
        "table_limit": 0,
        "recent_entries": 0,
    }


def only_names_of(living: RelayCounters, total: RelayCounters) -> RelayCounters:
    """A sum, without the names that are not in a part of it; the part stood first in it."""
    return {
        **total,
        "listeners": total["listeners"][: len(living["listeners"])],
        "endpoints": total["endpoints"][: len(living["endpoints"])],
        "queues": total["queues"][: len(living["queues"])],
        "routes": total["routes"][: len(living["routes"])],
    }


def uncounted(specs: Iterable[ListenerSpec]) -> RelayCounters:
    """A reading that knows listeners, and has counted nothing."""
    rows = [ListenerCounters(spec.name, spec.transport, spec.upstream).snapshot() for spec in specs]
    return {**merge_counters(()), "listeners": rows}


def settle_counters(last: RelayCounters, first: RelayCounters) -> RelayCounters:
    """What is missing when a worker goes on with flows of one that was killed.

    Between the last reading and the end flows were opened, moved bytes, and were closed. What they
    moved, and how many finished in order, the will tells, where flows are left behind. Of others
    nobody will ever know. So that a listener's flows were opened as often as they were closed or
    are live, those that lived in the last reading, and are not there any more, are closed as
    ``internal``; or, if there are more than there were, more have been opened.

    Args:
        last: of the worker that was killed.
        first: of the one that took its place; without rows if none did.

    """
    rows = {_listener_key(row): row for row in first["listeners"]}
    return {
        **merge_counters(()),
        "listeners": [
            _settle_listener(row, rows.get(_listener_key(row))) for row in last["listeners"]
        ],
    }


def _settle_listener(last: ListenerSnapshot, first: ListenerSnapshot | None) -> ListenerSnapshot:
    counters = ListenerCounters(last["listener"], Transport(last["transport"]), last["upstream"])
    zero = counters.snapshot()
    known = None if first is None else first["finished_before"]
    came = 0 if first is None else first["taken_over"] + first["lost"]
    finished = 0 if known is None else max(0, known - last["closed"][FINISHED])
    gone = sum(last["live"].values()) - finished - came
    closed = {FINISHED: finished, CloseReason.INTERNAL.value: max(0, gone)}
    settled: ListenerSnapshot = {
        **zero,
        "opened": max(0, -gone),
        "closed": _add_counts(zero["closed"], closed),
        "first": _add_counts(
            zero["first"],
            {CloseSide.CLIENT.value: finished, CloseSide.PROXY.value: max(0, gone)},
        ),
    }
    if first is None or known is None:
        return settled
    return {
        **settled,
        "original": _settle_direction(zero["original"], last["original"], first["original"]),
        "reply": _settle_direction(zero["reply"], last["reply"], first["reply"]),
    }


def _settle_direction(
    zero: DirectionSnapshot, last: DirectionSnapshot, first: DirectionSnapshot
) -> DirectionSnapshot:
    received, waiting = first["moved_before"]
    sent = received - waiting - last["received"] + last["buffered"]
    return {**zero, "received": max(0, received - last["received"]), "sent": max(0, sent)}


def merge_status(parts: Sequence[RelayStatus]) -> RelayStatus:
    """Say how the workers are together; of none, that there is nothing.

    The first gives the process; the oldest, when it all started. Whoever speaks for the whole
    house puts its own in their place. Flows, descriptors and their limits are sums, though a
    source is met by one worker, which can reach its limit before the others do. What one worker
    finds not ready is not ready.
    """
    return {
        "version": __version__,
        "pid": parts[0]["pid"] if parts else 0,
        "started": min((part["started"] for part in parts), default=0.0),
        "draining": any(part["draining"] for part in parts),
        "drains": _merge_rows(
            (row for part in parts for row in part["drains"]), _target, _add_drains
        ),
        "listening": _merge_rows(
            (row for part in parts for row in part["listening"]), _listen_key, _first
        ),
        "flows": sum(part["flows"] for part in parts),
        "workers": [row for part in parts for row in part["workers"]],
        "table_limit": sum(part["table_limit"] for part in parts),
        "file_descriptors": sum(part["file_descriptors"] for part in parts),
        "file_descriptor_limit": sum(part["file_descriptor_limit"] for part in parts),
        "not_ready": list(dict.fromkeys(text for part in parts for text in part["not_ready"])),
    }


def merge_order_counts(parts: Sequence[Sequence[OrderCount]]) -> list[OrderCount]:
    """Add how many flows each order is for."""
    flows: dict[int, int] = {}
    for row in chain.from_iterable(parts):
        flows[row["number"]] = flows.get(row["number"], 0) + row["flows"]
    return [{"number": number, "flows": count} for number, count in flows.items()]


def merge_ids(parts: Sequence[FlowIds], limit: int = 0, silent: Sequence[int] = ()) -> FlowIds:
    """Join the ids that workers found into one answer, in the query's order.

    Times among the keys are of the monotonic clock, which all processes of a host share.

    Args:
        parts: of each worker, at least the first ``limit`` of what it found.
        limit: at most so many ids; 0 is no limit. Where keys are equal, earlier parts come first.
        silent: workers that do not answer.

    """
    pairs = [zip(part["keys"], part["ids"], strict=True) for part in parts]
    found = list(islice(heapq.merge(*pairs, key=itemgetter(0)), limit or None))
    return {
        "ids": [id for _, id in found],
        "keys": [key for key, _ in found],
        "matched": sum(part["matched"] for part in parts),
        "silent": [*silent],
    }


def _merge_rows(
    rows: Iterable[Row], key: Callable[[Row], Hashable], add: Callable[[Row, Row], Row]
) -> list[Row]:
    """One row for each key, in the order in which they are first seen."""
    found: dict[Hashable, Row] = {}
    for row in rows:
        name = key(row)
        found[name] = add(found[name], row) if name in found else row
    return list(found.values())


def _add_listeners(one: ListenerSnapshot, other: ListenerSnapshot) -> ListenerSnapshot:
    return {
        "listener": one["listener"],
        "transport": one["transport"],
        "upstream": one["upstream"],
        "live": _add_counts(one["live"], other["live"]),
        "opened": one["opened"] + other["opened"],
        "closed": _add_counts(one["closed"], other["closed"]),
        "first": _add_counts(one["first"], other["first"]),
        "half_closed": one["half_closed"] + other["half_closed"],
        "refused": _add_counts(one["refused"], other["refused"]),
        "dropped": _add_counts(one["dropped"], other["dropped"]),
        "hits": _add_counts(one["hits"], other["hits"]),
        "dry_run_hits": _add_counts(one["dry_run_hits"], other["dry_run_hits"]),
        "waiting": one["waiting"] + other["waiting"],
        "waited": one["waited"] + other["waited"],
        "abandoned": one["abandoned"] + other["abandoned"],
        "taken_over": one["taken_over"] + other["taken_over"],
        "lost": one["lost"] + other["lost"],
        "finished_before": None,
        "original": _add_directions(one["original"], other["original"]),
        "reply": _add_directions(one["reply"], other["reply"]),
        "duration": add_histograms(one["duration"], other["duration"]),
        "connect_duration": add_histograms(one["connect_duration"], other["connect_duration"]),
        "samples": add_samples(one["samples"], other["samples"]),
    }


def _add_endpoints(one: EndpointSnapshot, other: EndpointSnapshot) -> EndpointSnapshot:
    """Add up; it is down as soon as one worker's last attempt failed a moment ago.

    A worker that has not tried it lately calls it up, because it knows nothing. Sources are
    divided, so there often is only one that tries; if any worker's "up" counted, an endpoint that
    is down would hardly ever be shown as such.
    """
    return {
        "upstream": one["upstream"],
        "endpoint": one["endpoint"],
        "up": one["up"] and other["up"],
        "draining": one["draining"] or other["draining"],
        "flows": one["flows"] + other["flows"],
        "attempts": one["attempts"] + other["attempts"],
        "failures": _add_counts(one["failures"], other["failures"]),
        "ejections": one["ejections"] + other["ejections"],
        "addresses": merge_addresses([*one["addresses"], *other["addresses"]]),
    }


def _add_drains(one: DrainRow, other: DrainRow) -> DrainRow:
    """Add up; it goes on as long as it does in one worker."""
    further = min(one, other, key=lambda row: PHASES.index(row["phase"]))
    seconds = [row["seconds_left"] for row in (one, other) if row["seconds_left"] is not None]
    return {
        **further,
        "flows": one["flows"] + other["flows"],
        "ended": one["ended"] + other["ended"],
        "seconds_left": max(seconds, default=None),
    }


def _target(row: DrainRow) -> Hashable:
    return row["listener"], row["upstream"], row["endpoint"]


def _add_counts(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {word: one.get(word, 0) + other.get(word, 0) for word in one | other}


def _add_directions(one: DirectionSnapshot, other: DirectionSnapshot) -> DirectionSnapshot:
    return {
        "received": one["received"] + other["received"],
        "sent": one["sent"] + other["sent"],
        "buffered": one["buffered"] + other["buffered"],
        "packets_received": one["packets_received"] + other["packets_received"],
        "packets_sent": one["packets_sent"] + other["packets_sent"],
        "unsent": one["unsent"] + other["unsent"],
        "moved_before": (0, 0),  # of one worker alone
        "flow_bytes": add_histograms(one["flow_bytes"], other["flow_bytes"]),
    }


def _retire_listener(row: ListenerSnapshot, fate: CloseReason | None) -> ListenerSnapshot:
    lost = 0 if fate is None else sum(row["live"].values())
    return {
        **row,
        "live": dict.fromkeys(row["live"], 0),
        "closed": _add_counts(row["closed"], {} if fate is None else {fate.value: lost}),
        "first": _add_counts(row["first"], {CloseSide.PROXY.value: lost}),
        "waiting": 0,
        "original": {**row["original"], "buffered": 0},
        "reply": {**row["reply"], "buffered": 0},
    }


def _retire_endpoint(row: EndpointSnapshot) -> EndpointSnapshot:
    return {**row, "up": True, "flows": 0, "addresses": []}


def _listener_key(row: ListenerSnapshot) -> Hashable:
    return row["listener"], row["transport"]


def _endpoint_key(row: EndpointSnapshot) -> Hashable:
    return row["upstream"], row["endpoint"]


def _queue_key(row: QueueSnapshot) -> Hashable:
    return row["upstream"]


def _route_key(row: RouteSnapshot) -> Hashable:
    return row["listener"], row["route"]


def _first(one: Row, _: Row) -> Row:
    """The newer of two readings; or a socket of an address that two workers have one of each."""
    return one


def _listen_key(row: ListenRow) -> Hashable:
    return row["listener"], row["transport"], row["local"], row["upstream"]
