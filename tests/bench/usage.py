"""What a proxy consumed: CPU and memory of all its processes, read from /proc.

CPU is what is compared, because it holds still on a machine that is shared, where rates and times
do not. The sum of user and system time comes from the scheduler and is exact, up to the tick it
is rounded to (10 ms); how it is split between the two is sampled by the clock.

What else ran on the proxy's core meanwhile is told beside it: a run in which that is much should be
made again when the machine is quiet.

A proxy's processes are those of its session, with all their threads. A reading is taken when the
proxy has come to rest, so that work it put off (closing, logging) is counted with what caused it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tests.bench.programs import Cores

TICK: Final = 1 / os.sysconf("SC_CLK_TCK")

LOOK_AGAIN: Final = 0.1
"""Seconds without a tick of CPU that count as rest."""

REST: Final = 3.0
"""Seconds that a proxy gets to come to rest."""

QUIET_SPAN: Final = 0.5
QUIET_SHARE: Final = 0.05
"""Cores that are busy for no more than this share of so many seconds are quiet."""

# Places in /proc/PID/stat after the command's name, which ends with the last ")" (proc(5)).
SESSION, USER, SYSTEM = 3, 11, 12

# Of a line in /proc/stat after the core's name: user, nice, system, irq, softirq, steal.
BUSY = 0, 1, 2, 5, 6, 7


@dataclass(frozen=True)
class Usage:
    """Seconds of CPU since the start, and bytes of memory now."""

    user: float
    system: float
    resident: int

    @property
    def cpu(self) -> float:
        """Seconds, user and system."""
        return self.user + self.system


def usage_of(session: int) -> Usage:
    """Add up what the processes of a session use."""
    user = system = resident = 0
    for folder, fields in _processes(session):
        with suppress(OSError):  # it has ended meanwhile
            user += int(fields[USER])
            system += int(fields[SYSTEM])
            resident += _resident(folder)
    return Usage(user * TICK, system * TICK, resident)


async def usage_at_rest(session: int) -> Usage:
    """Wait until the processes of a session do nothing, and add up what they use."""
    usage = usage_of(session)
    with trio.move_on_after(REST):
        while True:
            await trio.sleep(LOOK_AGAIN)
            before, usage = usage, usage_of(session)
            if before == usage:
                break
    return usage


def threads_of(session: int) -> dict[int, float]:
    """Seconds of CPU that each thread of the processes of a session has used."""
    found = {}
    for folder, _ in _processes(session):
        with suppress(OSError):
            found |= {int(thread.name): _seconds(thread) for thread in _threads(folder)}
    return found


def nanoseconds(session: int) -> int:
    """Nanoseconds of CPU that threads of a session's processes have used (sched-stats)."""
    total = 0
    for folder, _ in _processes(session):
        with suppress(OSError):
            reports = [(thread / "schedstat").read_text() for thread in _threads(folder)]
            total += sum(int(report.split()[0]) for report in reports)
    return total


async def threads_at_rest(session: int) -> dict[int, float]:
    """Wait until the processes of a session do nothing, and tell their threads apart."""
    await usage_at_rest(session)
    return threads_of(session)


def core_seconds(core: int) -> float:
    """Seconds that a core has been busy since the machine was started (proc(5), /proc/stat)."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            return TICK * sum(int(ticks[index]) for index in BUSY)
    return 0.0


async def quiet(cores: Cores, seconds: float) -> bool:
    """Wait until nothing much runs on these cores; false if so many seconds were not enough."""
    with trio.move_on_after(seconds):
        while True:
            before = sum(map(core_seconds, cores))
            await trio.sleep(QUIET_SPAN)
            if sum(map(core_seconds, cores)) - before <= QUIET_SHARE * QUIET_SPAN * len(cores):
                return True
    return False


def stat_fields(text: str) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the second may hold spaces and brackets."""
    return text[text.rindex(")") + 2 :].split()


def _processes(session: int) -> Iterator[tuple[Path, list[str]]]:
    """The processes of a session, and what their stat says."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                fields = stat_fields((folder / "stat").read_text())
                if int(fields[SESSION]) == session:
                    yield folder, fields


def _threads(process: Path) -> Iterator[Path]:
    return (process / "task").iterdir()


def _seconds(thread: Path) -> float:
    fields = stat_fields((thread / "stat").read_text())
    return TICK * (int(fields[USER]) + int(fields[SYSTEM]))


def _resident(folder: Path) -> int:
    """Bytes; smaps_rollup counts pages, while the figure in stat is up to some hundred KiB off."""
    for line in (folder / "smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    return 0
