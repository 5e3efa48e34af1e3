"""Limits: how exact a ceiling is, and how fair a bandwidth is divided.

    python -m tests.bench.shaping [--seconds S] [--only accuracy,fairness]

- **accuracy**: one flow that is sent all it takes, below ``bandwidth_reply`` of 64 kbit/s,
  10 Mbit/s and 1 Gbit/s, for so many seconds (10): what arrived, of what should have, between the
  first and the last byte; and the CPU for a GB beside that of a flow without a ceiling, whose
  sender keeps to the same rate by itself.
- **fairness**: a listener with ``bandwidth``, a client with 500 flows beside one with one: the part
  of each; how much of the time the one waited for its turn, since it is due its half only while it
  wants more; and what it has when the many are quiet.

Measured a second after the last flow has begun, beside an endpoint that sends little ahead. One
that filled megabytes for each of the many did not serve the one meanwhile, which then had 0 to 45 %
of the bandwidth for a second or two: all that it wanted. In the shaper alone it has 48 to 52 % of
the first quarter of a second in which it waits, whatever was before.

Nothing is asserted; the goals are 97 to 101 %, half and half within 5 %, twice the CPU for a byte.
What limits cost that are not reached is told by ``limits``.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from select import EPOLLIN, EPOLLOUT, epoll, select
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Final, NamedTuple

import trio

from proxy.core.ceiling import piece_of
from tests.bench.degrade import page
from tests.bench.peers import Route, Settings, Sockpair
from tests.bench.programs import LOCAL, Cores, Program, free_port, listens, running
from tests.bench.usage import usage_at_rest

RATES: Final = {"64 kbit/s": 8e3, "10 Mbit/s": 1.25e6, "1 Gbit/s": 1.25e8}

WHOLE: Final = 1.25e7
"""Bytes a second that flows share: 100 Mbit/s."""

MANY: Final = 500
CROWD, LONE = "127.0.0.2", "127.0.0.3"

SETTLED: Final = 1.0
"""Seconds after all flows have begun until they are measured."""

CAUGHT_UP: Final = 0.1
"""Seconds in which what came while the proxy was asked is taken."""

LATEST: Final = 20.0
"""Seconds after which all must have begun."""

CHUNK: Final = 1 << 18

UNSENT: Final = 1 << 17
"""Bytes that an endpoint sends ahead; the kernel alone would keep megabytes of each stream."""


def pour(port: int) -> None:
    """Be an endpoint that sends without end to whoever connects: ``python -m ... pour PORT``.

    All that wait are taken at once, and little is sent ahead: a round of filling the buffers of
    hundreds takes so long that a stream of which more is taken meanwhile would run dry.
    """
    listening = socket.create_server((LOCAL, port), backlog=1024)
    listening.setblocking(False)
    data = bytes(CHUNK)
    poll = epoll()
    poll.register(listening.fileno(), EPOLLIN)
    streams: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listening.fileno():
                with suppress(BlockingIOError):
                    while True:
                        stream, _ = listening.accept()
                        stream.setblocking(False)
                        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
                        streams[stream.fileno()] = stream
                        poll.register(stream.fileno(), EPOLLOUT)
                continue
            try:
                streams[fd].send(data)
            except BlockingIOError:
                continue
            except OSError:
                poll.unregister(fd)
                streams.pop(fd).close()


def pace(port: int, rate: float) -> None:
    """Be one that keeps to a rate, as smooth as the proxy: ``python -m ... pace PORT RATE``."""
    listening = socket.create_server((LOCAL, port))
    piece = piece_of(rate)
    data = bytes(int(piece))
    while True:
        stream, _ = listening.accept()
        with stream, suppress(OSError):
            due = monotonic()
            while True:
                stream.sendall(data)
                due += piece / rate
                select([], [], [], max(0.0, due - monotonic()))


@asynccontextmanager
async def proxied(
    listener: str, cores: tuple[Cores, Cores], rate: float = 0.0
) -> AsyncIterator[tuple[Route, Program]]:
    """A sockpair with these keys of its listener, before an endpoint that pours, or paces."""
    with TemporaryDirectory(prefix="sockpair-bench-") as folder:
        origin, listen, admin = free_port(), free_port(), free_port()
        route = Route("tcp", listen, origin, admin, Path(folder), Settings(listener=listener))
        order = ["pace", str(origin), str(rate)] if rate else ["pour", str(origin)]
        command = [sys.executable, "-m", "tests.bench.shaping", *order]
        async with (
            running(command, cores[1], Path(folder), "origin", listens(origin)),
            running(
                Sockpair("").command(route), cores[0], Path(folder), "sockpair", listens(listen)
            ) as proxy,
        ):
            yield route, proxy


def client(source: str, port: int) -> socket.socket:
    """Connect to the proxy from an address."""
    stream = socket.socket()
    stream.bind((source, 0))
    stream.connect((LOCAL, port))
    return stream


def received(stream: socket.socket, seconds: float) -> tuple[int, float]:
    """Receive for so long after the first byte; the bytes after it, and the seconds."""
    waste = bytearray(CHUNK)
    stream.recv(CHUNK)
    began = now = monotonic()
    taken = 0
    while now < began + seconds:
        # MSG_TRUNC throws away without copying (tcp(7))
        taken += stream.recv_into(waste, CHUNK, socket.MSG_TRUNC)
        now = monotonic()
    return taken, now - began


async def moved(
    keys: str, seconds: float, cores: tuple[Cores, Cores], rate: float = 0.0
) -> tuple[float, float]:
    """Bytes a second that arrive through one flow, and seconds of the proxy's CPU for a GB."""
    async with proxied(keys, cores, rate) as (route, proxy):
        before = await usage_at_rest(proxy.pid)
        with client(LOCAL, route.listen) as stream:
            taken, took = await trio.to_thread.run_sync(received, stream, seconds)
        cpu = (await usage_at_rest(proxy.pid)).cpu - before.cpu
    return taken / took, cpu / taken * 1e9


