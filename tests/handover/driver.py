"""The driver: a crowd, a sockpair, and many upgrades or kills at moments of chance."""

from __future__ import annotations

import http.client
import json
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
    counters_of,
    dropped,
    gone_back,
    is_lasting,
    read,
)
from tests.handover.scene import forwards
from tests.handover.served import ServedHouse, served
from tests.soak.watch import FLAT, Sample, look

EARLY: Final = 5
"""Deeds after which processes hold what they will hold."""

GROWTH: Final = 4 * FLAT
"""KiB that a process may hold more than its predecessor did early on: flows that ended are kept."""

SCRAPING: Final = 0.1
"""Seconds between two scrapes."""

EXPECTED: Final = frozenset({"worker_lost"})
"""Errors in the log that a deed brings about."""

FAULTS_MOST: Final = 50
"""After so many nothing new is learnt from going on."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        flows, datagram_flows: in the crowd.
        upgrades: by ``sockpair upgrade``.
        restarts: by a service manager.
        kills: of workers.
        deaths: of supervisors, under a service manager.
        workers: of sockpair.
        survive: what the flows of all listeners live on through; None for the default.
        pause: seconds between two deeds, on average.
        seed: of all chance.
        engine: more keys of the table.

    """

    flows: int = 1000
    datagram_flows: int = 1000
    upgrades: int = 0
    restarts: int = 0
    kills: int = 0
    deaths: int = 0
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
        self.lost = self.scrapes = 0
        self._say = say
        self._chance = Random(f"{plan.seed} deeds")

    async def run(self) -> None:
        """All of it, from the beginning of the flows to their end."""
        await self.both.open()
        reading = await self._all_there()
        async with trio.open_nursery() as scraping:
            scraping.start_soon(self.scrape)
            await self._do_all(reading)
            scraping.cancel_scope.cancel()
        drops = dropped(self.both.places)
        await self.both.stop()
        await self._settle(drops)

    async def _do_all(self, reading: Reading) -> None:
        for deed in self._deeds():
            await trio.sleep(self.plan.pause * self._chance.uniform(0.5, 1.5))
            reading = await self._do(deed, reading)
            if self._faults > FAULTS_MOST:
                self.faults.append("and so on: given up")
                break

    @property
    def _faults(self) -> int:
        return len(self.faults) + len(self.both.hard_faults())

    def _deeds(self) -> list[str]:
        plan = self.plan
        deeds = ["upgrade"] * plan.upgrades + ["restart"] * plan.restarts
        deeds += ["kill"] * plan.kills + ["death"] * plan.deaths
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
        await self._does(deed)
        self.times.append(trio.current_time() - began)
        self.deeds[deed] += 1
        after = await self._read_all(before)
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

    async def _read_all(self, before: Reading) -> Reading:
        """Read when all flows are there that were before, or long after they should be."""
        with trio.move_on_after(PATIENCE):
            while (await read(self.house, self.both.places)).rows.keys() < before.rows.keys():
                await trio.sleep(0.05)
        return await read(self.house, self.both.places)

    async def scrape(self) -> None:
        """Read the metrics all the time, as Prometheus does, whoever answers: none may go back."""
        before: dict[str, float] = {}
        while True:
            await trio.sleep(SCRAPING)
            try:
                status, text = await self.house.ask("GET", "/metrics")
            except (OSError, http.client.HTTPException):
                continue  # nobody is there just now
            if status == 200:
                after = counters_of(text)
                self._told_less(gone_back(before, after))
                before, self.scrapes = after, self.scrapes + 1

    def _told_less(self, faults: list[str]) -> None:
        if faults:
            when = f"between deeds {self.deeds.total()} and {self.deeds.total() + 1}"
            self.faults.append(f"a scrape {when}: {len(faults)} counters, the first: {faults[0]}")

    async def _does(self, deed: str) -> None:
        house = self.house
        if isinstance(house, ServedHouse) and deed in ("restart", "death"):
            await (house.restart() if deed == "restart" else house.lose())
        elif deed == "upgrade":
            await house.upgrade()
        else:
            await house.kill_worker(self._chance.choice(await house.workers()))

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
            f"{plan.seed}; done: {done}; datagrams that the kernel dropped: {self.lost}; "
            f"{self.scrapes} scrapes"
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
    under = served if plan.restarts or plan.deaths else house
    async with crowds(groups, plan.seed) as both, under(settings) as running:
        driven = Drive(plan, both, running, say)
        try:
            await driven.run()
        except AssertionError as error:  # of what was waited for in vain
            driven.faults += [str(error), *(str(fault) for fault in both.hard_faults())]
    return Outcome([*driven.faults, *loud(running)], driven.report())


def loud(running: House) -> list[str]:
    """Errors in the log that no deed explains, and what is no record of it: a traceback."""
    faults = []
    for line in "".join(
        each.errors.read_text(errors="replace") for each in running.programs
    ).splitlines():
        record = json.loads(line) if line.startswith("{") else {"level": "error", "event": line}
        if record["level"] in ("error", "critical") and record["event"] not in EXPECTED:
            faults.append(f"log: {line}")
    return faults[:FAULTS_MOST]
