"""How a measurement is made: a proxy, an origin and a load, and the figures that come of them.

A measurement has a proxy and an origin of its own, both started for it, so that nothing is carried
over: no memory that was freed and used again, no ports in TIME_WAIT towards the same address. A
short load warms up; then the figures are those of the load that follows, between two moments at
which the proxy is at rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import trio

from tests.bench import load
from tests.bench.load import Outcome
from tests.bench.peers import Peer, Route
from tests.bench.programs import Cores, Program, echoes, first, listens, running
from tests.bench.usage import Usage, core_seconds, usage_at_rest

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
class Reading:
    """The books at a moment at which the proxy was at rest.

    Attributes:
        usage: what the proxy has used.
        core: seconds that its core has been busy.
        time: in seconds.

    """

    usage: Usage
    core: float
    time: float


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

    async def reading(self) -> Reading:
        """Wait until the proxy is at rest, and read the books."""
        usage = await usage_at_rest(self.proxy.pid)
        return Reading(usage, core_seconds(self.core), trio.current_time())


def started(
    peer: Peer, route: Route, cores: Cores, *, prompt: bool = False
) -> AbstractAsyncContextManager[Program]:
    """Run a proxy for a route, ready to forward; before all ordinary programs if ``prompt``."""
    ready = listens(route.listen) if route.transport == "tcp" else echoes(route.listen)
    command = peer.command(route)
    return running(first(command) if prompt else command, cores, route.folder, peer.name, ready)


async def worked(stand: Stand, apply: Load, scale: float) -> Figures:
    """The figures of a load after a warm-up."""
    port = stand.route.listen
    await apply(port, WARM_UP, stand.cores)
    before = await stand.reading()
    outcome = await apply(port, stand.seconds, stand.cores)
    after = await stand.reading()
    found = figures(before.usage, after.usage, outcome, scale)
    return found | {"others": others_share(before, after)}


def others_share(before: Reading, after: Reading) -> float:
    """Per cent of the time that the proxy's core was busy with something else."""
    own = after.usage.cpu - before.usage.cpu
    return max(0.0, 100 * (after.core - before.core - own) / (after.time - before.time))


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
    before = (await stand.reading()).usage.resident
    async with held(stand, IDLE_FLOWS):
        after = (await stand.reading()).usage.resident
    return {"": {"memory": (after - before) / 1024 / IDLE_FLOWS, "before": before / 1024}}


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
        before = await stand.reading()
        alone = await quiet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrape)
            beside = await quiet()
        others = {"others": others_share(before, await stand.reading())}
    return {"": scrape_figures(outcomes["scrape"], alone, beside) | others}


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


def held(stand: Stand, flows: int, *, http: bool = False) -> AbstractAsyncContextManager[Program]:
    """Hold so many flows open through the proxy; each has carried one message."""
    output = stand.folder / "hold.out"
    command = load.pingpong("hold", stand.route.listen, (flows, int(http)))
    return running(command, stand.cores, stand.folder, "hold", lambda: has_line(output))


def has_line(output: Path) -> bool:
    """Whether a program has said that it is ready."""
    return output.exists() and '{"flows"' in output.read_text()
