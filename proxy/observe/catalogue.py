"""The catalogue of metrics: a table, one entry a metric, and how each is read.

Strategy: the rendering, the reference for people and the tests are all made from this table, so
they cannot disagree. An entry reads its samples from one ``Reading`` and owns no number itself:
the relay keeps plain ints, a scrape copies them. So a scrape costs O(listeners + endpoints),
whatever the number of flows, and there is no second truth to go stale.

Invariants: labels hold only configured names and closed enums; every known label set is present
from the start, at 0; counters end in ``_total``. Units are bytes and seconds.

The ``process_*`` metrics have the names and the meaning of the Prometheus client libraries, but
are of all our processes; see ``processes``.

The file is long because a table is read in one piece.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from proxy.core.address import DATAGRAMS, STREAMS, Transport
from proxy.core.condition import Condition, Health
from proxy.core.flow import CloseReason
from proxy.observe.processes import RESIDENT, WHOLE, cpu_seconds, memory_bytes

if TYPE_CHECKING:
    from proxy.core.counters import EndpointSnapshot, ListenerSnapshot
    from proxy.core.histogram import HistogramSnapshot
    from proxy.engine.port import CheckRow, NameRow, RelayCounters, RelayStatus, ReloadRecord

EVERY: Final = tuple(Transport)
TCP: Final = (Transport.TCP,)

MetricType: TypeAlias = Literal["counter", "gauge", "histogram", "info"]
Labels: TypeAlias = tuple[str, ...]
Samples: TypeAlias = "Iterable[tuple[Labels, float | HistogramSnapshot]]"


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that one scrape tells, taken at one moment.

    Attributes:
        wall_offset: Unix time less monotonic time, in seconds.

    """

    counters: RelayCounters
    status: RelayStatus
    admin_refused: int
    reload: ReloadRecord
    wall_offset: float
    names: Sequence[NameRow] = ()
    checks: Sequence[CheckRow] = ()

    @property
    def has_twins(self) -> bool:
        """Whether two sets of counters belong to one listener."""
        rows = self.counters["listeners"]
        return len({row["listener"] for row in rows}) < len(rows)


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """One line of the catalogue.

    Attributes:
        name: as it appears on ``/metrics``; a histogram's samples add ``_bucket`` and so on.
        type: what Prometheus calls it.
        labels: in the order of each sample's label values.
        help: one sentence for people.
        read: its samples, from one reading.

    """

    name: str
    type: MetricType
    labels: Labels
    help: str
    read: Callable[[Reading], Samples]


def catalogue() -> tuple[MetricEntry, ...]:
    """Every metric, in the order of ``/metrics``."""
    return CATALOGUE


# How samples are read. Each of these returns a reader for one line of the catalogue.


def _whole(read: Callable[[Reading], float]) -> Callable[[Reading], Samples]:
    """One sample without labels."""
    return lambda reading: [((), read(reading))]


def _listener(
    read: Callable[[ListenerSnapshot], float | HistogramSnapshot],
    only: Collection[Transport] = EVERY,
) -> Callable[[Reading], Samples]:
    """One sample a listener, or a listener of these transports."""
    return lambda reading: (((row["listener"],), read(row)) for row in _listeners(reading, only))


def _listener_by(
    read: Callable[[ListenerSnapshot], Mapping[str, float | HistogramSnapshot]],
    only: Collection[Transport] = EVERY,
) -> Callable[[Reading], Samples]:
    """One sample a listener and word of a closed enum."""
    return lambda reading: (
        ((row["listener"], word), value)
        for row in _listeners(reading, only)
        for word, value in read(row).items()
    )


def _listeners(reading: Reading, only: Collection[Transport]) -> Iterator[ListenerSnapshot]:
    for row in reading.counters["listeners"]:
        if row["transport"] in only:
            yield row


def _endpoint(read: Callable[[EndpointSnapshot], float]) -> Callable[[Reading], Samples]:
    """One sample an endpoint."""
    return lambda reading: (
        ((row["upstream"], row["endpoint"]), read(row)) for row in reading.counters["endpoints"]
    )


def _name(read: Callable[[NameRow], float]) -> Callable[[Reading], Samples]:
    """One sample an endpoint that has a name."""
    return lambda reading: [
        ((row["upstream"], row["endpoint"]), read(row)) for row in reading.names
    ]


