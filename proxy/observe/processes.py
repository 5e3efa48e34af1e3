"""What our processes use: the service's own, and those of its workers, where there are any.

Read here and not by the Prometheus client library, which knows one process, and lists its every
open descriptor for that: with 5,000 flows open it held the relay for 6 ms.

A worker that has ended was waited for, so the kernel adds what it used to what ours has used; a
sum of CPU seconds never goes backwards.

Source: proc(5), getrusage(2).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")

USER_TIME: Final = 11
"""Where utime stands in /proc/PID/stat, behind the name in parentheses; stime is the next."""

WHOLE: Final = 0
RESIDENT: Final = 1
"""Fields of /proc/PID/statm, in pages."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system CPU time of this process, of these, and of the children that have ended."""
    ours = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usages = map(resource.getrusage, ours)
    spent = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    ticks = 0
    for text in _read(_others(pids), "stat"):
        fields = text.rpartition(")")[2].split()
        ticks += int(fields[USER_TIME]) + int(fields[USER_TIME + 1])
    return spent + ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pids: Iterable[int], field: int) -> int:
    """Memory of this process and of these; ``field`` is ``WHOLE`` or ``RESIDENT``."""
    everybody = {os.getpid(), *pids}
    pages = sum(int(text.split()[field]) for text in _read(everybody, "statm"))
    return pages * resource.getpagesize()


def _others(pids: Iterable[int]) -> set[int]:
    return set(pids) - {os.getpid()}


def _read(pids: Iterable[int], name: str) -> Iterator[str]:
    """The files of those that live; one may end at any time."""
    for pid in pids:
        try:
            yield (PROC / str(pid) / name).read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
