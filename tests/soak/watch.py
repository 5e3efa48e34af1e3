"""Memory and descriptors of sockpair's processes, looked at again and again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import trio

from tests.e2e.subject import Sockpair

FLAT: Final = 4 * 1024
"""KiB that a process may hold more at the end than at the beginning."""

PART: Final = 0.2
"""Of the samples, what counts as the beginning, and as the end."""


@dataclass(frozen=True)
class Sample:
    """Of one process: its id, resident memory in KiB, open descriptors, CPU seconds."""

    pid: int
    memory: int
    descriptors: int
    cpu: float


async def look(sockpair: Sockpair) -> dict[str, Sample]:
    """A sample of each process, by its part; without those that are just beginning or ending."""
    workers = (await sockpair.status())["workers"]
    pids = {"sockpair": sockpair.pid}
    pids |= {
        f"worker {index}": row["pid"]
        for index, row in enumerate(workers)
        if row["pid"] != sockpair.pid
    }
    found = {name: sample(pid) for name, pid in pids.items()}
    return {name: each for name, each in found.items() if each is not None}


def sample(pid: int) -> Sample | None:
    folder = Path(f"/proc/{pid}")
    try:
        pages = int((folder / "statm").read_text().split()[1])
        times = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        descriptors = len(list((folder / "fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Sample(pid, pages * 4, descriptors, sum(map(int, times)) / 100)


class Watch:
    """Samples of a soak."""

    def __init__(self) -> None:
        self.samples: list[dict[str, Sample]] = []

    async def run(self, sockpair: Sockpair, every: float) -> None:
        while True:
            await trio.sleep(every)
            self.samples.append(await look(sockpair))

    def memory(self, name: str) -> tuple[float, float]:
        """The median of the beginning, and of the end."""
        course = [each[name].memory for each in self.samples if name in each]
        part = max(1, int(len(course) * PART))
        return median(course[:part]), median(course[-part:])

    def most_descriptors(self, name: str) -> int:
        return max(each[name].descriptors for each in self.samples if name in each)
