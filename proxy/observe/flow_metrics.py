"""The flow table as metrics, for a scrape job of its own: a few series for each large flow.

Strategy: a row is read once, as the API shows it, and at once written as one line for each metric;
so the metrics of a flow agree with each other and with the table. Prometheus wants the lines of a
metric together, hence a list of lines for each. Rows are read in slices, between which the relay
has its turn.

Invariant: at most ``max_series`` flows are shown, the largest; how many were left out is a metric
itself, and so is how many workers do not answer. A flow that ends while the table is being read is
neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proxy.core.query import FlowQuery
from proxy.engine.turns import Turn
from proxy.observe.exposition import end, head, line

if TYPE_CHECKING:
    from proxy.core.query import FlowRow
    from proxy.engine.port import RelayPort
    from proxy.observe.catalogue import MetricType
    from proxy.observe.samples import Labels

SLICE_ROWS: Final = 25
"""Rows asked for at once; the relay may get its turn after each."""

PIECE_LINES: Final = 200
"""Lines that are joined and sent at once: about 16 KiB."""


@dataclass(frozen=True, slots=True)
class FlowMetric:
    """One line of the catalogue of flows.

    Attributes:
        name: as it appears on ``/metrics/flows``.
        type: what Prometheus calls it.
        labels: whose values ``read`` gives, in this order; ``flow``, the id, is the first.
        help: one sentence for people.
        read: the values of the labels, and that of the sample.

    """

    name: str
    type: MetricType
    labels: Labels
    help: str
    read: Callable[[FlowRow], tuple[Labels, float]]


def _info(row: FlowRow) -> tuple[Labels, float]:
    client, endpoint = row["client"], row["endpoint"]
    values = (
        str(row["id"]),
        row["listener"],
        row["transport"],
        client["remote"] or "",
        client["local"] or "",
        endpoint["local"] or "",
        endpoint["remote"] or "",
        row["state"],
    )
    return values, 1


def _sample(
    read: Callable[[FlowRow], float],
) -> Callable[[FlowRow], tuple[Labels, float]]:
    return lambda row: ((str(row["id"]),), read(row))


FLOW_CATALOGUE: Final = (
    FlowMetric(
        "sockpair_flow_info",
        "info",
        (
            "flow",
            "listener",
            "transport",
            "client",
            "client_local",
            "endpoint_local",
            "endpoint",
            "state",
        ),
        "Both socket pairs of a live flow, and its state; always 1.",
        _info,
    ),
    FlowMetric(
        "sockpair_flow_original_bytes_total",
        "counter",
        ("flow",),
        "Payload of a live flow received from its client.",
        _sample(lambda row: row["original"]["bytes"]),
    ),
    FlowMetric(
        "sockpair_flow_reply_bytes_total",
        "counter",
        ("flow",),
        "Payload of a live flow received from its endpoint.",
        _sample(lambda row: row["reply"]["bytes"]),
    ),
    FlowMetric(
        "sockpair_flow_opened_timestamp_seconds",
        "gauge",
        ("flow",),
        "When a live flow was opened, in Unix seconds.",
        _sample(lambda row: row["opened"]),
    ),
)


@dataclass(frozen=True, slots=True)
class Whole:
    """A metric without labels: what is not shown."""

    name: str
    help: str
    type: MetricType = "gauge"
    labels: Labels = ()


OMITTED: Final = Whole(
    "sockpair_flow_omitted", "Live flows that are not shown here, since there are larger ones."
)
SILENT: Final = Whole(
    "sockpair_flow_workers_silent", "Workers that do not answer now, whose flows are missing here."
)


class FlowLines:
    """What one scrape of the table has read so far."""

    def __init__(self) -> None:
        self._lines: list[list[str]] = [[] for _ in FLOW_CATALOGUE]

    def add(self, row: FlowRow) -> None:
        """Write a flow's samples."""
        for metric, lines in zip(FLOW_CATALOGUE, self._lines, strict=True):
            lines.append(line(metric, *metric.read(row)))

    def pieces(self, omitted: int, silent: int, *, openmetrics: bool) -> Iterator[bytes]:
        """Put everything in order, in pieces to send."""
        for whole, value in ((OMITTED, omitted), (SILENT, silent)):
            yield (head(whole, openmetrics=openmetrics) + line(whole, (), value)).encode()
        for metric, lines in zip(FLOW_CATALOGUE, self._lines, strict=True):
            yield head(metric, openmetrics=openmetrics).encode()
            for start in range(0, len(lines), PIECE_LINES):
                piece = "".join(lines[start : start + PIECE_LINES])
                yield piece.encode("utf-8", "backslashreplace")  # paths need not be text
        yield end(openmetrics=openmetrics).encode()


async def read_flows(port: RelayPort, max_series: int, *, openmetrics: bool) -> Iterator[bytes]:
    """Read the largest flows of the table as metrics.

    Args:
        port: the relay.
        max_series: how many flows at most.
        openmetrics: whether in this format; else as plain text.

    """
    lines = FlowLines()
    found = await port.flow_ids(FlowQuery(sort="bytes", limit=max_series))
    ids = found["ids"][:max_series]  # a limit of 0 would be none
    for start in range(0, len(ids), SLICE_ROWS):
        rows = await port.flow_rows(ids[start : start + SLICE_ROWS], recent=False)
        turn = Turn()
        for row in filter(None, rows):
            lines.add(json.loads(row))
            await turn.may_end()
    omitted, silent = found["matched"] - len(ids), len(found["silent"])
    return lines.pieces(omitted, silent, openmetrics=openmetrics)
