"""Two workers against one: what the second is worth, as far as two cores can show it.

    python -m tests.bench.workers [--rounds N] [--seconds S] [--hops N] [--only WORK]

Load and origin need the cores too, and for one request they need about as much as a proxy: with one
hop the cores are full before a second worker has anything to do. So a request goes through a
*chain*: each hop is a listener of the same proxy, whose endpoint is the next one. With so many hops
the proxy does nearly all of the work on the machine. HAProxy with one thread and two has the same
chains, in the same run: it tells what this machine allows.

There is a chain for each worker. Clients are divided by their address, so a chain is entered from
addresses of its worker, and its hops leave from such. (One chain that goes to and fro between the
workers makes each of them the peer of the other, as no client and no endpoint is: then it is the
loopback between the cores that is measured. HAProxy's thread has the bindings of its chain.) That
needs a network of its own, in which the program runs again (``unshare``): as root, or where users
may make namespaces.

Three answers, of which each is a control of the others:

- **rate, two cores to one**: two workers on both cores, and one worker on one core, each core with
  its load and its origin. It is the work that is done, all told: 2 would be a second machine.
- **CPU, two to one**: if a request costs the same, two workers with cores of their own carry twice
  as much.
- **busiest**: the share of the busiest thread. What it does bounds the rest: *with cores enough*
  two carry so many times the work of one, the CPU of a request with one by that of the busiest of
  two.

A hop costs more than a proxy does in the other tables: on loopback the kernel does much of a peer's
work in the sender's time, and here both peers of nearly every hop are the proxy itself.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import trio

from proxy.core.steering import worker_of
from tests.bench.__main__ import INTERRUPTED, stop_on_signal
from tests.bench.load import Outcome, requests
from tests.bench.machine import commit, machine
from tests.bench.origins import origin
from tests.bench.peers import ROOM
from tests.bench.programs import LOCAL, Command, Cores, free_port, listens, output_of, running
from tests.bench.usage import core_seconds, threads_at_rest

HOPS: Final = 16

WORKERS: Final = 2
"""And chains: with one worker it has both of them."""

ENTRIES: Final = 4
"""Addresses that the load of a chain comes from. One that it is sent to is where it comes from,
too: that is what the kernel chooses for an address of this host."""

EXITS: Final = 100
"""Addresses that the hops of a chain leave from: each closed connection keeps one for a minute."""

ENTRIES_BASE: Final = "10.20.0.1"
EXITS_BASE: Final = "127.0.1.0"

CONNECTIONS: Final = 64
"""Requests under way in a chain: so many that a worker always finds some to do. A proxy that has to
be woken for a single message pays for waking; with a few requests that would be told as the price
of a second worker."""

WARM_UP: Final = 1

INSIDE: Final = "SOCKPAIR_BENCH_NETWORK"

SOCKPAIR: Final = """\
[admin]
socket = "{folder}/admin.sock"
http = ""

[engine]
workers = {workers}
drain_timeout = "1ms"

[log]
format = "json"
flows = "all"
"""

SOCKPAIR_HOP: Final = """
[listener.hop{listen}]
listen = "tcp://{host}:{listen}"
upstream = "hop{listen}"

[upstream.hop{listen}]
endpoints = ["127.0.0.1:{endpoint}"]
source = {exits}
"""

HAPROXY: Final = """\
global
    nbthread {workers}
    maxconn {room}
    log stdout format raw local0

defaults
    mode tcp
    log global
    option tcplog
    timeout connect 5s
    timeout client 2h
    timeout server 2h
"""

HAPROXY_HOP: Final = """
listen hop{listen}
    bind {host}:{listen} thread {thread}
    server hop{listen} 127.0.0.1:{endpoint}
"""


Chains = Sequence[Sequence[int]]
"""The ports of each chain: of its hops, and at its end the origin's."""


def sockpair(folder: Path, workers: int, chains: Chains) -> Command:
    """Configure sockpair, and return the command that runs it."""
    file = folder / "sockpair.toml"
    head = SOCKPAIR.format(folder=folder, workers=workers)
    file.write_text(head + "".join(_hops(SOCKPAIR_HOP, workers, chains)))
    return [sys.executable, "-m", "proxy", "run", "-c", file]


