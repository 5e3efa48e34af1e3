"""What ``survive = "crash"`` costs: proxies with it, and proxies without, which have one process.

    python -m tests.bench.survive [--rounds N] [--seconds S] [--only WORK,...]

Of each kind some run at the same time, before one origin, on one core. What one process needs for a
connection is a fifth more or less than what the next one needs, whatever its configuration; so each
is loaded in every turn, in an order that is drawn anew, and a turn is the mean of each kind. How it
is told: ``turns``. The goal is 1.15. It ends with the same as the sum of all turns, by proxy.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from random import Random
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Final

import trio

from tests.bench.load import Outcome, requests
from tests.bench.origins import origin
from tests.bench.programs import LOCAL, Program, free_port, listens, running
from tests.bench.turns import HEAD, cores_of, cost_of, heading, options_of, row

LISTENER: Final = """\
[listener.bench]
listen = "tcp://{host}:{listen}"
upstream = "origin"
survive = "{survive}"

[upstream.origin]
endpoints = ["{host}:{origin}"]
"""

KINDS: Final = ("restart", "crash")
EACH: Final = 4
"""Proxies of a kind."""

WORK: Final = {"request": False, "connection": True}
"""What is done, and whether each request has a connection of its own."""


Arm = tuple[str, int]
"""A proxy: its kind, and the how manyeth of it."""

ARMS: Final[list[Arm]] = [(kind, number) for number in range(EACH) for kind in KINDS]


async def measure(work: str, rounds: int, seconds: int) -> str:
    """Load all proxies in turns; return what there is to tell."""
    chance = Random(work)
    own, others = cores_of()
    arms: dict[Arm, tuple[Program, Callable[[], Awaitable[Outcome]]]] = {}
    with TemporaryDirectory(prefix="sockpair-bench-") as text:
        async with origin("http", others, Path(text)) as port, AsyncExitStack() as stack:
            for arm in ARMS:
                folder, listen = Path(text) / "{}{}".format(*arm), free_port()
                command = _configured(folder, arm[0], listen, port)
                start = running(command, own, folder, folder.name, listens(listen))
                proxy = await stack.enter_async_context(start)
                load = partial(requests, listen, seconds, others, close=WORK[work])
                await load()
                arms[arm] = proxy, load
            turns = []
            for _ in range(rounds):
                order = chance.sample(ARMS, len(ARMS))
                turns.append({arm: await cost_of(*arms[arm]) for arm in order})
    return "\n".join(_told(work, turns))


def _told(work: str, turns: list[dict[Arm, float]]) -> Iterator[str]:
    """The line of the table, and what each proxy needed."""
    plain, dear = ([mean(_of(kind, turn)) for turn in turns] for kind in KINDS)
    yield row(work, plain, dear)
    for kind in KINDS:
        by_proxy = zip(*(_of(kind, turn) for turn in turns), strict=True)
        yield f"{kind:>12}: {', '.join(f'{mean(costs):.1f}' for costs in by_proxy)} by proxy"
    yield f"{'of all':>12}: {sum(dear) / sum(plain):.3f}"


def _of(kind: str, turn: dict[Arm, float]) -> list[float]:
    return [turn[kind, number] for number in range(EACH)]


def _configured(folder: Path, survive: str, listen: int, port: int) -> list[str | Path]:
    """Configure a proxy, and return the command that runs it."""
    folder.mkdir()
    file = folder / "sockpair.toml"
    names = {"folder": folder, "host": LOCAL, "listen": listen, "origin": port}
    file.write_text((HEAD + LISTENER).format(survive=survive, **names))
    return [sys.executable, "-m", "proxy", "run", "-c", file]


async def run(only: list[str], rounds: int, seconds: int) -> None:
    """Measure what is asked for, and print it."""
    print(heading(*KINDS), flush=True)
    for work in only:
        print(await measure(work, rounds, seconds), flush=True)


def main() -> None:
    """Run as told on the command line."""
    options = options_of("tests.bench.survive", "what surviving a crash costs", 10, list(WORK))
    trio.run(run, options.only, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
