"""The load generators: what is run against a proxy, and how its output becomes an outcome.

wrk sends HTTP requests and iperf3 bulk; ping-pongs are a program of our own (``pingpong``). Units
differ: requests, bytes, messages answered.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.programs import LOCAL, Cores, first, output_of


@dataclass(frozen=True)
class Outcome:
    """What a load generator says.

    Attributes:
        units: pieces of work that were done.
        seconds: that it took.
        p50: microseconds of the median piece, where it says so.
        p99: the same of the 99th percentile.
        most: the same of the slowest.
        errors: pieces that failed.

    """

    units: float
    seconds: float
    p50: float | None = None
    p99: float | None = None
    most: float | None = None
    errors: int = 0


class LoadError(Exception):
    """A load generator printed something that cannot be read."""


async def requests(
    port: int,
    seconds: int,
    cores: Cores,
    *,
    close: bool,
    prompt: bool = False,
    host: str = LOCAL,
    connections: int = 64,
) -> Outcome:
    """HTTP requests over so many connections; with ``close`` each request opens its own.

    With ``prompt`` the load goes before other programs on its core, where it may.
    """
    command = ["wrk", "--threads", "1", "--connections", str(connections)]
    command += ["--duration", f"{seconds}s", "--latency", "--timeout", "5s"]
    if close:
        command += ["--header", "Connection: close"]
    command += [f"http://{host}:{port}/"]
    return read_wrk(await output_of(first(command) if prompt else command, cores, seconds))


async def bulk(port: int, seconds: int, cores: Cores, *, reply: bool) -> Outcome:
    """One stream as fast as it goes, to the endpoint or, with ``reply``, to the client."""
    command = ["iperf3", "--client", LOCAL, "--port", str(port), "--time", str(seconds), "--json"]
    if reply:
        command += ["--reverse"]
    return read_iperf3(await output_of(command, cores, seconds))


async def stream(port: int, seconds: float, cores: Cores, *, pause: float = 0) -> Outcome:
    """Ping-pong on one connection, with a pause in milliseconds after each answer."""
    return await _pingpong("stream", port, (seconds, pause), cores, seconds)


async def datagrams(port: int, seconds: float, cores: Cores, *, flows: int) -> Outcome:
    """Ping-pong of datagrams on so many flows, one under way on each."""
    return await _pingpong("datagrams", port, (seconds, flows), cores, seconds)


async def scrape(port: int, seconds: float, cores: Cores, *, pause: float) -> Outcome:
    """Read /metrics, with a pause in milliseconds after each answer."""
    return await _pingpong("scrape", port, (seconds, pause), cores, seconds)


async def listing(port: int, seconds: float, cores: Cores, *, pause: float) -> Outcome:
    """Read the whole flow table, with a pause in milliseconds after each answer."""
    return await _pingpong("list", port, (seconds, pause), cores, seconds)


async def paced(
    port: int, seconds: float, cores: Cores, *, flows: int, rate: float
) -> dict[str, float]:
    """Small messages on many flows at this rate in all; what ``paced`` prints."""
    return await figures_of("paced", (port, seconds, flows, rate), cores, seconds)


async def figures_of(
    module: str, arguments: Sequence[float | str], cores: Cores, seconds: float
) -> dict[str, float]:
    """Run a load of ours, and read the last line it prints."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)]
    return last_figures(await output_of(command, cores, seconds))


def last_figures(text: str) -> dict[str, float]:
    """The figures in the last line of an output.

    Raises:
        LoadError: there are none.

    """
    try:
        found: dict[str, float] = json.loads(text.strip().rpartition("\n")[2])
    except ValueError as error:
        raise LoadError(f"a load printed no figures:\n{text[-1000:]}") from error
    return found


def pingpong(mode: str, port: int, numbers: Sequence[float]) -> list[str]:
    """The command of our own load generator."""
    return [sys.executable, "-m", "tests.bench.pingpong", mode, str(port), *map(str, numbers)]


async def _pingpong(
    mode: str, port: int, numbers: Sequence[float], cores: Cores, seconds: float
) -> Outcome:
    return Outcome(**json.loads(await output_of(pingpong(mode, port, numbers), cores, seconds)))


WRK_TIMES: Final = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}
"""Microseconds."""

WRK_TOTAL: Final = re.compile(r"^ *(\d+) requests in ([\d.]+)(us|ms|s|m),", re.MULTILINE)
WRK_PERCENTILE: Final = re.compile(r"^ *(50|99)% +([\d.]+)(us|ms|s|m)$", re.MULTILINE)
WRK_ERRORS: Final = (
    re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)"),
    re.compile(r"Non-2xx or 3xx responses: (\d+)"),
)


def read_wrk(text: str) -> Outcome:
    """Read what ``wrk --latency`` prints.

    Raises:
        LoadError: it has no totals.

    """
    total = WRK_TOTAL.search(text)
    if total is None:
        raise LoadError(f"wrk printed no total:\n{text}")
    times = {
        int(percent): float(value) * WRK_TIMES[unit]
        for percent, value, unit in WRK_PERCENTILE.findall(text)
    }
    faults = [match for pattern in WRK_ERRORS if (match := pattern.search(text))]
    return Outcome(
        units=int(total[1]),
        seconds=float(total[2]) * WRK_TIMES[total[3]] / 1e6,
        p50=times.get(50),
        p99=times.get(99),
        errors=sum(int(number) for match in faults for number in match.groups()),
    )


def read_iperf3(text: str) -> Outcome:
    """Read what ``iperf3 --json`` prints: the bytes that arrived.

    Raises:
        LoadError: it is no JSON, or says that the test failed.

    """
    try:
        received = json.loads(text)["end"]["sum_received"]
        return Outcome(units=received["bytes"], seconds=received["seconds"])
    except (ValueError, KeyError) as error:
        raise LoadError(f"iperf3 printed no sum: {error!r}:\n{text[:1000]}") from error