async def accuracy(seconds: float, cores: tuple[Cores, Cores]) -> Iterator[str]:
    """One flow at each rate, and one without a ceiling whose sender keeps to it."""
    lines = [f"{'ceiling':>12}{'of it':>10}{'CPU, s a GB':>14}{'without':>10}{'ratio':>8}"]
    for name, rate in RATES.items():
        keys = f'limits.per_flow.bandwidth_reply = "{rate * 8:.0f}bit/s"'
        arrived, cost = await moved(keys, seconds, cores)
        _, free = await moved("", seconds, cores, rate)
        ratio = f"{cost / free:8.2f}" if free else f"{'-':>8}"
        lines.append(f"{name:>12}{arrived / rate:10.2%}{cost:14.2f}{free:10.2f}{ratio}")
    _, free = await moved("", seconds, cores)
    lines.append(f"{'none':>12}{'':10}{free:14.2f}")
    return iter(lines)


class Division(NamedTuple):
    """What a crowd and a lone client got.

    Attributes:
        many: bytes a second of the crowd.
        one: of the lone client.
        waited: the part of the time in which that one was held back, and so wanted more.

    """

    many: float
    one: float
    waited: float


def divided(port: int, crowd: int, seconds: float, held: Callable[[], float]) -> Division:
    """Divide for so long, when all flows have begun and settled.

    Args:
        port: of the proxy.
        crowd: flows beside the lone one.
        seconds: how long.
        held: says for how many seconds the lone one has been held back.

    """
    with ExitStack() as stack:
        streams = [stack.enter_context(client(source, port)) for source in [CROWD] * crowd + [LONE]]
        taker = Taker(streams)
        taker.take_until_begun()
        taker.take(SETTLED)
        before, since = held(), monotonic()
        taker.take(CAUGHT_UP)
        many, one, took = taker.take(seconds)
        waited = (held() - before) / (monotonic() - since)
    return Division(many / took, one / took, waited)


class Taker:
    """Takes all that comes, and throws it away.

    Args:
        streams: those of the crowd, and the lone one.

    """

    def __init__(self, streams: Sequence[socket.socket]) -> None:
        self._lone = streams[-1].fileno()
        self._streams = {stream.fileno(): stream for stream in streams}
        self._silent = set(self._streams)
        self._waste = bytearray(CHUNK)
        self._poll = epoll()
        for stream in streams:
            stream.setblocking(False)
            self._poll.register(stream.fileno(), EPOLLIN)

    def take_until_begun(self) -> None:
        """Take until something has come on each."""
        deadline = monotonic() + LATEST
        while self._silent:
            if monotonic() > deadline:
                raise TimeoutError(f"{len(self._silent)} flows have not begun in {LATEST:.0f} s")
            self._take_once()

    def take(self, seconds: float) -> tuple[int, int, float]:
        """Take for so long; the bytes of the crowd and of the lone one, and the seconds."""
        many = one = 0
        began = now = monotonic()
        while now < began + seconds:
            crowd, lone = self._take_once()
            many, one = many + crowd, one + lone
            now = monotonic()
        return many, one, now - began

    def _take_once(self) -> tuple[int, int]:
        taken = [0, 0]
        for fd, _ in self._poll.poll(0.1):
            # MSG_TRUNC: see ``received``
            size = self._streams[fd].recv_into(self._waste, CHUNK, socket.MSG_TRUNC)
            taken[fd == self._lone] += size
            self._silent.discard(fd)
        return taken[0], taken[1]


def held_back(admin: int) -> float:
    """For how many seconds the proxy has held back what it sends to the lone client."""
    rows = json.loads(page(admin, f"/api/v1/flows?client={LONE}"))["flows"]
    return sum(row["stalled"]["reply"]["held"] for row in rows if row["stalled"])


async def fairness(seconds: float, cores: tuple[Cores, Cores]) -> Iterator[str]:
    """A crowd beside one, and one alone."""
    columns = ("flows", "the many", "the one", "together")
    lines = ["".join(f"{each:>12}" for each in columns) + "   of the bandwidth; the one waited"]
    keys = f'limits.bandwidth = "{WHOLE * 8:.0f}bit/s"'
    for crowd in (MANY, 0):
        async with proxied(keys, cores) as (route, _):
            held = partial(held_back, route.admin)
            many, one, waited = await trio.to_thread.run_sync(
                divided, route.listen, crowd, seconds, held
            )
        parts = "".join(f"{each / WHOLE:12.2%}" for each in (many, one, many + one))
        lines.append(f"{f'{crowd} and 1':>12}{parts}{'':20}{waited:12.0%} of the time")
    return iter(lines)


async def main() -> None:
    """Run what is asked for, and print each table."""
    parser = ArgumentParser(prog="python -m tests.bench.shaping")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", default="accuracy,fairness")
    options = parser.parse_args()
    every = sorted(os.sched_getaffinity(0))
    cores = {every[-1]}, set(every[:-1]) or {every[-1]}
    for name in options.only.split(","):
        print(f"\n{name}", flush=True)
        for line in await (accuracy if name == "accuracy" else fairness)(options.seconds, cores):
            print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["pour"]:
        pour(int(sys.argv[2]))
    elif sys.argv[1:2] == ["pace"]:
        pace(int(sys.argv[2]), float(sys.argv[3]))
    else:
        trio.run(main)
