"""One listener, or some of them: what comes in, what is refused, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grafana.frame import board, listeners, stack
from grafana.panels import THIRD, heat, lines
from grafana.queries import (
    LISTENER,
    buckets,
    busy,
    each_second,
    now,
    quantile,
    quantiles,
    share,
)

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

FAILED: Final = f'{LISTENER},reason!~"finished|idle_timeout|drained|killed"'

WAITING: Final = f'{LISTENER},party!="nobody"'


def listener() -> Dashboard:
    """Build the dashboard."""
    about = "What comes in, what is refused, and how it ends."
    empty = board("listener", "listener", about).with_variable(listeners())
    return _ends(_slowness(_durations(_payload(_limits(_flows(empty))))))


def _flows(built: Dashboard) -> Dashboard:
    failing = share(
        each_second("flows_closed_total", "listener", selector=FAILED),
        each_second("flows_closed_total", "listener"),
    )
    return stack(built, "Flows", (
        lines("Live flows by state",
              "Many that connect: the endpoint is slow to accept. Many half-closed: somebody "
              "forgets to close.", "short", {"{{state}}": now("flows", "state")}, stacked=True),
        lines("New and ended flows", "Each second.", "cps",
              {"opened": each_second("flows_opened_total"),
               "closed": each_second("flows_closed_total")}),
        lines("Flows by route", "Of listeners with route_metrics; those of `*` have no route.",
              "cps", {"{{listener}}: {{route}}":
                      each_second("routed_flows_total", "listener", "route")}, stacked=True),
        lines("How flows end", "By reason.", "cps",
              {"{{reason}}": busy(each_second("flows_closed_total", "reason"))}, stacked=True),
        lines("Share of flows that fail",
              "Ended by what nobody ordered and no idle clock said.", "percentunit",
              {"{{listener}}": failing}, top=1),
    ))  # fmt: skip


def _limits(built: Dashboard) -> Dashboard:
    return stack(built, "Limits", (
        lines("Refused flows", "By reason.", "cps",
              {"{{reason}}": busy(each_second("flows_refused_total", "reason"))},
              stacked=True, span=THIRD),
        lines("Limits that struck", "Each time a limit refused, dropped or held back.", "cps",
              {"{{limit}}": busy(each_second("limit_hits_total", "limit")),
               "{{limit}} (dry run)": busy(each_second("limit_dry_run_hits_total", "limit"))},
              span=THIRD),
        lines("Clients that wait", 'Held at a full listener (`when_full = "wait"`).', "short",
              {"{{listener}}": now("flows_waiting", "listener")}, span=THIRD),
    ))  # fmt: skip


def _payload(built: Dashboard) -> Dashboard:
    return stack(built, "Payload", (
        lines("Bytes", "What is received on one leg and never sent on the other was thrown away "
              "when its flow ended.", "Bps",
              {"from clients": each_second("client_received_bytes_total"),
               "to endpoints": each_second("endpoint_sent_bytes_total"),
               "from endpoints": each_second("endpoint_received_bytes_total"),
               "to clients": each_second("client_sent_bytes_total")}),
        lines("Buffered", "Waiting for a peer that reads slowly: original waits for the endpoint, "
              "reply for the client.", "bytes",
              {"{{direction}}": now("buffered_bytes", "direction")}),
        lines("Datagrams", "UDP.", "pps",
              {"from clients": each_second("client_received_datagrams_total"),
               "to clients": each_second("client_sent_datagrams_total")}),
        lines("Dropped datagrams", "By reason; `kernel` means that receive_buffer is too small, "
              "or the host too slow.", "pps",
              {"{{reason}}": busy(each_second("datagrams_dropped_total", "reason"))},
              stacked=True),
    ))  # fmt: skip


def _durations(built: Dashboard) -> Dashboard:
    return stack(built, "How long, and how much", (
        heat("Time to connect", "To the endpoint, of flows that reached it.", "s",
             buckets("connect_duration_seconds")),
        lines("Time to connect", "What 50, 95 and 99 of 100 flows stay within.", "s",
              quantiles("connect_duration_seconds")),
        heat("Duration of flows", "Of those that ended.", "s", buckets("flow_duration_seconds")),
        heat("Bytes of flows", "Of those that ended, each direction by itself.", "bytes",
             buckets("flow_bytes")),
    ))  # fmt: skip


def _slowness(built: Dashboard) -> Dashboard:
    return stack(built, "Why it is slow", (
        lines("Flows that wait", "How many at a time, and for whom: a client or an endpoint, or "
              "the path there; sockpair itself; a limit. As far as sampled.", "short",
              {"for {{party}}": each_second("waits_seconds_total", "party", selector=WAITING)},
              stacked=True),
        lines("Round trips", "What 95 of 100 samples stay within; both legs of TCP flows.", "s",
              {"to the {{leg}}": quantile(0.95, "rtt_seconds", "leg")}),
        lines("Segments sent again", "A path that loses; as far as sampled.", "pps",
              {"to the {{leg}}": each_second("retransmits_total", "leg")}),
        lines("Samples", "How often the kernel was asked; at most engine.sample_rate in each "
              "worker.", "cps", {"samples": each_second("samples_total")}),
    ))  # fmt: skip


def _ends(built: Dashboard) -> Dashboard:
    return stack(built, "How it ends", (
        lines("Who moved first", "Of flows that ended.", "cps",
              {"{{side}}": each_second("flows_closed_first_total", "side")},
              stacked=True, span=THIRD),
        lines("Lost with the flow", "Received, and not arrived on the other side when it was cut.",
              "Bps", {"{{direction}}": each_second("unsent_bytes_total", "direction")},
              span=THIRD),
        lines("Half closed", "How many of the flows that ended were so, at a time. Many: somebody "
              "forgets to close.", "short",
              {"half closed": each_second("half_closed_seconds_total")}, span=THIRD),
    ))  # fmt: skip
