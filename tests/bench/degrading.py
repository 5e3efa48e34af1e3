"""The workloads that show how a proxy degrades; ``--only degrade`` chooses them all."""

from __future__ import annotations

from typing import Final

from tests.bench.degrade import (
    FLOOD_RATE,
    SERVED_FLOWS,
    SERVED_RATE,
    SMALL_FLOWS,
    SMALL_RATE,
    measure_flood,
    measure_greedy,
    measure_readers,
    measure_readers_loaded,
)
from tests.bench.measure import SCRAPED_FLOWS
from tests.bench.peers import Settings
from tests.bench.workload import OTHERS, Figure, Goal, Part, Workload

NOTHING: Final = Goal(0, to_peer=False)
SECOND: Final = Goal(1000, to_peer=False)
UNMOVED: Final = Goal(1.1, to_peer=False)

SMALL: Final = f"{SMALL_FLOWS:,} small TCP flows, {SMALL_RATE:,} messages a second in all"

GREEDY: Final = (
    Figure("p50_quiet", "delay quiet, p50, µs"),
    Figure("p99_quiet", "delay quiet, p99, µs"),
    Figure("p50_control", "beside the control, p50, µs"),
    Figure("p99_control", "beside the control, p99, µs"),
    Figure("p50_beside", "beside the greedy flow, p50, µs"),
    Figure("p99_beside", "beside it, p99, µs", goal=Goal(1.0)),
    Figure("to_quiet", "its ratio to quiet", 2, Goal(2, to_peer=False)),
    Figure("to_control", "its ratio to the control", 2),
    Figure("bulk", "the greedy flow, MB a second"),
    Figure("bulk_control", "the control, MB a second"),
    Figure("busy", "core busy with proxy, %"),
    Figure("load_busy", "cores of the load busy, %"),
    Figure("late", "sent late, p99, µs"),
    OTHERS,
)

FLOOD: Final = (
    Figure("lost_original", "served, lost in the proxy", goal=NOTHING),
    Figure("lost_reply", "answers lost in the proxy", goal=NOTHING),
    Figure("unaccounted", "datagrams unaccounted for", goal=NOTHING),
    Figure("offered", "flood, datagrams a second"),
    Figure("read", "read by the proxy, a second"),
    Figure("opened", "flows opened"),
    Figure("kernel_share", "lost unread in the kernel, %", 1),
    Figure("served_share", "of the served ones, %", 1),
    Figure("p50", "served, p50, µs"),
    Figure("p99", "served, p99, µs"),
    Figure("cpu", "CPU, µs a datagram read", 2),
    Figure("busy", "core busy with it, %"),
    OTHERS,
)

READ: Final = (
    Figure("scrape", "GET /metrics, ms", 1),
    Figure("scrape_most", "the slowest /metrics, ms", 1, SECOND),
    Figure("list", "GET /api/v1/flows, ms", 1),
    Figure("list_most", "the slowest flows, ms", 1, SECOND),
)


def _reader(name: str, about: str, goal: Goal | None = None) -> tuple[Figure, ...]:
    return (
        Figure(f"p99_{name}", f"{about}, p99, µs"),
        Figure(f"control_{name}", "beside the control, p99, µs"),
        Figure(f"moved_{name}", f"{about}, ratio", 2, goal),
    )


def _flood(name: str, about: str, settings: Settings) -> Workload:
    served = f"{SERVED_FLOWS} UDP flows with {SERVED_RATE:,} datagrams a second"
    return Workload(
        name=name,
        transport="udp",
        origin="flood",
        needs={},
        parts=(Part("", f"{served} beside {FLOOD_RATE:,} from unknown sources; {about}", FLOOD),),
        measure=measure_flood,
        alone=True,
        prompt=True,
        settings=settings,
    )


DEGRADING: Final = (
    Workload(
        name="greedy",
        transport="tcp",
        origin="greedy",
        needs={},
        parts=(
            Part("original", f"{SMALL}, and one that sends all it can", GREEDY),
            Part("reply", f"{SMALL}, and one that is sent all it takes", GREEDY),
        ),
        measure=measure_greedy,
        prompt=True,
    ),
    _flood("flood", "the table is full", Settings(engine="table_limit = 2000")),
    _flood(
        "flood-buffer",
        "the same, receive_buffer 4 MiB",
        Settings(engine="table_limit = 2000", listener='receive_buffer = "4MiB"'),
    ),
    _flood("flood-filling", "the table fills", Settings()),
    Workload(
        name="readers",
        transport="tcp",
        origin="greedy",
        needs={},
        parts=(
            Part(
                "",
                f"{SMALL}, {SCRAPED_FLOWS:,} idle ones, and readers of the admin side",
                (
                    *READ,
                    Figure("p50_alone", "delay alone, p50, µs"),
                    Figure("p99_alone", "delay alone, p99, µs"),
                    *_reader("scrape", "/metrics each second", UNMOVED),
                    *_reader("list", "flows each second", UNMOVED),
                    *_reader("scrape_worst", "/metrics, no pause"),
                    *_reader("list_worst", "flows, no pause"),
                    OTHERS,
                ),
            ),
        ),
        measure=measure_readers,
        alone=True,
        prompt=True,
    ),
    Workload(
        name="readers-loaded",
        transport="tcp",
        origin="http",
        needs={"wrk": "wrk", "nginx": "nginx-light"},
        parts=(
            Part(
                "",
                f"wrk on 64 connections, {SCRAPED_FLOWS:,} idle flows, both read each second",
                (
                    *READ,
                    Figure("command", "sockpair flows -o json, ms", goal=SECOND),
                    Figure("rate_alone", "requests a second alone"),
                    Figure("rate_beside", "requests a second beside"),
                    Figure("p99_alone", "wrk alone, p99, µs"),
                    Figure("p99_beside", "wrk beside readers, p99, µs"),
                    Figure("load_busy", "cores of the load busy, %"),
                    OTHERS,
                ),
            ),
        ),
        measure=measure_readers_loaded,
        alone=True,
        prompt=True,
    ),
)