def haproxy(folder: Path, workers: int, chains: Chains) -> Command:
    """Configure HAProxy, and return the command that runs it."""
    file = folder / "haproxy.cfg"
    head = HAPROXY.format(workers=workers, room=ROOM)
    file.write_text(head + "".join(_hops(HAPROXY_HOP, workers, chains)))
    return ["haproxy", "-db", "-f", file]


def _hops(text: str, workers: int, chains: Chains) -> Iterator[str]:
    """Each hop's part of a configuration."""
    for worker, ports in enumerate(chains):
        for listen, endpoint in pairwise(ports):
            yield text.format(
                listen=listen,
                endpoint=endpoint,
                host="0.0.0.0" if listen == ports[0] else LOCAL,
                thread=1 + worker % workers,
                exits=json.dumps(addresses(EXITS_BASE, worker, EXITS)),
            )


def addresses(base: str, worker: int, count: int) -> list[str]:
    """So many addresses from this one on whose connections are this worker's, of two."""
    following = (ip_address(base) + number for number in itertools.count())
    own = (each for each in following if worker_of(each, WORKERS) == worker)
    return [str(each) for each in islice(own, count)]


WORK: Final = {"request": False, "connection": True}
"""What is done, and whether each request has a connection of its own."""

PROXIES: Final[dict[str, Callable[[Path, int, Chains], Command]]] = {
    "sockpair": sockpair,
    "haproxy": haproxy,
}


@dataclass(frozen=True)
class Sample:
    """What one measurement gave.

    Attributes:
        rate: requests a second, each through the whole chain.
        cpu: microseconds of the proxy for a request and a hop.
        busiest: the same of its busiest thread.
        rest: the same of everything else on the machine: load and origin.
        errors: requests that failed.

    """

    rate: float
    cpu: float
    busiest: float
    rest: float
    errors: int


@dataclass(frozen=True)
class Gain:
    """What two workers are to one, measured right after each other: a machine's pace changes.

    Attributes:
        one: one worker on one core.
        two: two on both.

    """

    one: Sample
    two: Sample

    @property
    def rate(self) -> float:
        return self.two.rate / self.one.rate

    @property
    def cpu(self) -> float:
        return self.two.cpu / self.one.cpu

    @property
    def busiest(self) -> float:
        """Per cent of the CPU that the busiest thread has."""
        return 100 * self.two.busiest / self.two.cpu

    @property
    def enough(self) -> float:
        """What it would be with a core for every thread."""
        return self.one.cpu / self.two.busiest


async def compare(work: str, name: str, options: Namespace) -> Gain:
    """Measure one worker and two, one after the other."""
    both = sorted(os.sched_getaffinity(0))[:WORKERS]
    return Gain(
        one=await measure(work, name, both[:1], options),
        two=await measure(work, name, both, options),
    )


async def measure(work: str, name: str, cores: Cores, options: Namespace) -> Sample:
    """Set up an origin and the chains on these cores, a worker for each; load them; end them."""
    with TemporaryDirectory(prefix="sockpair-bench-") as text:
        folder = Path(text)
        async with origin("http", cores, folder) as port:
            chains = [[*(free_port() for _ in range(options.hops)), port] for _ in range(WORKERS)]
            command = PROXIES[name](folder, len(cores), chains)
            ready = listens(chains[-1][0])
            async with running(command, cores, folder, name, ready) as proxy:
                load = partial(loaded, chains, cores, close=WORK[work])
                await load(WARM_UP)
                threads, busy = await threads_at_rest(proxy.pid), sum(map(core_seconds, cores))
                outcomes = await load(options.seconds)
                after = await threads_at_rest(proxy.pid)
                busy = sum(map(core_seconds, cores)) - busy
    used = [seconds - threads.get(thread, 0.0) for thread, seconds in after.items()]
    units = sum(outcome.units for outcome in outcomes)
    scale = 1e6 / max(1.0, units) / options.hops
    return Sample(
        rate=units / options.seconds,
        cpu=sum(used) * scale,
        busiest=max(used) * scale,
        rest=max(0.0, busy - sum(used)) * scale,
        errors=sum(outcome.errors for outcome in outcomes),
    )


