"""The workloads: what is measured, the lines it has in the report, and the goals it has.

Those that show how a proxy degrades are in ``degrading``.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.bench.degrading import DEGRADING
from tests.bench.measure import (
    IDLE_FLOWS,
    SCRAPED_FLOWS,
    measure_bulk,
    measure_datagrams,
    measure_idle,
    measure_metrics,
    measure_quiet,
    measure_requests,
)
from tests.bench.workload import OTHERS, Figure, Goal, Part, Workload


def _work(unit: str, goal: Goal, *, times: bool = True) -> tuple[Figure, ...]:
    percentiles = (Figure("p50", "p50, µs"), Figure("p99", "p99, µs")) if times else ()
    return (
        Figure("cpu", f"CPU, {unit}", 2, goal),
        Figure("cpu_system", "of it in the kernel", 2),
        Figure("rate", "rate, a second"),
        *percentiles,
        Figure("busy", "core busy with it, %"),
        OTHERS,
    )


WRK: Final = {"wrk": "wrk", "nginx": "nginx-light"}
QUIET: Final = (
    Figure("p50", "p50, µs", 1, Goal(1.3, 1.0)),
    Figure("p99", "p99, µs", 1),
    Figure("cpu", "CPU, µs a round trip", 2),
    OTHERS,
)

WORKLOADS: Final = (
    Workload(
        name="request",
        transport="tcp",
        origin="http",
        needs=WRK,
        parts=(
            Part(
                "",
                "keep-alive HTTP requests over 64 TCP connections",
                _work("µs a request", Goal(1.25, 1.0)),
            ),
        ),
        measure=partial(measure_requests, close=False),
    ),
    Workload(
        name="connection",
        transport="tcp",
        origin="http",
        needs=WRK,
        parts=(
            Part(
                "",
                "a TCP connection for every HTTP request, 64 at a time",
                _work("µs a connection", Goal(1.25, 1.0)),
            ),
        ),
        measure=partial(measure_requests, close=True),
    ),
    Workload(
        name="bulk",
        transport="tcp",
        origin="iperf3",
        needs={"iperf3": "iperf3"},
        parts=(
            Part(
                "original",
                "one TCP stream to the endpoint (rate in bytes)",
                _work("s a GB", Goal(0.95, 0.8), times=False),
            ),
            Part(
                "reply",
                "one TCP stream to the client (rate in bytes)",
                _work("s a GB", Goal(0.95, 0.8), times=False),
            ),
        ),
        measure=measure_bulk,
    ),
    Workload(
        name="udp32",
        transport="udp",
        origin="udp",
        needs={},
        parts=(
            Part(
                "",
                "UDP round trips on 32 flows, one under way on each",
                _work("µs a round trip", Goal(0.95, 0.7)),
            ),
        ),
        measure=partial(measure_datagrams, flows=32),
    ),
    Workload(
        name="udp1",
        transport="udp",
        origin="udp",
        needs={},
        parts=(
            Part(
                "",
                "UDP round trips on one flow, one under way",
                _work("µs a round trip", Goal(0.95, 0.7)),
            ),
        ),
        measure=partial(measure_datagrams, flows=1),
    ),
    Workload(
        name="idle",
        transport="tcp",
        origin="tcp",
        needs={},
        parts=(
            Part(
                "",
                f"{IDLE_FLOWS:,} idle TCP flows that have carried one message",
                (
                    Figure("memory", "resident, KiB a flow", 2, Goal(0.8, 0.5)),
                    Figure("before", "resident before, KiB"),
                ),
            ),
        ),
        measure=measure_idle,
    ),
    Workload(
        name="quiet",
        transport="tcp",
        origin="tcp",
        needs={},
        parts=(
            Part("paced", "the only TCP connection, a message 1 ms after each answer", QUIET),
            Part("eager", "the only TCP connection, a message right after each answer", QUIET),
        ),
        measure=measure_quiet,
    ),
    Workload(
        name="metrics",
        transport="tcp",
        origin="tcp",
        needs={},
        parts=(
            Part(
                "",
                f"GET /metrics with {SCRAPED_FLOWS:,} TCP flows open",
                (
                    Figure("scrape", "a scrape, ms", 1, Goal(20.0, to_peer=False)),
                    Figure("scrape_most", "the slowest, ms", 1),
                    Figure("p99_alone", "quiet connection, p99 alone, µs"),
                    Figure("p99_beside", "the same beside scrapes, µs"),
                    Figure("moved", "ratio of the two", 2, Goal(1.1, to_peer=False)),
                    OTHERS,
                ),
            ),
        ),
        measure=measure_metrics,
        alone=True,
    ),
    *DEGRADING,
)

GROUPS: Final = {"degrade": tuple(workload.name for workload in DEGRADING)}
"""Names for ``--only`` that mean several."""
