"""The workloads: what is done to a proxy, which figures come of it, and the goals they have.

A measurement has a proxy and an origin of its own, both started for it, so that nothing is carried
over: no memory that was freed and used again, no ports in TIME_WAIT towards the same address. A
short load warms up; then the figures are those of the load that follows, between two moments at
which the proxy is at rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import trio

from tests.bench import load
from tests.bench.load import Outcome
from tests.bench.measure import Usage, core_seconds, usage_at_rest
from tests.bench.peers import Peer, Route
from tests.bench.programs import Cores, Program, echoes, listens, running

Figures: TypeAlias = dict[str, float]
Load: TypeAlias = Callable[[int, int, Cores], Awaitable[Outcome]]

WARM_UP: Final = 1
"""Seconds; the least that wrk and iperf3 can be told."""

IDLE_FLOWS: Final = 4000
SCRAPED_FLOWS: Final = 5000
"""Each needs two descriptors in the proxy; 20,000 are what a machine can be expected to allow."""

PACE: Final = 1.0
"""Milliseconds between two messages of a connection that is quiet, not silent."""

SCRAPE_PAUSE: Final = 200.0
"""Milliseconds; so often that a scrape which holds the relay for 2 ms moves its 99th percentile."""

PER_UNIT: Final = 1e6
"""Seconds of CPU for one unit, in microseconds."""

PER_GIGABYTE: Final = 1e9
"""Seconds of CPU for a byte, in seconds per gigabyte."""


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
class Stand:
    """A proxy that runs between an origin and the load.

    Attributes:
        proxy: the running proxy.
        route: from where to where it forwards.
        seconds: how long to load it.
        core: where the proxy runs.
        cores: where the load runs.
        folder: for the output of programs.

    """

    proxy: Program
    route: Route
    seconds: int
    core: int
    cores: Cores
    folder: Path


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


def started(
    peer: Peer, route: Route, cores: Cores, folder: Path
) -> AbstractAsyncContextManager[Program]:
    """Run a proxy for a route, ready to forward."""
    ready = listens(route.listen) if route.transport == "tcp" else echoes(route.listen)
    return running(peer.command(route), cores, folder, peer.name, ready)


async def worked(stand: Stand, apply: Load, scale: float) -> Figures:
    """The figures of a load after a warm-up."""
    port, pid = stand.route.listen, stand.proxy.pid
    await apply(port, WARM_UP, stand.cores)
    before, core_before = await usage_at_rest(pid), core_seconds(stand.core)
    outcome = await apply(port, stand.seconds, stand.cores)
    core = core_seconds(stand.core) - core_before
    after = await usage_at_rest(pid)
    others = max(0.0, core - (after.cpu - before.cpu))
    shares = {"others": 100 * others / outcome.seconds}
    return figures(before, after, outcome, scale) | shares


def figures(before: Usage, after: Usage, outcome: Outcome, scale: float) -> Figures:
    """What a load amounts to; ``scale`` makes seconds a unit what the report shows."""
    user, system = after.user - before.user, after.system - before.system
    units = max(1.0, outcome.units)
    found = {
        "cpu": (user + system) * scale / units,
        "cpu_system": system * scale / units,
        "busy": 100 * (user + system) / outcome.seconds,
        "rate": outcome.units / outcome.seconds,
        "user_seconds": user,
        "system_seconds": system,
    }
    return found | {key: value for key, value in asdict(outcome).items() if value is not None}


async def measure_requests(stand: Stand, *, close: bool) -> dict[str, Figures]:
    """HTTP requests, each over a connection of its own when ``close`` is true."""
    return {"": await worked(stand, partial(load.requests, close=close), PER_UNIT)}


async def measure_bulk(stand: Stand) -> dict[str, Figures]:
    """One stream each way, one after the other."""
    return {
        part: await worked(stand, partial(load.bulk, reply=part == "reply"), PER_GIGABYTE)
        for part in ("original", "reply")
    }


async def measure_datagrams(stand: Stand, *, flows: int) -> dict[str, Figures]:
    """UDP round trips on so many flows."""
    return {"": await worked(stand, partial(load.datagrams, flows=flows), PER_UNIT)}


async def measure_idle(stand: Stand) -> dict[str, Figures]:
    """Memory of flows that each carried one message and wait."""
    await load.stream(stand.route.listen, WARM_UP, stand.cores, pause=PACE)
    before = await usage_at_rest(stand.proxy.pid)
    async with held(stand, IDLE_FLOWS):
        after = await usage_at_rest(stand.proxy.pid)
    grown = after.resident - before.resident
    return {"": {"memory": grown / 1024 / IDLE_FLOWS, "before": before.resident / 1024}}


async def measure_quiet(stand: Stand) -> dict[str, Figures]:
    """Ping-pong on the only connection, with and without pauses."""
    return {
        part: await worked(stand, partial(load.stream, pause=pause), PER_UNIT)
        for part, pause in (("paced", PACE), ("eager", 0))
    }


async def measure_metrics(stand: Stand) -> dict[str, Figures]:
    """Time of /metrics with many flows open, and what it does to a quiet connection."""
    quiet = partial(load.stream, stand.route.listen, stand.seconds, stand.cores, pause=PACE)
    outcomes: dict[str, Outcome] = {}

    async def scrape() -> None:
        port, pause = stand.route.admin, SCRAPE_PAUSE
        outcomes["scrape"] = await load.scrape(port, stand.seconds, stand.cores, pause=pause)

    async with held(stand, SCRAPED_FLOWS):
        alone = await quiet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrape)
            beside = await quiet()
    return {"": scrape_figures(outcomes["scrape"], alone, beside)}


def scrape_figures(scraped: Outcome, alone: Outcome, beside: Outcome) -> Figures:
    """Times of scrapes in milliseconds, and of a quiet connection without and beside them."""
    assert scraped.p50 is not None
    assert scraped.most is not None
    assert alone.p99 is not None
    assert beside.p99 is not None
    return {
        "scrape": scraped.p50 / 1e3,
        "scrape_most": scraped.most / 1e3,
        "p99_alone": alone.p99,
        "p99_beside": beside.p99,
        "moved": beside.p99 / alone.p99,
        "errors": scraped.errors,
    }


def held(stand: Stand, flows: int) -> AbstractAsyncContextManager[Program]:
    """Hold so many flows open through the proxy; each has carried one message."""
    output = stand.folder / "hold.out"
    command = load.pingpong("hold", stand.route.listen, (flows,))
    return running(command, stand.cores, stand.folder, "hold", lambda: has_line(output))


def has_line(output: Path) -> bool:
    """Whether a program has said that it is ready."""
    return output.exists() and '{"flows"' in output.read_text()


def _work(unit: str, goal: Goal, *, times: bool = True) -> tuple[Figure, ...]:
    percentiles = (Figure("p50", "p50, µs"), Figure("p99", "p99, µs")) if times else ()
    return (
        Figure("cpu", f"CPU, {unit}", 2, goal),
        Figure("cpu_system", "of it in the kernel", 2),
        Figure("rate", "rate, a second"),
        *percentiles,
        Figure("busy", "core busy with it, %"),
        Figure("others", "core busy with others, %"),
    )


WRK: Final = {"wrk": "wrk", "nginx": "nginx-light"}
QUIET: Final = (
    Figure("p50", "p50, µs", 1, Goal(1.3, 1.0)),
    Figure("p99", "p99, µs", 1),
    Figure("cpu", "CPU, µs a round trip", 2),
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
                ),
            ),
        ),
        measure=measure_metrics,
        alone=True,
    ),
)
