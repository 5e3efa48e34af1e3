"""The house at a glance: every instance, listener and upstream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana.frame import board, listeners, stack, upstreams
from grafana.panels import THIRD, levels, lines, number
from grafana.queries import ENDPOINT, HOUSE, LISTENER, OVER, busy, each_second, now, of

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard


def overview() -> Dashboard:
    """Build the dashboard."""
    empty = board("overview", "overview", "Every instance, listener and upstream at a glance.")
    chosen = empty.with_variable(listeners()).with_variable(upstreams())
    return _house(_upstreams(_payload(_flows(_now(chosen)))))


def _now(built: Dashboard) -> Dashboard:
    table_used = f"max({of('table_entries', HOUSE)} / {of('table_limit', HOUSE)})"
    down = f"count({of('endpoint_up', ENDPOINT)} == 0) or vector(0)"
    internal = of("flows_closed_total", f'{LISTENER},reason="internal"')
    panels = (
        number("Instances", "Those that answer their scraper.", "short",
               f"count({of('build_info', HOUSE)})"),
        number("Live flows", "In the flow table.", "short", now("table_entries", selector=HOUSE)),
        number("Table used", "At 100 % one flow goes for another, or is refused.", "percentunit",
               table_used, warn=0.8, bad=0.95),
        number("Refused", "Flows refused each second, for any reason.", "cps",
               each_second("flows_refused_total"), warn=1),
        number("Endpoints down", "Those that new flows cannot go to.", "short", down, bad=1),
        number("Faults", "Flows that a fault of sockpair ended; there must be none.", "short",
               f"sum(increase({internal}[$__range]))", bad=1),
    )  # fmt: skip
    return stack(built, "Now", panels)


def _flows(built: Dashboard) -> Dashboard:
    return stack(built, "Flows", (
        lines("Live flows", "By listener.", "short",
              {"{{listener}}": now("flows", "listener")}, stacked=True),
        lines("New flows", "Admitted each second.", "cps",
              {"{{listener}}": each_second("flows_opened_total", "listener")}),
        lines("Ended flows",
              "By reason. What is not `finished` has its remedy in the operations guide.", "cps",
              {"{{reason}}": busy(each_second("flows_closed_total", "reason"))}, stacked=True),
        lines("Refused flows", "By listener and reason.", "cps",
              {"{{listener}}: {{reason}}":
               busy(each_second("flows_refused_total", "listener", "reason"))}, stacked=True),
    ))  # fmt: skip


def _payload(built: Dashboard) -> Dashboard:
    return stack(built, "Payload", (
        lines("From clients", "Payload received from clients.", "Bps",
              {"{{listener}}": each_second("client_received_bytes_total", "listener")},
              stacked=True),
        lines("To clients", "Payload sent to clients.", "Bps",
              {"{{listener}}": each_second("client_sent_bytes_total", "listener")},
              stacked=True),
    ))  # fmt: skip


def _upstreams(built: Dashboard) -> Dashboard:
    return stack(built, "Upstreams", (
        levels("Endpoints", "Whether new flows can go there.", of("endpoint_up", ENDPOINT),
               "{{upstream}} {{endpoint}}"),
    ))  # fmt: skip


def _house(built: Dashboard) -> Dashboard:
    descriptors = f"process_open_fds{{{HOUSE}}} / process_max_fds{{{HOUSE}}}"
    restarts = f"increase({of('worker_restarts_total', HOUSE)}{OVER})"
    each = "{{instance}}"
    return stack(built, "House", (
        lines("CPU", "Of all processes; one worker uses one core at most.", "percentunit",
              {each: f"rate(process_cpu_seconds_total{{{HOUSE}}}{OVER})"}, span=THIRD),
        lines("Memory", "Resident, of all processes.", "bytes",
              {each: f"process_resident_memory_bytes{{{HOUSE}}}"}, span=THIRD),
        lines("Descriptors used", "A TCP flow has two. At 100 % flows are refused.",
              "percentunit", {each: descriptors}, span=THIRD, top=1),
        lines("Lost log lines", "Lines that the reader of the log was too slow for.", "cps",
              {each: f"rate({of('log_records_dropped_total', HOUSE)}{OVER})"}, span=THIRD),
        lines("Workers that were started again", 'Their flows ended as `internal`, unless their '
              'listener has survive = "crash".', "short", {each: restarts}, span=THIRD),
        lines("Workers that do not answer", "They are replaced after 10 s; until then what is "
              "told of them is what was last known.", "short",
              {each: of("workers_silent", HOUSE)}, span=THIRD),
        lines("Flows that changed their process", "In a restart, an upgrade or a crash. What is "
              "lost was reset, and must be looked into.", "cps",
              {"lived on": each_second("flows_taken_over_total"),
               "lost": each_second("flows_lost_total")}, span=THIRD),
        lines("Evicted flows", "They went for others because the table was full.", "cps",
              {each: f"rate({of('table_evictions_total', HOUSE)}{OVER})"}, span=THIRD),
    ))  # fmt: skip