def _name_lookups(reading: Reading) -> Samples:
    return (
        ((row["upstream"], row["endpoint"], result), count)
        for row in reading.names
        for result, count in row["lookups"].items()
    )


def _up(reading: Reading) -> Samples:
    """Whether endpoints are up: as checks show, and where they show nothing as flows do."""
    shown: dict[Labels, set[str]] = {}
    for row in reading.checks:
        shown.setdefault((row["upstream"], row["endpoint"]), set()).add(row["health"])
    for endpoint in reading.counters["endpoints"]:
        labels = (endpoint["upstream"], endpoint["endpoint"])
        health = shown.get(labels, set())
        if "up" in health:
            yield labels, 1
        else:
            yield labels, 0 if health == {"down"} else int(endpoint["up"])


def _check_results(reading: Reading) -> Samples:
    """Results of checks, those of all addresses of an endpoint together."""
    counts: Counter[Labels] = Counter()
    for row in reading.checks:
        for result, count in row["results"].items():
            counts[row["upstream"], row["endpoint"], result] += count
    return counts.items()


def _check_duration(reading: Reading) -> Samples:
    """How long the last checks took, of the address that took longest."""
    longest: dict[Labels, float] = {}
    for row in reading.checks:
        labels = (row["upstream"], row["endpoint"])
        longest[labels] = max(longest.get(labels, 0.0), row["duration"])
    return longest.items()


def _check_addresses(reading: Reading) -> Samples:
    """Addresses of an endpoint by health."""
    counts: Counter[Labels] = Counter()
    for row in reading.checks:
        for health in Health:
            counts[row["upstream"], row["endpoint"], health.value] += row["health"] == health
    return counts.items()


def _live(reading: Reading) -> Samples:
    return (
        ((row["listener"], row["transport"], state), count)
        for row in reading.counters["listeners"]
        for state, count in row["live"].items()
    )


def _buffered(row: ListenerSnapshot) -> dict[str, int]:
    return {"original": row["original"]["buffered"], "reply": row["reply"]["buffered"]}


def _unsent(row: ListenerSnapshot) -> dict[str, int]:
    return {"original": row["original"]["unsent"], "reply": row["reply"]["unsent"]}


def _flow_bytes(row: ListenerSnapshot) -> dict[str, HistogramSnapshot]:
    return {"original": row["original"]["flow_bytes"], "reply": row["reply"]["flow_bytes"]}


def _connect_failures(reading: Reading) -> Samples:
    return (
        ((row["upstream"], row["endpoint"], reason), count)
        for row in reading.counters["endpoints"]
        for reason, count in row["failures"].items()
    )


def _conditions(reading: Reading) -> Samples:
    for row in reading.counters["endpoints"]:
        found = Counter(each["condition"] for each in row["addresses"])
        for condition in Condition:
            yield (row["upstream"], row["endpoint"], condition.value), found[condition.value]


def _build(reading: Reading) -> Samples:
    return [((reading.status["version"], platform.python_version()), 1)]


def _evictions(reading: Reading) -> float:
    return sum(row["closed"][CloseReason.EVICTED] for row in reading.counters["listeners"])


def _pids(reading: Reading) -> list[int]:
    return [row["pid"] for row in reading.status["workers"]]


def _memory(field: int) -> Callable[[Reading], Samples]:
    return _whole(lambda reading: memory_bytes(_pids(reading), field))


_LISTENER: Final = ("listener",)
_REASON: Final = ("listener", "reason")
_ENDPOINT: Final = ("upstream", "endpoint")

