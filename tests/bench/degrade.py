"""How a proxy degrades: measurements of what a burden does to flows that are served beside it.

Three burdens: a flow that takes all it can get, datagrams of unknown sources, readers of the admin
side. Each measurement holds a burdened situation against a quiet one of the same proxy, a moment
before. Where the burden loads the core of the load too, a *control* tells how much of a difference
that alone makes: the same bulk at the same rate, from the same source to the same sink, around the
proxy. And every proxy meets the same burden, in the same run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Final, TypeAlias

import trio

from tests.bench import load
from tests.bench.load import Outcome
from tests.bench.measure import (
    SCRAPED_FLOWS,
    Figures,
    Reading,
    Stand,
    has_line,
    held,
    others_share,
    started,
)
from tests.bench.peers import Route, Sockpair
from tests.bench.programs import LOCAL, Command, first, free_port, output_of, running
from tests.bench.usage import core_seconds, usage_of

SMALL_FLOWS: Final = 1000
SMALL_RATE: Final = 2000
"""Messages a second in all: a tenth of what a proxy can do, so that none waits for another."""

SERVED_FLOWS: Final = 100
SERVED_RATE: Final = 2000
FLOOD_RATE: Final = 100_000
"""Datagrams a second."""

EACH_SECOND: Final = 1000.0
"""Milliseconds between two readings; Prometheus reads every 15 seconds, or 60, unless told."""

MADE_IN: Final = 2
"""Seconds that served flows go on longer than the flood, whose packets must be made first."""

READ_ON: Final = 1
"""Seconds that readers go on longer than the small flows, which take their time to open."""


Reader: TypeAlias = Callable[..., Awaitable[Outcome]]

READERS: Final[tuple[tuple[str, Reader, float], ...]] = (
    ("scrape", load.scrape, EACH_SECOND),
    ("list", load.listing, EACH_SECOND),
    ("scrape_worst", load.scrape, 0),
    ("list_worst", load.listing, 0),
)
"""What is read, and the milliseconds between two readings."""


async def measure_greedy(stand: Stand) -> dict[str, Figures]:
    """Delays of small flows: alone, beside a greedy flow, and beside the control."""
    return {
        part: await _beside_greedy(stand, order)
        for part, order in (("original", "take"), ("reply", "give"))
    }


async def _beside_greedy(stand: Stand, order: str) -> Figures:
    quiet = await _small(stand)
    before, load_before = await stand.reading(), _load_seconds(stand)
    async with greedy(stand, order, stand.route.listen) as proxied:
        beside = await _small(stand)
    after, load_after = await stand.reading(), _load_seconds(stand)
    bulk = load.last_figures(proxied.read_text())
    rate = bulk["units"] / bulk["seconds"]
    async with greedy(stand, order, stand.route.origin, rate) as direct:
        control = await _small(stand)
    control_bulk = load.last_figures(direct.read_text())
    span = after.time - before.time
    return {
        **{f"{key}_quiet": quiet[key] for key in ("p50", "p99")},
        **{f"{key}_control": control[key] for key in ("p50", "p99")},
        **{f"{key}_beside": beside[key] for key in ("p50", "p99")},
        "to_quiet": beside["p99"] / quiet["p99"],
        "to_control": beside["p99"] / control["p99"],
        "late": beside["late"],
        "bulk": rate / 1e6,
        "bulk_control": control_bulk["units"] / control_bulk["seconds"] / 1e6,
        "busy": 100 * (after.usage.cpu - before.usage.cpu) / bulk["seconds"],
        "load_busy": 100 * (load_after - load_before) / span / len(stand.cores),
        "others": others_share(before, after),
        "errors": quiet["errors"] + beside["errors"] + control["errors"],
    }


async def _small(stand: Stand) -> Figures:
    port, seconds, cores = stand.route.listen, stand.seconds, stand.cores
    return await load.paced(port, seconds, cores, flows=SMALL_FLOWS, rate=SMALL_RATE)


@asynccontextmanager
async def greedy(stand: Stand, order: str, port: int, rate: float = 0) -> AsyncIterator[Path]:
    """A greedy flow to this port; gives the file that in the end holds what it moved."""
    name = f"greedy-{order}-{port}"
    output = stand.folder / f"{name}.out"
    command: Command = [sys.executable, "-m", "tests.bench.greedy", order, str(port), str(rate)]
    async with running(command, stand.cores, stand.folder, name, lambda: has_line(output)):
        yield output


def _load_seconds(stand: Stand) -> float:
    return sum(map(core_seconds, stand.cores))


async def measure_flood(stand: Stand) -> dict[str, Figures]:
    """Datagrams of served flows beside a flood: who lost which.

    Everything is counted from the first datagram on, by those who send and receive and by the
    proxy, so that the books can be balanced to the last one.
    """
    output = stand.folder / "served.out"
    seconds = stand.seconds + MADE_IN
    arguments = (stand.route.listen, stand.route.origin, seconds, SERVED_FLOWS, SERVED_RATE)
    command = [sys.executable, "-m", "tests.bench.flood", "served", *map(str, arguments)]
    start = await _counted(stand)
    async with running(command, stand.cores, stand.folder, "served", lambda: has_line(output)) as p:
        before = _reading(stand)
        flood = await load.figures_of(
            "flood",
            ("sources", stand.route.listen, stand.seconds, FLOOD_RATE),
            stand.cores,
            stand.seconds,
        )
        after = _reading(stand)
        with trio.fail_after(seconds + 10):
            await p.process.wait()
    served = load.last_figures(output.read_text())
    counted = {key: value - start[key] for key, value in (await _counted(stand)).items()}
    found = flood_figures(served, flood, counted)
    found["busy"] = 100 * (after.usage.cpu - before.usage.cpu) / flood["seconds"]
    found["cpu"] = 1e4 * found["busy"] / max(1.0, found["read"])
    return {"": found | {"others": others_share(before, after)}}


def _reading(stand: Stand) -> Reading:
    """The books while the proxy is at work."""
    return Reading(usage_of(stand.proxy.pid), core_seconds(stand.core), trio.current_time())


def flood_figures(served: Figures, flood: Figures, counted: Figures) -> Figures:
    """The balance: what was sent, and where it went.

    ``counted`` is what sockpair says: datagrams that it ``passed`` on or ``refused``; of the first
    those of ``served`` flows; and what the ``kernel`` lost before they could be read.
    """
    offered = served["sent"] + flood["sent"]
    read = counted["passed"] + counted["refused"]
    gone = counted["served"] - served["reached"] - served["dropped_there"]
    back = served["reached"] - served["answered"] - served["dropped_here"]
    return {
        "offered": flood["sent"] / flood["seconds"],
        "read": read / flood["seconds"],
        "opened": counted["opened"],
        "kernel_share": 100 * counted["kernel"] / offered,
        "served_share": 100 * (served["sent"] - counted["served"]) / served["sent"],
        "lost_original": max(0.0, gone),
        "lost_reply": back,
        "unaccounted": abs(offered - read - counted["kernel"]),
        "p50": served["p50"],
        "p99": served["p99"],
    }


COUNTED: Final = {
    "passed": "sockpair_client_received_datagrams_total{",
    "refused": "sockpair_flows_refused_total{",
    "kernel": 'sockpair_datagrams_dropped_total{listener="bench",reason="kernel"',
    "opened": "sockpair_flows_opened_total{",
}
"""How the lines of /metrics begin that are added up."""


async def _counted(stand: Stand) -> Figures:
    """What sockpair has counted so far."""
    read = partial(page, stand.route.admin)
    found = counted_in(await trio.to_thread.run_sync(read, "/metrics"))
    rows = json.loads(await trio.to_thread.run_sync(read, "/api/v1/flows?state=assured&limit=0"))
    return found | {"served": sum(row["original"]["packets"] for row in rows["flows"])}


def counted_in(metrics: str) -> Figures:
    """The sums of ``COUNTED`` in this text of /metrics."""
    lines = metrics.splitlines()
    return {
        key: sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(beginning))
        for key, beginning in COUNTED.items()
    }


def page(port: int, path: str) -> str:
    """Read a page of the admin side."""
    http = HTTPConnection(LOCAL, port, timeout=30)
    try:
        http.request("GET", path)
        return http.getresponse().read().decode()
    finally:
        http.close()


async def measure_readers(stand: Stand) -> dict[str, Figures]:
    """Delays of small flows beside readers of the admin side, with many flows open.

    The control of each reader asks another sockpair, which runs on the cores of the load.
    """
    folder = stand.folder / "other"
    folder.mkdir()
    other = Route("tcp", free_port(), stand.route.origin, free_port(), folder)
    found: Figures = {}
    async with held(stand, SCRAPED_FLOWS), started(Sockpair(""), other, stand.cores):
        before = await stand.reading()
        alone = await _small(stand)
        for name, read, pause in READERS:
            control = (await _beside_reader(stand, read, other.admin, pause))[1]
            times, beside = await _beside_reader(stand, read, stand.route.admin, pause)
            found |= moved(name, beside, control)
            if pause:
                found |= reader_times(name, times)
        others = others_share(before, await stand.reading())
    found |= {"p50_alone": alone["p50"], "p99_alone": alone["p99"]}
    return {"": found | {"others": others, "errors": alone["errors"]}}


async def measure_readers_loaded(stand: Stand) -> dict[str, Figures]:
    """Answers of the admin side under full load, and what the load feels of it.

    The load goes before the readers on the core that they share; or it would feel them there. So
    the readers' times are more than the proxy takes. The command, which has an interpreter to
    start, is timed beside a load that leaves it its share.

    The percentiles are told, and have no goal: a full core of real-time programs is taken away for
    50 ms in a second as soon as an ordinary one waits for it, and the readers are ordinary ones.
    Whether they hold up the relay is for ``measure_readers`` to say.
    """
    loaded = partial(
        load.requests, stand.route.listen, stand.seconds, stand.cores, close=False, prompt=True
    )
    outcomes: dict[Reader, Outcome] = {}
    asked: list[float] = []
    async with held(stand, SCRAPED_FLOWS, http=True):
        before = await stand.reading()
        load_before, began = _load_seconds(stand), trio.current_time()
        alone = await loaded()
        load_busy = (_load_seconds(stand) - load_before) / (trio.current_time() - began)
        async with trio.open_nursery() as nursery:
            for read in (load.scrape, load.listing):
                nursery.start_soon(_read, stand, read, stand.route.admin, EACH_SECOND, outcomes)
            beside = await loaded()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, stand, asked)
            await loaded(prompt=False)
        others = others_share(before, await stand.reading())
    assert alone.p99 is not None
    assert beside.p99 is not None
    scrapes, lists = outcomes[load.scrape], outcomes[load.listing]
    return {
        "": {
            **reader_times("scrape", scrapes),
            **reader_times("list", lists),
            "command": asked[0],
            "p99_alone": alone.p99,
            "p99_beside": beside.p99,
            "load_busy": 100 * load_busy / len(stand.cores),
            "rate_alone": alone.units / alone.seconds,
            "rate_beside": beside.units / beside.seconds,
            "others": others,
            "errors": alone.errors + beside.errors + scrapes.errors + lists.errors,
        }
    }


async def _beside_reader(
    stand: Stand, read: Reader, admin: int, pause: float
) -> tuple[Outcome, Figures]:
    outcomes: dict[Reader, Outcome] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read, stand, read, admin, pause, outcomes)
        beside = await _small(stand)
    return outcomes[read], beside


async def _read(
    stand: Stand, read: Reader, admin: int, pause: float, outcomes: dict[Reader, Outcome]
) -> None:
    seconds = stand.seconds + READ_ON
    outcomes[read] = await read(admin, seconds, stand.cores, pause=pause)


async def _ask(stand: Stand, asked: list[float]) -> None:
    """Time the command ``sockpair flows``, its own start included; milliseconds.

    It goes before the load and the origin, which have its core, too, and would keep it waiting most
    of the time: what is asked is how the relay answers. After them it took 1.4 to 1.9 s.
    """
    socket = stand.folder / "admin.sock"
    command: Command = [sys.executable, "-m", "proxy", "flows", "-o", "json", "--admin", socket]
    began = trio.current_time()
    await output_of(first(command), stand.cores, stand.seconds)
    asked.append(1e3 * (trio.current_time() - began))


def reader_times(name: str, read: Outcome) -> Figures:
    """How long answers took, in milliseconds."""
    assert read.p50 is not None
    assert read.most is not None
    return {name: read.p50 / 1e3, f"{name}_most": read.most / 1e3}


def moved(name: str, beside: Figures, control: Figures) -> Figures:
    """The 99th percentile beside a reader, beside its control, and the ratio of the two."""
    return {
        f"p99_{name}": beside["p99"],
        f"control_{name}": control["p99"],
        f"moved_{name}": beside["p99"] / control["p99"],
    }
