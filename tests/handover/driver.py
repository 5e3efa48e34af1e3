"""The driver: a crowd, a sockpair, and many upgrades or kills at moments of chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import trio

from proxy.engine.splice import FILES_PER_PIPE, KEPT
from tests.e2e.patience import PATIENCE, until
from tests.e2e.subject import Settings
from tests.handover.crowd import Place
from tests.handover.crowds import Crowds, crowds, places
from tests.handover.house import House, house
from tests.handover.kinds import DATAGRAMS, STREAMS, divide
from tests.handover.ledger import (
    Reading,
    balance,
    compare,
    count,
    dropped,
    is_lasting,
    read,
)
from tests.handover.scene import forwards
from tests.soak.watch import FLAT, Sample, look

EARLY: Final = 5
"""Deeds after which processes hold what they will hold."""

GROWTH: Final = 4 * FLAT
"""KiB that a process may hold more than its predecessor did early on: flows that ended are kept."""

EXPECTED: Final = frozenset({"worker_lost"})
"""Errors in the log that a deed brings about."""

FAULTS_MOST: Final = 50
"""After so many nothing new is learnt from going on."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        flows, datagram_flows: in the crowd.
        upgrades, kills: how many of each.
        workers: of sockpair.
        survive: what the flows of all listeners live on through; None for the default.
        pause: seconds between two deeds, on average.
        seed: of all chance.
        engine: more keys of the table.

    """

    flows: int = 1000
    datagram_flows: int = 1000
    upgrades: int = 0
    kills: int = 0
    workers: int = 1
    survive: str | None = None
    pause: float = 1.0
    seed: int = 1
    engine: dict[str, int | str] = field(default_factory=dict)

    def groups(self) -> dict[str, Place]:
        return places(
            divide(self.flows, {name: kind.share for name, kind in STREAMS.items()})
            | divide(self.datagram_flows, {name: kind.share for name, kind in DATAGRAMS.items()})
        )


@dataclass
class Outcome:
    """What a drive has shown.

    Attributes:
        faults: what is not as it must be, one line each.
        report: for people.

    """

    faults: list[str]
    report: str


class Drive:
    """One drive.

    Args:
        plan: what to do.
        both: the crowd.
        running: sockpair, in front of it.
        say: where progress is told.

    """

    def __init__(
        self, plan: Plan, both: Crowds, running: House, say: Callable[[str], object]
    ) -> None:
        self.plan = plan
        self.both = both
        self.house = running
        self.faults: list[str] = []
        self.deeds: Counter[str] = Counter()
        self.times: list[float] = []
        self.waits: list[float] = []
        self.samples: list[dict[str, Sample]] = []
        self.lost = 0
        self._say = say
        self._chance = Random(f"{plan.seed} deeds")

    async def run(self) -> None:
        """All of it, from the beginning of the flows to their end."""
        await self.both.open()
        reading = await self._all_there()
        for deed in self._deeds():
            await trio.sleep(self.plan.pause * self._chance.uniform(0.5, 1.5))
            reading = await self._do(deed, reading)
            if self._faults > FAULTS_MOST:
                self.faults.append("and so on: given up")
                break
        drops = dropped(self.both.places)
        await self.both.stop()
        await self._settle(drops)

    @property
    def _faults(self) -> int:
        return len(self.faults) + len(self.both.hard_faults())

    def _deeds(self) -> list[str]:
        deeds = ["upgrade"] * self.plan.upgrades + ["kill"] * self.plan.kills
        self._chance.shuffle(deeds)
        return deeds

    async def _all_there(self) -> Reading:
        """Wait until sockpair has all flows, and those of datagrams their answers."""
        wanted = sum(each["count"] for each in self.both.places.values() if is_lasting(each))

        async def look() -> Reading | None:
            reading = await read(self.house, self.both.places)
            return reading if len(reading.rows) >= wanted else None

        found: Reading = await until(look, f"{wanted} flows in the table", 3 * PATIENCE)
        return found

    async def _do(self, deed: str, before: Reading) -> Reading:
        """Do it, and compare what is told of the flows afterwards with what was before."""
        await self.both.look()  # so that waits are counted from here on
        began = trio.current_time()
        if deed == "upgrade":
            await self.house.upgrade()
        else:
            await self.house.kill_worker(self._chance.choice(await self.house.workers()))
        self.times.append(trio.current_time() - began)
        self.deeds[deed] += 1
        after = await read(self.house, self.both.places)
        self.faults += [
            f"after {deed} {self.deeds[deed]}: {each}"
            for each in (compare(before, after) + count(after, self.both.places))
        ]
        self.samples.append(await look(self.house))
        told = await self.both.look()
        self.waits.append(told["waits"][-1])
        self._say(
            f"{deed} {self.deeds[deed]}: {self.times[-1]:.2f} s; {told['live']} streams, "
            f"{told['talking'] + told['fresh']} flows of datagrams, longest wait "
            f"{1000 * told['waits'][-1]:.0f} ms; {self._faults} faults"
        )
        return after

    async def _settle(self, drops: dict[str, int]) -> None:
        """Compare all the books, when all has ended."""
        self.faults += [str(fault) for fault in self.both.hard_faults()]
        for group, lost in self.both.lost().items():
            if lost > drops.get(group, 0):
                self.faults.append(
                    f"{group}: {lost} datagrams lost, the kernel dropped {drops.get(group, 0)}"
                )
        await self.house.wait_flows(0, transport="tcp")
        if not self.both.hard_faults():
            self.faults += balance(await self.house.metrics(), self.both.places, self.both.accounts)
        self.faults += self._leaks()
        self.lost = sum(drops.values())

    def _leaks(self) -> list[str]:
        """What processes hold at the end that their predecessors did not early on."""
        if len(self.samples) <= EARLY:
            return []
        first, last = self.samples[EARLY], self.samples[-1]
        faults = []
        for name in first.keys() & last.keys():
            if last[name].memory > first[name].memory + GROWTH:
                faults.append(f"{name}: {first[name].memory} KiB grew to {last[name].memory}")
            if last[name].descriptors > first[name].descriptors + FILES_PER_PIPE * KEPT:
                faults.append(
                    f"{name}: {first[name].descriptors} descriptors, {last[name].descriptors} later"
                )
        return faults

    def report(self) -> str:
        plan = self.plan
        done = ", ".join(f"{number} {deed}s" for deed, number in self.deeds.items()) or "nothing"
        lines = [
            f"{plan.flows} TCP and {plan.datagram_flows} UDP flows, {plan.workers} workers, seed "
            f"{plan.seed}; done: {done}; datagrams that the kernel dropped: {self.lost}"
        ]
        for what, course in (("deeds", self.times), ("longest wait for an answer", self.waits)):
            if course:
                lines.append(
                    f"{what}, ms: median {1000 * median(course):.0f}, "
                    f"longest {1000 * max(course):.0f}"
                )
        for name in self.samples[0] if self.samples else ():
            course = [each[name] for each in self.samples if name in each]
            lines.append(
                f"{name}: resident KiB {course[0].memory} to {course[-1].memory}, at most "
                f"{max(each.memory for each in course)}; descriptors {course[0].descriptors} to "
                f"{course[-1].descriptors}"
            )
        return "\n".join([*lines, self.both.pauses()])


async def drive(folder: Path, plan: Plan, say: Callable[[str], object] = lambda _: None) -> Outcome:
    """Begin everything, do what is planned, and tell what has been seen.

    Args:
        folder: an empty one, for files and logs.
        plan: what to do.
        say: where progress is told.

    """
    groups = plan.groups()
    engine: dict[str, int | str] = {"workers": plan.workers, "drain_timeout": "10s", **plan.engine}
    settings = Settings(folder, forwards(groups, plan.survive), engine)
    async with crowds(groups, plan.seed) as both, house(settings) as running:
        driven = Drive(plan, both, running, say)
        await driven.run()
    return Outcome([*driven.faults, *loud(running)], driven.report())


def loud(running: House) -> list[str]:
    """Errors in the log that no deed explains."""
    return [
        f"log: {record}"
        for record in running.log_records()
        if record["level"] in ("error", "critical") and record["event"] not in EXPECTED
    ]