CATALOGUE: Final[tuple[MetricEntry, ...]] = (
    MetricEntry(
        "sockpair_build_info",
        "info",
        ("version", "python"),
        "The running sockpair and its Python; always 1.",
        _build,
    ),
    MetricEntry(
        "sockpair_flows",
        "gauge",
        ("listener", "transport", "state"),
        "Live flows by state.",
        _live,
    ),
    MetricEntry(
        "sockpair_flows_opened_total",
        "counter",
        _LISTENER,
        "Flows that were admitted.",
        _listener(lambda row: row["opened"]),
    ),
    MetricEntry(
        "sockpair_flows_closed_total",
        "counter",
        _REASON,
        'Flows that ended, by the first cause; reason="internal" is a fault of sockpair.',
        _listener_by(lambda row: row["closed"]),
    ),
    MetricEntry(
        "sockpair_flows_closed_first_total",
        "counter",
        ("listener", "side"),
        "Flows that ended, by who moved first.",
        _listener_by(lambda row: row["first"]),
    ),
    MetricEntry(
        "sockpair_half_closed_seconds_total",
        "counter",
        _LISTENER,
        "Time that flows spent with one side ended, told when they end; stream listeners only.",
        _listener(lambda row: row["half_closed"], STREAMS),
    ),
    MetricEntry(
        "sockpair_unsent_bytes_total",
        "counter",
        ("listener", "direction"),
        "Payload received that had not arrived when its flow was cut; stream listeners only.",
        _listener_by(_unsent, STREAMS),
    ),
    MetricEntry(
        "sockpair_flows_refused_total",
        "counter",
        _REASON,
        "Flows that were not admitted, by cause.",
        _listener_by(lambda row: row["refused"]),
    ),
    MetricEntry(
        "sockpair_limit_hits_total",
        "counter",
        ("listener", "limit"),
        "How often a limit struck: it refused a flow, or dropped a datagram.",
        _listener_by(lambda row: row["hits"]),
    ),
    MetricEntry(
        "sockpair_limit_dry_run_hits_total",
        "counter",
        ("listener", "limit"),
        "How often a limit would have struck, were it not for dry_run.",
        _listener_by(lambda row: row["dry_run_hits"]),
    ),
    MetricEntry(
        "sockpair_flows_waiting",
        "gauge",
        _LISTENER,
        "Clients held until there is a place for them; stream listeners only.",
        _listener(lambda row: row["waiting"], STREAMS),
    ),
    MetricEntry(
        "sockpair_flows_waited_total",
        "counter",
        _LISTENER,
        "Clients that were held, whatever came of it; stream listeners only.",
        _listener(lambda row: row["waited"], STREAMS),
    ),
    MetricEntry(
        "sockpair_flows_wait_abandoned_total",
        "counter",
        _LISTENER,
        "Clients that went away while they were held; stream listeners only.",
        _listener(lambda row: row["abandoned"], STREAMS),
    ),
    MetricEntry(
        "sockpair_client_received_bytes_total",
        "counter",
        _LISTENER,
        "Payload received from clients.",
        _listener(lambda row: row["original"]["received"]),
    ),
    MetricEntry(
        "sockpair_client_sent_bytes_total",
        "counter",
        _LISTENER,
        "Payload sent to clients.",
        _listener(lambda row: row["reply"]["sent"]),
    ),
    MetricEntry(
        "sockpair_endpoint_received_bytes_total",
        "counter",
        _LISTENER,
        "Payload received from endpoints.",
        _listener(lambda row: row["reply"]["received"]),
    ),
    MetricEntry(
        "sockpair_endpoint_sent_bytes_total",
        "counter",
        _LISTENER,
        "Payload sent to endpoints.",
        _listener(lambda row: row["original"]["sent"]),
    ),
    MetricEntry(
        "sockpair_client_received_datagrams_total",
        "counter",
        _LISTENER,
        "Datagrams received from clients; datagram listeners only.",
        _listener(lambda row: row["original"]["packets_received"], DATAGRAMS),
    ),
    MetricEntry(
        "sockpair_client_sent_datagrams_total",
        "counter",
        _LISTENER,
        "Datagrams sent to clients; datagram listeners only.",
        _listener(lambda row: row["reply"]["packets_sent"], DATAGRAMS),
    ),
    MetricEntry(
        "sockpair_endpoint_received_datagrams_total",
        "counter",
        _LISTENER,
        "Datagrams received from endpoints; datagram listeners only.",
        _listener(lambda row: row["reply"]["packets_received"], DATAGRAMS),
    ),
    MetricEntry(
        "sockpair_endpoint_sent_datagrams_total",
        "counter",
        _LISTENER,
        "Datagrams sent to endpoints; datagram listeners only.",
        _listener(lambda row: row["original"]["packets_sent"], DATAGRAMS),
    ),
    MetricEntry(
        "sockpair_datagrams_dropped_total",
        "counter",
        _REASON,
        "Datagrams lost here, or lost on the way as ICMP tells, by cause; datagram listeners only.",
        _listener_by(lambda row: row["dropped"], DATAGRAMS),
    ),
    MetricEntry(
        "sockpair_buffered_bytes",
        "gauge",
        ("listener", "direction"),
        "Payload received and not yet sent on: what slow readers hold back.",
        _listener_by(_buffered),
    ),
    MetricEntry(
        "sockpair_flow_duration_seconds",
        "histogram",
        _LISTENER,
        "How long flows lived, from admission to end.",
        _listener(lambda row: row["duration"]),
    ),
    MetricEntry(
        "sockpair_flow_bytes",
        "histogram",
        ("listener", "direction"),
        "Payload received in one direction of a flow, by the time of its end.",
        _listener_by(_flow_bytes),
    ),
    MetricEntry(
        "sockpair_connect_duration_seconds",
        "histogram",
        _LISTENER,
        "How long connecting to endpoints took; stream listeners only.",
        _listener(lambda row: row["connect_duration"], STREAMS),
    ),
    MetricEntry(
        "sockpair_rtt_seconds",
        "histogram",
        ("listener", "leg"),
        "Round-trip times as the kernel smooths them, once a sample; TCP listeners only.",
        _listener_by(lambda row: row["samples"]["rtt"], TCP),
    ),
    MetricEntry(
        "sockpair_retransmits_total",
        "counter",
        ("listener", "leg"),
        "Segments that were sent again, as far as sampled; TCP listeners only.",
        _listener_by(lambda row: row["samples"]["retransmits"], TCP),
    ),
    MetricEntry(
        "sockpair_waits_seconds_total",
        "counter",
        ("listener", "party"),
        "Time that flows waited for client, endpoint, proxy, limit or nobody, as far as sampled; "
        "stream listeners only.",
        _listener_by(lambda row: row["samples"]["waits"], STREAMS),
    ),
    MetricEntry(
        "sockpair_samples_total",
        "counter",
        _LISTENER,
        "How often the kernel was asked about a flow; stream listeners only.",
        _listener(lambda row: row["samples"]["taken"], STREAMS),
    ),
    MetricEntry(
        "sockpair_table_entries",
        "gauge",
        (),
        "Live flows in the flow table.",
        _whole(lambda reading: reading.counters["table_entries"]),
    ),
    MetricEntry(
        "sockpair_table_limit",
        "gauge",
        (),
        "Live flows that the flow table holds at most.",
        _whole(lambda reading: reading.counters["table_limit"]),
    ),
    MetricEntry(
        "sockpair_table_evictions_total",
        "counter",
        (),
        "Flows that were evicted from the full table for others.",
        _whole(_evictions),
    ),
    MetricEntry(
        "sockpair_worker_restarts_total",
        "counter",
        (),
        "Worker processes that were started in the place of one that had ended.",
        _whole(lambda reading: reading.counters["worker_restarts"]),
    ),
    MetricEntry(
        "sockpair_recent_entries",
        "gauge",
        (),
        "Recently closed flows that can still be found.",
        _whole(lambda reading: reading.counters["recent_entries"]),
    ),
    MetricEntry(
        "sockpair_endpoint_up",
        "gauge",
        _ENDPOINT,
        "0 if active checks fail, at every address; without checks, 0 for 10 s after a failed "
        "connection attempt, unless the endpoint answered since; else 1.",
        _up,
    ),
    MetricEntry(
        "sockpair_endpoint_addresses",
        "gauge",
        (*_ENDPOINT, "condition"),
        "Addresses of an endpoint by condition: up, unknown (not checked), ejected, down, draining "
        "or disabled. Of several workers' views the worst counts.",
        _conditions,
    ),
    MetricEntry(
        "sockpair_endpoint_flows",
        "gauge",
        _ENDPOINT,
        "Live flows of an endpoint.",
        _endpoint(lambda row: row["flows"]),
    ),
    MetricEntry(
        "sockpair_endpoint_connect_attempts_total",
        "counter",
        _ENDPOINT,
        "Connections to an endpoint that were tried.",
        _endpoint(lambda row: row["attempts"]),
    ),
    MetricEntry(
        "sockpair_endpoint_ejections_total",
        "counter",
        _ENDPOINT,
        "How often addresses of an endpoint were ejected, as they failed flows; by each worker.",
        _endpoint(lambda row: row["ejections"]),
    ),
    MetricEntry(
        "sockpair_endpoint_connect_failures_total",
        "counter",
        (*_ENDPOINT, "reason"),
        "Connections to an endpoint that failed, by cause.",
        _connect_failures,
    ),
    MetricEntry(
        "sockpair_log_records_dropped_total",
        "counter",
        (),
        "Log lines thrown away because nobody took them in time.",
        _whole(lambda reading: reading.counters["log_dropped"]),
    ),
    MetricEntry(
        "sockpair_admin_connections_refused_total",
        "counter",
        (),
        "Connections to the admin server that were over its bound.",
        _whole(lambda reading: reading.admin_refused),
    ),
    MetricEntry(
        "sockpair_check_results_total",
        "counter",
        (*_ENDPOINT, "result"),
        "Health checks of an endpoint: passed, failed, or silent, which proves nothing.",
        _check_results,
    ),
    MetricEntry(
        "sockpair_check_addresses",
        "gauge",
        (*_ENDPOINT, "health"),
        "Addresses of an endpoint that are up, down or unknown by their health checks.",
        _check_addresses,
    ),
    MetricEntry(
        "sockpair_check_last_duration_seconds",
        "gauge",
        _ENDPOINT,
        "How long the last health check of an endpoint took; of its slowest address.",
        _check_duration,
    ),
    MetricEntry(
        "sockpair_name_lookups_total",
        "counter",
        (*_ENDPOINT, "result"),
        "Look-ups of an endpoint's name: ok, failed, or absent where servers know no address.",
        _name_lookups,
    ),
    MetricEntry(
        "sockpair_name_addresses",
        "gauge",
        _ENDPOINT,
        "Addresses in use of an endpoint that is a name.",
        _name(lambda row: len(row["addresses"])),
    ),
    MetricEntry(
        "sockpair_name_last_success_timestamp_seconds",
        "gauge",
        _ENDPOINT,
        "When the name of an endpoint was last resolved; 0 if never.",
        _name(lambda row: row["last_success"] or 0),
    ),
    MetricEntry(
        "sockpair_name_next_lookup_timestamp_seconds",
        "gauge",
        _ENDPOINT,
        "When the name of an endpoint will be looked up again, as its TTL runs out.",
        _name(lambda row: row["next_lookup"]),
    ),
    MetricEntry(
        "sockpair_config_last_reload_successful",
        "gauge",
        (),
        "1 if the last reload of the configuration succeeded, 0 if it changed nothing.",
        _whole(lambda reading: int(reading.reload["successful"])),
    ),
    MetricEntry(
        "sockpair_config_last_reload_success_timestamp_seconds",
        "gauge",
        (),
        "When a configuration was last put to work, in Unix seconds; the start counts.",
        _whole(lambda reading: reading.reload["success_timestamp"]),
    ),
    MetricEntry(
        "process_cpu_seconds_total",
        "counter",
        (),
        "User and system CPU time spent, by all our processes.",
        _whole(lambda reading: cpu_seconds(_pids(reading))),
    ),
    MetricEntry(
        "process_resident_memory_bytes",
        "gauge",
        (),
        "Resident memory of all our processes.",
        _memory(RESIDENT),
    ),
    MetricEntry(
        "process_virtual_memory_bytes",
        "gauge",
        (),
        "Virtual memory of all our processes.",
        _memory(WHOLE),
    ),
    MetricEntry(
        "process_start_time_seconds",
        "gauge",
        (),
        "When it started, in Unix seconds.",
        _whole(lambda reading: reading.status["started"]),
    ),
    MetricEntry(
        "process_open_fds",
        "gauge",
        (),
        "Open file descriptors.",
        _whole(lambda reading: reading.status["file_descriptors"]),
    ),
    MetricEntry(
        "process_max_fds",
        "gauge",
        (),
        "File descriptors that may be open at most.",
        _whole(lambda reading: reading.status["file_descriptor_limit"]),
    ),
)
