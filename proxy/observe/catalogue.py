"""The catalogue of metrics: a table, one entry a metric, and how each is read.

Strategy: the rendering, the reference for people and the tests are all made from this table, so
they cannot disagree. An entry reads its samples (see ``samples``) from one ``Reading`` and owns
no number itself: the relay keeps plain ints, a scrape copies them. So a scrape costs O(listeners +
endpoints), whatever the number of flows, and there is no second truth to go stale.

Invariants: labels hold only configured names and closed enums; every known label set is present
from the start, at 0; counters end in ``_total``. Units are bytes and seconds.

The ``process_*`` metrics have the names and the meaning of the Prometheus client libraries, but
are of all our processes; see ``processes``.

The file is long because a table is read in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from proxy.core.address import DATAGRAMS, STREAMS, Transport
from proxy.observe import samples
from proxy.observe.processes import RESIDENT, WHOLE

if TYPE_CHECKING:
    from proxy.observe.samples import Labels, Reading, Samples

MetricType: TypeAlias = Literal["counter", "gauge", "histogram", "info"]
TCP: Final = (Transport.TCP,)


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


_LISTENER: Final = ("listener",)
_REASON: Final = ("listener", "reason")
_UPSTREAM: Final = ("upstream",)
_ENDPOINT: Final = ("upstream", "endpoint")

CATALOGUE: Final[tuple[MetricEntry, ...]] = (
    MetricEntry(
        "sockpair_build_info",
        "info",
        ("version", "python"),
        "The running sockpair and its Python; always 1.",
        samples.build,
    ),
    MetricEntry(
        "sockpair_flows",
        "gauge",
        ("listener", "transport", "state"),
        "Live flows by state.",
        samples.live,
    ),
    MetricEntry(
        "sockpair_flows_opened_total",
        "counter",
        _LISTENER,
        "Flows that were admitted.",
        samples.listener(lambda row: row["opened"]),
    ),
    MetricEntry(
        "sockpair_flows_closed_total",
        "counter",
        _REASON,
        'Flows that ended, by the first cause; reason="internal" is a fault of sockpair.',
        samples.listener_by(lambda row: row["closed"]),
    ),
    MetricEntry(
        "sockpair_flows_closed_first_total",
        "counter",
        ("listener", "side"),
        "Flows that ended, by who moved first.",
        samples.listener_by(lambda row: row["first"]),
    ),
    MetricEntry(
        "sockpair_half_closed_seconds_total",
        "counter",
        _LISTENER,
        "Time that flows spent with one side ended, told when they end; stream listeners only.",
        samples.listener(lambda row: row["half_closed"], STREAMS),
    ),
    MetricEntry(
        "sockpair_unsent_bytes_total",
        "counter",
        ("listener", "direction"),
        "Payload received that had not arrived when its flow was cut; stream listeners only.",
        samples.listener_by(samples.unsent, STREAMS),
    ),
    MetricEntry(
        "sockpair_flows_refused_total",
        "counter",
        _REASON,
        "Flows that were not admitted, by cause.",
        samples.listener_by(lambda row: row["refused"]),
    ),
    MetricEntry(
        "sockpair_limit_hits_total",
        "counter",
        ("listener", "limit"),
        "How often a limit struck: it refused a flow, or dropped a datagram.",
        samples.listener_by(lambda row: row["hits"]),
    ),
    MetricEntry(
        "sockpair_limit_dry_run_hits_total",
        "counter",
        ("listener", "limit"),
        "How often a limit would have struck, were it not for dry_run.",
        samples.listener_by(lambda row: row["dry_run_hits"]),
    ),
    MetricEntry(
        "sockpair_flows_waiting",
        "gauge",
        _LISTENER,
        "Clients held until there is a place for them; stream listeners only.",
        samples.listener(lambda row: row["waiting"], STREAMS),
    ),
    MetricEntry(
        "sockpair_flows_waited_total",
        "counter",
        _LISTENER,
        "Clients that were held, whatever came of it; stream listeners only.",
        samples.listener(lambda row: row["waited"], STREAMS),
    ),
    MetricEntry(
        "sockpair_flows_wait_abandoned_total",
        "counter",
        _LISTENER,
        "Clients that went away while they were held; stream listeners only.",
        samples.listener(lambda row: row["abandoned"], STREAMS),
    ),
    MetricEntry(
        "sockpair_flows_taken_over_total",
        "counter",
        _LISTENER,
        "Flows that changed their process and lived on: in a restart, an upgrade or a crash.",
        samples.listener(lambda row: row["taken_over"]),
    ),
    MetricEntry(
        "sockpair_flows_lost_total",
        "counter",
        _LISTENER,
        "Flows that should have lived on and were reset; they are among those closed as internal.",
        samples.listener(lambda row: row["lost"]),
    ),
    MetricEntry(
        "sockpair_client_received_bytes_total",
        "counter",
        _LISTENER,
        "Payload received from clients.",
        samples.listener(lambda row: row["original"]["received"]),
    ),
    MetricEntry(
        "sockpair_client_sent_bytes_total",
        "counter",
        _LISTENER,
        "Payload sent to clients.",
        samples.listener(lambda row: row["reply"]["sent"]),
    ),
    MetricEntry(
        "sockpair_endpoint_received_bytes_total",
        "counter",
        _LISTENER,
        "Payload received from endpoints.",
        samples.listener(lambda row: row["reply"]["received"]),
    ),
    MetricEntry(
        "sockpair_endpoint_sent_bytes_total",
        "counter",
        _LISTENER,
        "Payload sent to endpoints.",
        samples.listener(lambda row: row["original"]["sent"]),
    ),
    MetricEntry(
        "sockpair_client_received_datagrams_total",
        "counter",
        _LISTENER,
        "Datagrams received from clients; datagram listeners only.",
        samples.listener(lambda row: row["original"]["packets_received"], DATAGRAMS),
    ),
    MetricEntry(
        "sockpair_client_sent_datagrams_total",
        "counter",
        _LISTENER,
        "Datagrams sent to clients; datagram listeners only.",
        samples.listener(lambda row: row["reply"]["packets_sent"], DATAGRAMS),
    ),
    MetricEntry(
        "sockpair_endpoint_received_datagrams_total",
        "counter",
        _LISTENER,
        "Datagrams received from endpoints; datagram listeners only.",
        samples.listener(lambda row: row["reply"]["packets_received"], DATAGRAMS),
    ),
    MetricEntry(
        "sockpair_endpoint_sent_datagrams_total",
        "counter",
        _LISTENER,
        "Datagrams sent to endpoints; datagram listeners only.",
        samples.listener(lambda row: row["original"]["packets_sent"], DATAGRAMS),
    ),
    MetricEntry(
        "sockpair_datagrams_dropped_total",
        "counter",
        _REASON,
        "Datagrams lost here, or lost on the way as ICMP tells, by cause; datagram listeners only.",
        samples.listener_by(lambda row: row["dropped"], DATAGRAMS),
    ),
    MetricEntry(
        "sockpair_buffered_bytes",
        "gauge",
        ("listener", "direction"),
        "Payload received and not yet sent on: what slow readers hold back.",
        samples.listener_by(samples.buffered),
    ),
    MetricEntry(
        "sockpair_flow_duration_seconds",
        "histogram",
        _LISTENER,
        "How long flows lived, from admission to end.",
        samples.listener(lambda row: row["duration"]),
    ),
    MetricEntry(
        "sockpair_flow_bytes",
        "histogram",
        ("listener", "direction"),
        "Payload received in one direction of a flow, by the time of its end.",
        samples.listener_by(samples.flow_bytes),
    ),
    MetricEntry(
        "sockpair_connect_duration_seconds",
        "histogram",
        _LISTENER,
        "How long connecting to endpoints took; stream listeners only.",
        samples.listener(lambda row: row["connect_duration"], STREAMS),
    ),
    MetricEntry(
        "sockpair_rtt_seconds",
        "histogram",
        ("listener", "leg"),
        "Round-trip times as the kernel smooths them, once a sample; TCP listeners only.",
        samples.listener_by(lambda row: row["samples"]["rtt"], TCP),
    ),
    MetricEntry(
        "sockpair_retransmits_total",
        "counter",
        ("listener", "leg"),
        "Segments that were sent again, as far as sampled; TCP listeners only.",
        samples.listener_by(lambda row: row["samples"]["retransmits"], TCP),
    ),
    MetricEntry(
        "sockpair_waits_seconds_total",
        "counter",
        ("listener", "party"),
        "Time that flows waited for client, endpoint, proxy, limit or nobody, as far as sampled; "
        "stream listeners only.",
        samples.listener_by(lambda row: row["samples"]["waits"], STREAMS),
    ),
    MetricEntry(
        "sockpair_samples_total",
        "counter",
        _LISTENER,
        "How often the kernel was asked about a flow; stream listeners only.",
        samples.listener(lambda row: row["samples"]["taken"], STREAMS),
    ),
    MetricEntry(
        "sockpair_table_entries",
        "gauge",
        (),
        "Live flows in the flow table.",
        samples.whole(lambda reading: reading.counters["table_entries"]),
    ),
    MetricEntry(
        "sockpair_table_limit",
        "gauge",
        (),
        "Live flows that the flow table holds at most.",
        samples.whole(lambda reading: reading.counters["table_limit"]),
    ),
    MetricEntry(
        "sockpair_table_evictions_total",
        "counter",
        (),
        "Flows that were evicted from the full table for others.",
        samples.whole(samples.evictions),
    ),
    MetricEntry(
        "sockpair_worker_restarts_total",
        "counter",
        (),
        "Worker processes that were started in the place of one that had ended.",
        samples.whole(lambda reading: reading.counters["worker_restarts"]),
    ),
    MetricEntry(
        "sockpair_workers_silent",
        "gauge",
        (),
        "Workers that do not answer now, whose values are those last known.",
        samples.whole(samples.silent_workers),
    ),
    MetricEntry(
        "sockpair_recent_entries",
        "gauge",
        (),
        "Recently closed flows that can still be found.",
        samples.whole(lambda reading: reading.counters["recent_entries"]),
    ),
    MetricEntry(
        "sockpair_endpoint_up",
        "gauge",
        _ENDPOINT,
        "0 if every address is ejected, or fails its active checks; without checks also for 10 s "
        "after a failed connection attempt, unless the endpoint answered since; else 1.",
        samples.up,
    ),
    MetricEntry(
        "sockpair_endpoint_addresses",
        "gauge",
        (*_ENDPOINT, "condition"),
        "Addresses of an endpoint by condition: up, unknown (not checked), ejected, down, draining "
        "or disabled. Of several workers' views the worst counts.",
        samples.conditions,
    ),
    MetricEntry(
        "sockpair_endpoint_flows",
        "gauge",
        _ENDPOINT,
        "Live flows of an endpoint.",
        samples.endpoint(lambda row: row["flows"]),
    ),
    MetricEntry(
        "sockpair_endpoint_flows_limit",
        "gauge",
        _ENDPOINT,
        "Flows that an endpoint may have at once, at all its addresses; endpoints with a ceiling.",
        samples.ceilings,
    ),
    MetricEntry(
        "sockpair_endpoint_weight",
        "gauge",
        _ENDPOINT,
        "Part of new flows beside other endpoints, of all addresses together; less than is "
        "configured while it starts slowly.",
        samples.weights,
    ),
    MetricEntry(
        "sockpair_endpoint_condition_timestamp_seconds",
        "gauge",
        _ENDPOINT,
        "When an address of an endpoint last came into another condition; 0 if none ever did.",
        samples.changes,
    ),
    MetricEntry(
        "sockpair_endpoint_connect_attempts_total",
        "counter",
        _ENDPOINT,
        "Connections to an endpoint that were tried.",
        samples.endpoint(lambda row: row["attempts"]),
    ),
    MetricEntry(
        "sockpair_endpoint_ejections_total",
        "counter",
        _ENDPOINT,
        "How often addresses of an endpoint were ejected, as they failed flows; by each worker.",
        samples.endpoint(lambda row: row["ejections"]),
    ),
    MetricEntry(
        "sockpair_endpoint_connect_failures_total",
        "counter",
        (*_ENDPOINT, "reason"),
        "Connections to an endpoint that failed, by cause.",
        samples.connect_failures,
    ),
    MetricEntry(
        "sockpair_routed_flows_total",
        "counter",
        ("listener", "route"),
        "Flows by the route they took, as it is configured, or * where none fits; listeners with "
        "route_metrics.",
        samples.routed,
    ),
    MetricEntry(
        "sockpair_upstream_flows_waiting",
        "gauge",
        _UPSTREAM,
        "Flows that wait for an endpoint, as all are full; upstreams that let them wait.",
        samples.queue(lambda row: row["waiting"]),
    ),
    MetricEntry(
        "sockpair_upstream_flows_waited_total",
        "counter",
        _UPSTREAM,
        "Flows that had to wait for an endpoint, whatever came of it.",
        samples.queue(lambda row: row["waited"]),
    ),
    MetricEntry(
        "sockpair_upstream_flows_turned_away_total",
        "counter",
        _UPSTREAM,
        "Flows that found every endpoint full, and no room to wait; they end as no_endpoint.",
        samples.queue(lambda row: row["turned_away"]),
    ),
    MetricEntry(
        "sockpair_upstream_flows_wait_expired_total",
        "counter",
        _UPSTREAM,
        "Flows for which no endpoint had a place in time; they end as no_endpoint.",
        samples.queue(lambda row: row["expired"]),
    ),
    MetricEntry(
        "sockpair_log_records_dropped_total",
        "counter",
        (),
        "Log lines thrown away because nobody took them in time.",
        samples.whole(lambda reading: reading.counters["log_dropped"]),
    ),
    MetricEntry(
        "sockpair_admin_connections_refused_total",
        "counter",
        (),
        "Connections to the admin server that were over its bound.",
        samples.whole(lambda reading: reading.admin_refused),
    ),
    MetricEntry(
        "sockpair_check_results_total",
        "counter",
        (*_ENDPOINT, "result"),
        "Health checks of an endpoint: passed, failed, or silent, which proves nothing.",
        samples.check_results,
    ),
    MetricEntry(
        "sockpair_check_addresses",
        "gauge",
        (*_ENDPOINT, "health"),
        "Addresses of an endpoint that are up, down or unknown by their health checks.",
        samples.check_addresses,
    ),
    MetricEntry(
        "sockpair_check_last_duration_seconds",
        "gauge",
        _ENDPOINT,
        "How long the last health check of an endpoint took; of its slowest address.",
        samples.check_duration,
    ),
    MetricEntry(
        "sockpair_check_last_timestamp_seconds",
        "gauge",
        _ENDPOINT,
        "When the last health check of an endpoint ended; of the address it is longest ago.",
        samples.last_checks,
    ),
    MetricEntry(
        "sockpair_name_lookups_total",
        "counter",
        (*_ENDPOINT, "result"),
        "Look-ups of an endpoint's name: ok, failed, or absent where servers know no address.",
        samples.name_lookups,
    ),
    MetricEntry(
        "sockpair_name_addresses",
        "gauge",
        _ENDPOINT,
        "Addresses in use of an endpoint that is a name.",
        samples.name(lambda row: len(row["addresses"])),
    ),
    MetricEntry(
        "sockpair_name_last_success_timestamp_seconds",
        "gauge",
        _ENDPOINT,
        "When the name of an endpoint was last resolved; 0 if never.",
        samples.name(lambda row: row["last_success"] or 0),
    ),
    MetricEntry(
        "sockpair_name_next_lookup_timestamp_seconds",
        "gauge",
        _ENDPOINT,
        "When the name of an endpoint will be looked up again, as its TTL runs out.",
        samples.name(lambda row: row["next_lookup"]),
    ),
    MetricEntry(
        "sockpair_config_last_reload_successful",
        "gauge",
        (),
        "1 if the last reload of the configuration succeeded, 0 if it changed nothing.",
        samples.whole(lambda reading: int(reading.reload["successful"])),
    ),
    MetricEntry(
        "sockpair_config_last_reload_success_timestamp_seconds",
        "gauge",
        (),
        "When a configuration was last put to work, in Unix seconds; the start counts.",
        samples.whole(lambda reading: reading.reload["success_timestamp"]),
    ),
    MetricEntry(
        "process_cpu_seconds_total",
        "counter",
        (),
        "User and system CPU time spent, by all our processes.",
        samples.cpu,
    ),
    MetricEntry(
        "process_resident_memory_bytes",
        "gauge",
        (),
        "Resident memory of all our processes.",
        samples.memory(RESIDENT),
    ),
    MetricEntry(
        "process_virtual_memory_bytes",
        "gauge",
        (),
        "Virtual memory of all our processes.",
        samples.memory(WHOLE),
    ),
    MetricEntry(
        "process_start_time_seconds",
        "gauge",
        (),
        "When it started, in Unix seconds.",
        samples.whole(lambda reading: reading.status["started"]),
    ),
    MetricEntry(
        "process_open_fds",
        "gauge",
        (),
        "Open file descriptors.",
        samples.whole(lambda reading: reading.status["file_descriptors"]),
    ),
    MetricEntry(
        "process_max_fds",
        "gauge",
        (),
        "File descriptors that may be open at most.",
        samples.whole(lambda reading: reading.status["file_descriptor_limit"]),
    ),
)
