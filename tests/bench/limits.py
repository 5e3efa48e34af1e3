"""What limits cost: a listener with all of them, none of which is reached, and one without any.

    python -m tests.bench.limits [--rounds N] [--seconds S] [--only WORK,...]

Both are listeners of one sockpair, before one origin, and are loaded in turns, in an order that is
drawn anew for each. What one process needs for a connection is a fifth more or less than what the
next one needs, whatever its limits: so two processes beside each other show little, however often.

The CPU is that of all threads of the process, as the scheduler counts it, in nanoseconds. What is
told: the medians; their ratio in each turn, its median and its quartiles. The goal is 1.1.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from os import sched_getaffinity
from pathlib import Path
from random import Random
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Final

import trio

from tests.bench.load import Outcome, datagrams, requests
from tests.bench.origins import origin
from tests.bench.programs import LOCAL, Cores, Program, echoes, free_port, listens, running
from tests.bench.usage import nanoseconds, usage_at_rest

SOCKPAIR: Final = """\
[admin]
socket = "{folder}/admin.sock"
http = ""

[engine]
drain_timeout = "1ms"

[log]
format = "json"
flows = "all"

[upstream.origin]
endpoints = ["{host}:{origin}"]

[listener.without]
listen = "{transport}://{host}:{without}"
upstream = "origin"

[listener.limited]
listen = "{transport}://{host}:{limited}"
upstream = "origin"
deny = ["203.0.113.0/24", "2001:db8::/32", "198.51.100.7"]
limits.flows = 90000
limits.flow_rate = "900000/s"
limits.bandwidth = "900Gbit/s"
limits.per_source.flows = 80000
limits.per_source.flow_rate = "800000/s"
limits.per_source.bandwidth = "800Gbit/s"
limits.per_flow.bandwidth_original = "700Gbit/s"
limits.per_flow.bandwidth_reply = "700Gbit/s"
limits.per_flow.bytes = "900TiB"
limits.per_flow.duration = "8h"
"""

OF_DATAGRAMS: Final = """\
limits.per_flow.datagram_rate = "9000000/s"
limits.per_flow.amplification = 1000
"""

Load = Callable[[int, int, Cores], Awaitable[Outcome]]

WORK: Final[dict[str, tuple[str, str, Load]]] = {
    "request": ("tcp", "http", partial(requests, close=False)),
    "connection": ("tcp", "http", partial(requests, close=True)),
    "udp32": ("udp", "udp", partial(datagrams, flows=32)),
    "udp1": ("udp", "udp", partial(datagrams, flows=1)),
}
"""The transport, the origin and the load of each."""

NAMES: Final = ("without", "limited")

WARM_UP: Final = 1


async def measure(work: str, rounds: int, seconds: int, cores: tuple[Cores, Cores]) -> str:
    """Load both listeners in turns; return a line of the table."""
    transport, kind, load = WORK[work]
    chance = Random(work)
    costs: dict[str, list[float]] = {name: [] for name in NAMES}
    with TemporaryDirectory(prefix="sockpair-bench-") as text:
        folder = Path(text)
        async with origin(kind, cores[1], folder) as port:
            ports = {name: free_port() for name in NAMES}
            command = _configured(folder, transport, port, ports)
            ready = (listens if transport == "tcp" else echoes)(ports["limited"])
            async with running(command, cores[0], folder, "sockpair", ready) as proxy:
                for name in NAMES:
                    await load(ports[name], WARM_UP, cores[1])
                for _ in range(rounds):
                    for name in chance.sample(NAMES, len(NAMES)):
                        once = partial(load, ports[name], seconds, cores[1])
                        costs[name].append(await _cost(proxy, once))
    return row(work, costs["without"], costs["limited"])


async def _cost(proxy: Program, load: Callable[[], Awaitable[Outcome]]) -> float:
    """Microseconds of the proxy's CPU for a unit of a load."""
    await usage_at_rest(proxy.pid)
    before = nanoseconds(proxy.pid)
    outcome = await load()
    await usage_at_rest(proxy.pid)
    return (nanoseconds(proxy.pid) - before) / 1000 / max(1.0, outcome.units)


def _configured(folder: Path, transport: str, port: int, ports: dict[str, int]) -> list[str | Path]:
    """Configure sockpair, and return the command that runs it."""
    text = SOCKPAIR if transport == "tcp" else SOCKPAIR + OF_DATAGRAMS
    file = folder / "sockpair.toml"
    file.write_text(
        text.format(folder=folder, transport=transport, host=LOCAL, origin=port, **ports)
    )
    return [sys.executable, "-m", "proxy", "run", "-c", file]


def row(work: str, without: list[float], limited: list[float]) -> str:
    """A line of the table."""
    ratios = [with_them / none for none, with_them in zip(without, limited, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return (
        f"{work:>12}{median(without):12.2f}{median(limited):12.2f}{median(ratios):8.2f}"
        f"{f'{low:.2f} to {high:.2f}':>16}"
    )


def heading() -> str:
    """The head of the table."""
    return f"{'work':>12}{'none, µs':>12}{'limits, µs':>12}{'ratio':>8}{'quartiles':>16}"


def cores_of() -> tuple[Cores, Cores]:
    """That of the proxy, and those of everything else."""
    every = sorted(sched_getaffinity(0))
    return {every[-1]}, set(every[:-1]) or {every[-1]}


async def run(options: Namespace) -> None:
    """Measure what is asked for, and print the table."""
    print(heading(), flush=True)
    for work in chosen(options.only):
        print(await measure(work, options.rounds, options.seconds, cores_of()), flush=True)


def chosen(only: str) -> Iterator[str]:
    """The names of the work that is wanted."""
    return (work for work in WORK if not only or work in only.split(","))


def main() -> None:
    """Run as told on the command line."""
    known = ArgumentParser("python -m tests.bench.limits", description="what limits cost")
    known.add_argument("--rounds", type=int, default=20, metavar="N", help="default 20")
    known.add_argument("--seconds", type=int, default=1, metavar="S", help="of a load; default 1")
    known.add_argument("--only", default="", metavar="WORK,...", help=", ".join(WORK))
    trio.run(run, known.parse_args())


if __name__ == "__main__":
    main()