async def loaded(chains: Chains, cores: Cores, seconds: int, *, close: bool) -> list[Outcome]:
    """Send requests through all chains, from all addresses, at once."""
    outcomes: list[Outcome] = []

    async def one(port: int, host: str) -> None:
        connections = CONNECTIONS // ENTRIES
        outcomes.append(
            await requests(port, seconds, cores, close=close, host=host, connections=connections)
        )

    async with trio.open_nursery() as nursery:
        for worker, (port, *_) in enumerate(chains):
            for host in entries(worker):
                nursery.start_soon(one, port, host)
    return outcomes


def entries(worker: int) -> list[str]:
    """The addresses that the load of a worker's chain comes from."""
    return addresses(ENTRIES_BASE, worker, ENTRIES)


async def run(options: Namespace) -> bool:
    """Measure everything in every round, and print what was found; whether a signal ended it."""
    gains: dict[str, dict[str, list[Gain]]] = defaultdict(lambda: defaultdict(list))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(stop_on_signal, scope)
            await lay_network()
            for work, name in options.rounds * list(plan(options.only)):
                gain = await compare(work, name, options)
                gains[work][name].append(gain)
                tell(f"{work}, {name}: with one {gain.one}, with two {gain.two}")
            nursery.cancel_scope.cancel()
    for key, value in {"commit": commit() or "unknown", **machine()}.items():
        print(f"{key}: {value}")
    for work, by_name in gains.items():
        print(f"\n{work}: through {options.hops} hops\n{table(by_name)}")
    return scope.cancelled_caught


def plan(only: str) -> Iterator[tuple[str, str]]:
    """What a round measures: both proxies after each other, each with one worker and with two."""
    return ((work, name) for work in WORK if only in {"", work} for name in PROXIES)


async def lay_network() -> None:
    """Give this network, which is our own and empty, the addresses that the load comes from."""
    cores = os.sched_getaffinity(0)
    await output_of(["ip", "link", "set", "lo", "up"], cores, 1)
    for host in itertools.chain(*map(entries, range(WORKERS))):
        await output_of(["ip", "address", "add", f"{host}/32", "dev", "lo"], cores, 1)


ROWS: Final[Sequence[tuple[str, Callable[[Gain], float], int]]] = (
    ("rate with one, a second", lambda gain: gain.one.rate, 0),
    ("rate with two", lambda gain: gain.two.rate, 0),
    ("rate, two cores to one", lambda gain: gain.rate, 2),
    ("CPU with one, µs a hop", lambda gain: gain.one.cpu, 2),
    ("CPU with two", lambda gain: gain.two.cpu, 2),
    ("CPU, two to one", lambda gain: gain.cpu, 2),
    ("busiest of two, % of the CPU", lambda gain: gain.busiest, 1),
    ("with cores enough, two to one", lambda gain: gain.enough, 2),
    ("errors", lambda gain: gain.one.errors + gain.two.errors, 0),
)


def table(gains: Mapping[str, Sequence[Gain]]) -> str:
    """The medians of every proxy, with the least and the most; for people."""
    lines = [f"  {'':32}" + "".join(f"{name:>28}" for name in gains)]
    for label, value, digits in ROWS:
        cells = (cell([value(gain) for gain in each], digits) for each in gains.values())
        lines.append(f"  {label:32}" + "".join(f"{text:>28}" for text in cells))
    return "\n".join(lines)


def cell(values: Sequence[float], digits: int) -> str:
    """The median of the rounds, and how far they lie apart."""
    least, middle, most = (
        f"{number:,.{digits}f}" for number in (min(values), median(values), max(values))
    )
    return f"{middle} ({least} to {most})"


def tell(text: str) -> None:
    print(f"tests.bench.workers: {text}", file=sys.stderr, flush=True)


def enter_network() -> None:
    """Run this program again in a network of its own, in the place of this one."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    again = [sys.executable, "-m", "tests.bench.workers", *sys.argv[1:]]
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", *user, *again])


def main() -> None:
    """Run as told on the command line."""
    known = ArgumentParser("python -m tests.bench.workers", description="two workers to one")
    known.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    known.add_argument("--seconds", type=int, default=10, metavar="S", help="default 10")
    known.add_argument("--hops", type=int, default=HOPS, metavar="N", help=f"default {HOPS}")
    known.add_argument("--only", choices=sorted(WORK), default="", help="this work only")
    options = known.parse_args()
    if INSIDE not in os.environ:
        enter_network()
    sys.exit(INTERRUPTED if trio.run(run, options) else 0)


if __name__ == "__main__":
    main()
