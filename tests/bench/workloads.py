"""The workloads: what is measured, the lines it has in the report, and the goals it has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.bench.measure import (
    IDLE_FLOWS,
    SCRAPED_FLOWS,
    Figures,
    Stand,
    measure_bulk,
    measure_datagrams,
    measure_idle,
    measure_metrics,
    measure_quiet,
    measure_requests,
)
from tests.bench.peers import Peer


@dataclass(frozen=True)
class Goal:
    """What a figure should reach: a first mark, and a second one where there is more to win.

    Attributes:
        first: at most so much.
        second: what comes after it.
        to_peer: whether the marks are for the ratio to the best peer, or for the figure itself.

    """

    first: float
    second: float | None = None
    to_peer: bool = True


@dataclass(frozen=True)
class Figure:
    """A line of the report."""

    key: str
    label: str
    digits: int = 0
    goal: Goal | None = None


@dataclass(frozen=True)
class Part:
    """Something measured within a workload: its name, what it is, and its lines in the report."""

    name: str
    about: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Workload:
    """One measurement of one proxy.

    Attributes:
        name: for ``--only``.
        transport: ``tcp`` or ``udp``.
        origin: what kind of origin it needs.
        needs: commands that must be installed, and the packages that have them.
        parts: what it measures.
        measure: does it; the figures by part.
        alone: whether only sockpair can be measured.

    """

    name: str
    transport: str
    origin: str
    needs: Mapping[str, str]
    parts: tuple[Part, ...]
    measure: Callable[[Stand], Awaitable[dict[str, Figures]]]
    alone: bool = False

    def suits(self, peer: Peer) -> bool:
        """Whether this proxy can be measured at all."""
        return self.transport in peer.transports and (peer.name == "sockpair" or not self.alone)


OTHERS: Final = Figure("others", "core busy with others, %")


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
)
