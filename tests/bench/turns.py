"""Two arms, loaded in turns: what one costs more than the other, where a few per cent matter.

The CPU is that of all threads of the processes of an arm, as the scheduler counts it, in
nanoseconds. What is told: the medians; the ratio of each turn, its median and its quartiles.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable
from os import sched_getaffinity
from statistics import median, quantiles
from typing import Final

from tests.bench.load import Outcome
from tests.bench.programs import Cores, Program
from tests.bench.usage import nanoseconds, usage_at_rest

HEAD: Final = """\
[admin]
socket = "{folder}/admin.sock"
http = ""

[engine]
drain_timeout = "1ms"

[log]
format = "json"
flows = "all"

"""
"""How the configuration of an arm begins."""


async def cost_of(proxy: Program, load: Callable[[], Awaitable[Outcome]]) -> float:
    """Microseconds of the proxy's CPU for a unit of a load."""
    await usage_at_rest(proxy.pid)
    before = nanoseconds(proxy.pid)
    outcome = await load()
    await usage_at_rest(proxy.pid)
    return (nanoseconds(proxy.pid) - before) / 1000 / max(1.0, outcome.units)


def heading(plain: str, dear: str) -> str:
    """The head of the table: how both arms are called."""
    return f"{'work':>12}{f'{plain}, µs':>14}{f'{dear}, µs':>14}{'ratio':>8}{'quartiles':>16}"


def row(work: str, plain: list[float], dear: list[float]) -> str:
    """A line of the table, from what each turn cost."""
    ratios = [more / less for less, more in zip(plain, dear, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return (
        f"{work:>12}{median(plain):14.2f}{median(dear):14.2f}{median(ratios):8.2f}"
        f"{f'{low:.2f} to {high:.2f}':>16}"
    )


def cores_of() -> tuple[Cores, Cores]:
    """That of the proxy, and those of everything else."""
    every = sorted(sched_getaffinity(0))
    return {every[-1]}, set(every[:-1]) or {every[-1]}


def options_of(module: str, what: str, turns: int, work: list[str]) -> Namespace:
    """What was asked for on the command line.

    Args:
        module: what is run.
        what: it shows.
        turns: by default.
        work: that can be measured.

    """
    known = ArgumentParser(f"python -m {module}", description=what)
    known.add_argument("--rounds", type=int, default=turns, metavar="N", help=f"default {turns}")
    known.add_argument("--seconds", type=int, default=1, metavar="S", help="of a load; default 1")
    known.add_argument("--only", default=",".join(work), metavar="WORK,...", help=", ".join(work))
    options = known.parse_args()
    options.only = [each for each in work if each in options.only.split(",")]
    return options
