"""What limits cost: a listener with all of them, none of which is reached, and one without any.

    python -m tests.bench.limits [--rounds N] [--seconds S] [--only WORK,...]

Both are listeners of one sockpair, before one origin, and are loaded in turns, in an order that is
drawn anew for each. What one process needs for a connection is a fifth more or less than what the
next one needs, whatever its limits: so two processes beside each other show little, however often.
How it is told: ``turns``. The goal is 1.1.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

import trio

from tests.bench.load import Outcome, datagrams, requests
from tests.bench.origins import origin
from tests.bench.programs import LOCAL, Cores, echoes, free_port, listens, running
from tests.bench.turns import HEAD, cores_of, cost_of, heading, options_of, row

LISTENERS: Final = """\
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
                        costs[name].append(await cost_of(proxy, once))
    return row(work, costs["without"], costs["limited"])


def _configured(folder: Path, transport: str, port: int, ports: dict[str, int]) -> list[str | Path]:
    """Configure sockpair, and return the command that runs it."""
    text = HEAD + LISTENERS + ("" if transport == "tcp" else OF_DATAGRAMS)
    file = folder / "sockpair.toml"
    file.write_text(
        text.format(folder=folder, transport=transport, host=LOCAL, origin=port, **ports)
    )
    return [sys.executable, "-m", "proxy", "run", "-c", file]


async def run(only: list[str], rounds: int, seconds: int) -> None:
    """Measure what is asked for, and print the table."""
    print(heading("none", "limits"), flush=True)
    for work in only:
        print(await measure(work, rounds, seconds, cores_of()), flush=True)


def main() -> None:
    """Run as told on the command line."""
    options = options_of("tests.bench.limits", "what limits cost", 20, list(WORK))
    trio.run(run, options.only, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
