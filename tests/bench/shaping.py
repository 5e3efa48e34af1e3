"""Limits: how exact a ceiling is, and how fair a bandwidth is divided.

    python -m tests.bench.shaping [--seconds S] [--only accuracy,fairness]

- **accuracy**: one flow that is sent all it takes, below ``bandwidth_reply`` of 64 kbit/s,
  10 Mbit/s and 1 Gbit/s, for so many seconds (10): what arrived, of what should have, between the
  first and the last byte; and the CPU for a GB beside that of a flow without a ceiling, whose
  sender keeps to the same rate by itself.
- **fairness**: a listener with ``bandwidth``, a client with 500 flows beside one with one: the part
  of each; and what the one has when the many are quiet.
Nothing is asserted; the goals are 97 to 101 %, half and half within 5 %, twice the CPU for a byte.
What limits cost that are not reached is told by ``limits``.
"""

from __future__ import annotations

import os
import socket
import sys
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from select import EPOLLIN, EPOLLOUT, epoll, select
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Final

import trio

from proxy.core.ceiling import piece_of
from tests.bench.peers import Route, Settings, Sockpair
from tests.bench.programs import LOCAL, Cores, Program, free_port, listens, running
from tests.bench.usage import usage_at_rest

RATES: Final = {"64 kbit/s": 8e3, "10 Mbit/s": 1.25e6, "1 Gbit/s": 1.25e8}

WHOLE: Final = 1.25e7
"""Bytes a second that flows share: 100 Mbit/s."""

MANY: Final = 500
CROWD, LONE = "127.0.0.2", "127.0.0.3"

CHUNK: Final = 1 << 18


def pour(port: int) -> None:
    """Be an endpoint that sends without end to whoever connects: ``python -m ... pour PORT``."""
    listening = socket.create_server((LOCAL, port), backlog=1024)
    data = bytes(CHUNK)
    poll = epoll()
    poll.register(listening.fileno(), EPOLLIN)
    streams: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listening.fileno():
                stream, _ = listening.accept()
                stream.setblocking(False)
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
) -> AsyncIterator[tuple[int, Program]]:
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
            yield listen, proxy


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
    async with proxied(keys, cores, rate) as (port, proxy):
        before = await usage_at_rest(proxy.pid)
        with client(LOCAL, port) as stream:
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


def divided(port: int, crowd: int, seconds: float) -> tuple[float, float]:
    """Bytes a second that the crowd and the lone client get, once all have begun."""
    poll = epoll()
    streams: dict[int, tuple[socket.socket, int]] = {}
    for index, source in enumerate([CROWD] * crowd + [LONE]):
        stream = client(source, port)
        stream.setblocking(False)
        streams[stream.fileno()] = stream, int(index == crowd)
        poll.register(stream.fileno(), EPOLLIN)
    taken = [0, 0]
    waste = bytearray(CHUNK)
    begin = monotonic() + 1.0
    began = 0.0
    while (now := monotonic()) < begin + seconds:
        if not began and now >= begin:
            began, taken = now, [0, 0]
        for fd, _ in poll.poll(0.1):
            stream, side = streams[fd]
            taken[side] += stream.recv_into(waste, CHUNK, socket.MSG_TRUNC)
    for stream, _ in streams.values():
        stream.close()
    return taken[0] / (now - began), taken[1] / (now - began)


async def fairness(seconds: float, cores: tuple[Cores, Cores]) -> Iterator[str]:
    """A crowd beside one, and one alone."""
    lines = [f"{'flows':>12}{'the many':>12}{'the one':>12}{'together':>12}   of the bandwidth"]
    keys = f'limits.bandwidth = "{WHOLE * 8:.0f}bit/s"'
    for crowd in (MANY, 0):
        async with proxied(keys, cores) as (port, _):
            many, one = await trio.to_thread.run_sync(divided, port, crowd, seconds)
        parts = "".join(f"{each / WHOLE:12.2%}" for each in (many, one, many + one))
        lines.append(f"{f'{crowd} and 1':>12}{parts}")
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
