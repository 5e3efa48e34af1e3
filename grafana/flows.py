"""The socket-pair table: the largest flows with both pairs, as /metrics/flows tells them.

Its series come from a scrape job of their own, ``$flows_job``. Bytes and times have no label but
the flow's id; the pairs, and the listener, are joined from ``sockpair_flow_info``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grafana.frame import board, job, listeners, stack
from grafana.panels import THIRD, lines, number, table
from grafana.queries import OVER, of

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

ANY: Final = 'job=~"$flows_job",instance=~"$instance"'
INFO: Final = of("flow_info", f'{ANY},listener=~"$listener"')
PAIRS: Final = "listener, transport, state, client, client_local, endpoint_local, endpoint"


def flows() -> Dashboard:
    """Build the dashboard."""
    empty = board("flows", "flows", "The largest flows of the table, with both socket pairs.")
    flows_job = job("flows_job", "Job of /metrics/flows", "sockpair_flow_info")
    return _table(empty.with_variable(flows_job).with_variable(listeners()))


def _table(built: Dashboard) -> Dashboard:
    host = f'label_replace({INFO}, "host", "$1", "client", "(.*):[0-9]+")'
    name = "{{flow}} {{client}} → {{endpoint}}"
    return stack(built, "The table", (
        number("Flows shown", "At most `admin.max_series`, the largest first.", "short",
               f"count({INFO})", span=THIRD),
        number("Flows left out", "Live, but not among the largest.", "short",
               f"sum({of('flow_omitted', ANY)})", span=THIRD),
        number("Clients", "Different hosts among the flows shown.", "short",
               f"count(count by (host) ({host}))", span=THIRD),
        lines("The busiest, from clients", "Ten flows, by client and endpoint.", "Bps",
              {name: _busiest("original")}),
        lines("The busiest, to clients", "Ten flows, by client and endpoint.", "Bps",
              {name: _busiest("reply")}),
        table("Socket pairs", "A click on a flow asks its instance for all that is known of it.",
              (("from client", "bytes", _joined(of("flow_original_bytes_total", ANY))),
               ("to client", "bytes", _joined(of("flow_reply_bytes_total", ANY))),
               ("opened", "dateTimeFromNow",
                f"1000 * {_joined(of('flow_opened_timestamp_seconds', ANY))}")),
              hidden=("job",),
              renamed={"client_local": "came to", "endpoint_local": "left from"},
              links={
                  "flow": ("This flow, from the API",
                           "http://${__data.fields.instance}/api/v1/flows/${__value.raw}"),
                  "instance": ("The page of this instance", "http://${__value.raw}/"),
              },
              sort="from client"),
    ))  # fmt: skip


def _busiest(direction: str) -> str:
    moved = of(f"flow_{direction}_bytes_total", ANY)
    return f"topk(10, {_joined(f'rate({moved}{OVER})')})"


def _joined(series: str) -> str:
    """Series of flows, with the labels of the flow."""
    return f"{series} * on (job, instance, flow) group_left ({PAIRS}) {INFO}"
