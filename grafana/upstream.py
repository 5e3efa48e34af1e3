"""One upstream, or some of them: where flows go, and whether they get there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grafana.frame import board, stack, upstreams
from grafana.panels import levels, lines
from grafana.queries import ENDPOINT, busy, each_second, now, of, share

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard


WAITS: Final = {
    "waited": "upstream_flows_waited_total",
    "in vain": "upstream_flows_wait_expired_total",
    "no room": "upstream_flows_turned_away_total",
}


def upstream() -> Dashboard:
    """Build the dashboard."""
    empty = board("upstream", "upstream", "Where flows go, and whether they get there.")
    return _names(_checks(_endpoints(empty.with_variable(upstreams()))))


def _endpoints(built: Dashboard) -> Dashboard:
    each = "{{upstream}} {{endpoint}}"
    labels = ("upstream", "endpoint")
    attempts = each_second("endpoint_connect_attempts_total", *labels, selector=ENDPOINT)
    failures = each_second("endpoint_connect_failures_total", *labels, selector=ENDPOINT)
    reasons = each_second("endpoint_connect_failures_total", *labels, "reason", selector=ENDPOINT)
    return stack(built, "Endpoints", (
        levels("Up or down", "Whether new flows can go there.", of("endpoint_up", ENDPOINT), each),
        lines("Live flows", "By endpoint: the shares that balancing gives.", "short",
              {each: now("endpoint_flows", *labels, selector=ENDPOINT)}, stacked=True),
        lines("Share of the ceiling", "Of endpoints that may have so many flows at once.",
              "percentunit", {each: share(now("endpoint_flows", *labels, selector=ENDPOINT),
                                          now("endpoint_flows_limit", *labels, selector=ENDPOINT))},
              top=1),
        lines("Weight", "Part of new flows beside others; less while an endpoint starts slowly.",
              "short", {each: of("endpoint_weight", ENDPOINT)}),
        lines("Addresses by condition", "`up` and `unknown` ones get new flows.", "short",
              {f"{each}: {{{{condition}}}}": busy(of("endpoint_addresses", ENDPOINT))}),
        lines("Ejections", "Endpoints that failed their flows, and got no new ones for a while.",
              "cps", {each: each_second("endpoint_ejections_total", *labels, selector=ENDPOINT)}),
        lines("Flows that wait", "For an endpoint, as all are full.", "short",
              {"{{upstream}}": of("upstream_flows_waiting", ENDPOINT)}, stacked=True),
        lines("Waits", "Those in vain, or without room to wait, end as `no_endpoint`.", "cps",
              {f"{{{{upstream}}}}: {word}": each_second(each, "upstream", selector=ENDPOINT)
               for word, each in WAITS.items()}),
        lines("Connection attempts", "By endpoint.", "cps", {each: attempts}),
        lines("Failures", "By endpoint and reason.", "cps",
              {f"{each}: {{{{reason}}}}": busy(reasons)}, stacked=True),
        lines("Share of attempts that fail", "By endpoint.", "percentunit",
              {each: share(failures, attempts)}, top=1),
    ))  # fmt: skip


def _checks(built: Dashboard) -> Dashboard:
    each = "{{upstream}} {{endpoint}}"
    results = each_second("check_results_total", "endpoint", "result", selector=ENDPOINT)
    return stack(built, "Health checks", (
        lines("Addresses by health", "`unknown` has not been proved either way.", "short",
              {f"{each}: {{{{health}}}}": busy(of("check_addresses", ENDPOINT))}),
        lines("Results", "`silent` proves nothing, as with UDP.", "cps",
              {"{{endpoint}}: {{result}}": busy(results)}, stacked=True),
        lines("Since the last check", "Much more than the interval: nobody checks.", "s",
              {each: f"time() - {busy(of('check_last_timestamp_seconds', ENDPOINT))}"}),
        lines("Duration", "Of the last check; an endpoint that slows down shows here.", "s",
              {each: of("check_last_duration_seconds", ENDPOINT)}),
    ))  # fmt: skip


def _names(built: Dashboard) -> Dashboard:
    lookups = each_second("name_lookups_total", "endpoint", "result", selector=ENDPOINT)
    age = f"time() - {of('name_last_success_timestamp_seconds', ENDPOINT)}"
    due = f"{of('name_next_lookup_timestamp_seconds', ENDPOINT)} - time()"
    each = "{{upstream}} {{endpoint}}"
    return stack(built, "Names", (
        lines("Addresses", "In use, of endpoints that are names.", "short",
              {each: of("name_addresses", ENDPOINT)}),
        lines("Look-ups", "By result. `failed` leaves the addresses as they were.", "cps",
              {"{{endpoint}}: {{result}}": lookups}),
        lines("Since the last answer", "Much more than the TTL: the DNS server is away.", "s",
              {each: age}),
        lines("Until the next look-up", "The TTL, within its bounds.", "s", {each: due}),
    ))  # fmt: skip
