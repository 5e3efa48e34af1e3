"""How many bytecodes a unit of work takes: a figure that is the same in every hour.

    python -m tests.bench.bytecodes [--only WORK,...] [--seconds S] [--functions N]

On a machine whose pace changes by a half, a change of a few per cent cannot be seen in times. The
bytecodes that the interpreter executes for a request can be counted exactly. They tell nothing of
the kernel, and each takes another time: 10 to 20 ns in the mean. So this shows where Python is,
and what a change made of it; what it is worth is told by the other commands of this folder.

sockpair and the floor run with ``sys.settrace``, which makes them many times slower: so what goes
by the clock happens more often for each unit than it does else. The sampler is off therefore; what
Trio and the timer wheel do between two rounds is counted, and is a few per cent.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType
from typing import Any, Final

import trio

from tests.bench.load import Outcome, datagrams, requests
from tests.bench.machine import commit
from tests.bench.origins import origin
from tests.bench.peers import Floor, Peer, Route, Settings, Sockpair
from tests.bench.programs import Program, echoes, free_port, listens, running
from tests.bench.turns import cores_of

WARM_UP: Final = 1

SWITCH: Final = signal.SIGPROF
"""Begins counting, and the next time ends it; no proxy of ours has a use for it."""

WORK: Final[dict[str, tuple[str, str, Callable[..., Awaitable[Outcome]]]]] = {
    "request": ("tcp", "http", partial(requests, close=False)),
    "connection": ("tcp", "http", partial(requests, close=True)),
    "udp32": ("udp", "udp", partial(datagrams, flows=32)),
    "udp1": ("udp", "udp", partial(datagrams, flows=1)),
}
"""Its transport, its origin and its load."""

Counts = dict[str, tuple[int, int]]
"""Of each function its bytecodes and its calls."""


class Tracer:
    """Counts the bytecodes of the main thread of this process, between two signals."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._counting = False
        self._codes: Counter[CodeType] = Counter()
        self._calls: Counter[CodeType] = Counter()

    def start(self) -> None:
        """Trace every frame that begins from now on."""
        signal.signal(SWITCH, self._switch)
        sys.settrace(self._enter)

    def _enter(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if self._counting:
            self._calls[frame.f_code] += 1
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        if self._counting and event == "opcode":
            self._codes[frame.f_code] += 1
        return self._step

    def _switch(self, *_: object) -> None:
        self._counting = not self._counting
        if not self._counting:
            counts = {name_of(code): (n, self._calls[code]) for code, n in self._codes.items()}
            passing = self._target.with_suffix(".new")
            passing.write_text(json.dumps(counts))
            passing.rename(self._target)


def name_of(code: CodeType) -> str:
    """A function's file and name, as people look for it."""
    parts = Path(code.co_filename).parts
    return f"{'/'.join(parts[-2:])} {code.co_qualname}:{code.co_firstlineno}"


def inside(arguments: list[str]) -> None:
    """Run a module with its arguments below the tracer; the first argument is for the counts."""
    target, module, *sys.argv[1:] = arguments
    Tracer(Path(target)).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


async def counted(proxy: Program, target: Path, load: Callable[[], Awaitable[Outcome]]) -> float:
    """Have the proxy count while it is loaded, until it has written what it counted."""
    os.kill(proxy.pid, SWITCH)
    outcome = await load()
    os.kill(proxy.pid, SWITCH)
    await proxy.until(target.exists)
    return max(1.0, outcome.units)


UNSAMPLED: Final = Settings(engine="sample_rate = '1/s'")

PROXIES: Final[tuple[tuple[Peer, str], ...]] = (
    (Sockpair(""), "proxy"),
    (Floor(), "tests.bench.floor"),
)


async def measure(work: str, peer: Peer, module: str, seconds: int) -> tuple[float, Counts]:
    """Units of work done, and what they took."""
    transport, kind, load = WORK[work]
    own, others = cores_of()
    with TemporaryDirectory(prefix="sockpair-bench-") as text:
        folder = Path(text)
        target = folder / "counts"
        async with origin(kind, others, folder) as port:
            route = Route(transport, free_port(), port, free_port(), folder, UNSAMPLED)
            command = list(peer.command(route))
            at = command.index(module)
            traced = [*command[:at], "tests.bench.bytecodes", "inside", target, *command[at:]]
            ready = echoes(route.listen) if transport == "udp" else listens(route.listen)
            async with running(traced, own, folder, peer.name, ready) as proxy:
                await load(route.listen, WARM_UP, others)
                units = await counted(proxy, target, partial(load, route.listen, seconds, others))
                return units, json.loads(target.read_text())


async def run(options: Namespace) -> None:
    """Count, and print what was found."""
    print(f"commit: {commit() or 'unknown'}, Python {platform.python_version()}")
    for work in options.only:
        for peer, module in PROXIES:
            units, counts = await measure(work, peer, module, options.seconds)
            most = options.functions if isinstance(peer, Sockpair) else 0
            print(f"\n{work}, {peer.name}: {table(units, counts, most)}", flush=True)


def table(units: float, counts: Counts, most: int) -> str:
    """The sum for a unit, and the functions that took the most, by their own bytecodes."""
    codes, calls = (sum(each) / units for each in zip(*counts.values(), strict=True))
    lines = [f"{codes:,.0f} bytecodes and {calls:.1f} calls, of {units:,.0f} units"]
    first = sorted(counts.items(), key=lambda item: item[1], reverse=True)[:most]
    lines += [f"{n / units:10.1f}{times / units:8.2f}  {name}" for name, (n, times) in first]
    return "\n".join(lines)


def main() -> None:
    """Run as told on the command line."""
    if sys.argv[1:2] == ["inside"]:
        inside(sys.argv[2:])
        return
    known = ArgumentParser("python -m tests.bench.bytecodes", description="bytecodes a unit")
    known.add_argument("--only", default=",".join(WORK), metavar="WORK,...", help=", ".join(WORK))
    known.add_argument("--seconds", type=int, default=3, metavar="S", help="of a load; default 3")
    known.add_argument("--functions", type=int, default=25, metavar="N", help="default 25")
    options = known.parse_args()
    options.only = [each for each in WORK if each in options.only.split(",")]
    trio.run(run, options)


if __name__ == "__main__":
    main()
