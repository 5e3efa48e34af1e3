"""The driver: a crowd, a sockpair, and many upgrades or kills at moments of chance."""

from __future__ import annotations

import http.client
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import trio

from proxy.engine.splice import FILES_PER_PIPE, KEPT
from tests.e2e.patience import PATIENCE
from tests.e2e.subject import Settings
from tests.handover.crowd import Place
from tests.handover.crowds import Crowds, crowds, places
from tests.handover.house import House, house
from tests.handover.kinds import DATAGRAMS, STREAMS, divide
from tests.handover.ledger import (
    Rows,
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

LIVE: Final = re.compile(
    r'^sockpair_flows(?:_lost_total)?\{(?:.*,)?listener="(\w+)".*\} (\S+)$', re.MULTILINE
)
"""The samples of flows that live, or were lost; to read all others would take its time."""

EARLY: Final = 5
"""Deeds after which processes hold what they will hold."""

OTHERS: Final = 8
"""Descriptors that a process may have more than another in its place: a standby's, or commands'."""

GROWTH: Final = 4 * FLAT
"""KiB that a process may hold more than its predecessor did early on: flows that ended are kept."""

IN_VAIN: Final = 3
"""Upgrades that may find the machine too busy for another process to begin in time."""

IN_HANDS: Final = 64
"""Datagrams that a worker has received and not sent on, at most: one call's. With it they die."""

LISTED_MOST: Final = 300
"""Flows whose rows are all looked at after each deed; of more each time two groups."""

TOLD: Final = 6 * PATIENCE
"""Seconds until sockpair tells of all flows after a deed, or has lost them."""

LOOKING: Final = 0.2
"""Seconds between two looks at a table of thousands of flows."""

SCRAPING: Final = 0.3
"""Seconds between two scrapes, each of which costs sockpair a hundredth of one."""

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
        self.lost = self.dropped = self.scrapes = 0
        self._lasting = [name for name, place in both.places.items() if is_lasting(place)]
        self._known: dict[str, Rows] = {}
        self._say = say
        self._chance = Random(f"{plan.seed} deeds")

    async def run(self) -> None:
        """All of it, from the beginning of the flows to their end."""
        idle = await look(self.house)
        await self.both.open()
        await self._wait_all()
        self._known = (await read(self.house, self._lasting)).rows
        async with trio.open_nursery() as scraping:
            scraping.start_soon(self.scrape)
            await self._do_all()
            scraping.cancel_scope.cancel()
        drops = dropped(self.both.places)
        await self.both.stop()
        await self._settle(drops)
        self.faults += await self._left_open(idle)

    async def _do_all(self) -> None:
        for deed in self._deeds():
            await trio.sleep(self.plan.pause * self._chance.uniform(0.5, 1.5))
            await self._do(deed)
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

    async def _wait_all(self) -> None:
        """Wait until sockpair tells of all flows, or should have long ago."""
        wanted = sum(self.both.places[name]["count"] for name in self._lasting)
        with trio.move_on_after(TOLD):
            while await self._told() < wanted:
                await trio.sleep(LOOKING)

    async def _told(self) -> int:
        """How many of the lasting flows there are, or were lost."""
        text = await self.house.get("/metrics")
        return sum(int(float(value)) for name, value in LIVE.findall(text) if name in self._lasting)

    def _listed(self) -> list[str]:
        """The groups whose rows are looked at this time: to list thousands of flows takes long."""
        if self.plan.flows + self.plan.datagram_flows <= LISTED_MOST:
            return self._lasting
        first = self.deeds.total() % len(self._lasting)
        return [self._lasting[first - 1], self._lasting[first]]

    async def _do(self, deed: str) -> None:
        """Do it, and compare what is told of the flows afterwards with what was before."""
        await self.both.look()  # so that waits are counted from here on
        began = trio.current_time()
        await self._does(deed)
        self.times.append(trio.current_time() - began)
        self.deeds[deed] += 1
        await self._wait_all()
        after = await read(self.house, self._listed())
        found = count(after, self.both.places)
        for name, rows in after.rows.items():
            found += compare(self._known[name], rows)
        self._known |= after.rows
        self.faults += [f"after {deed} {self.deeds[deed]}: {each}" for each in found]
        self.samples.append(await look(self.house))
        told = await self.both.look()
        self.waits.append(told["waits"][-1])
        self._say(
            f"{deed} {self.deeds[deed]}: {self.times[-1]:.2f} s; {told['live']} streams, "
            f"{told['talking'] + told['fresh']} flows of datagrams, longest wait "
            f"{1000 * told['waits'][-1]:.0f} ms; {self._faults} faults"
        )

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
            while not await house.upgrade():
                self.deeds["upgrade in vain"] += 1
                assert self.deeds["upgrade in vain"] <= IN_VAIN, "the machine is too busy"
        else:
            await house.kill_worker(self._chance.choice(await house.workers()))

    async def _settle(self, drops: dict[str, int]) -> None:
        """Compare all the books, when all has ended."""
        self.faults += [str(fault) for fault in self.both.hard_faults()]
        self.faults += self._datagrams_lost(drops)
        if not self.deeds["kill"]:
            self.faults += [str(fault) for fault in self.both.wordless()]
        await self.house.wait_flows(0, transport="tcp")
        if not self.both.hard_faults():
            self.faults += balance(await self.house.metrics(), self.both.places, self.both.accounts)
        self.faults += self._leaks()

    def _datagrams_lost(self, drops: dict[str, int]) -> list[str]:
        """Where more were lost than the kernel dropped, and killed workers had in their hands."""
        self.lost, self.dropped = self.both.lost().total(), sum(drops.values())
        excess = {
            group: lost - drops.get(group, 0)
            for group, lost in self.both.lost().items()
            if lost > drops.get(group, 0)
        }
        if sum(excess.values()) <= IN_HANDS * self.deeds["kill"]:
            return []
        return [f"{group}: {more} datagrams lost" for group, more in excess.items()]

    def _leaks(self) -> list[str]:
        """What processes hold at the end that their predecessors did not early on."""
        if len(self.samples) <= EARLY:
            return []
        first, last = self.samples[EARLY], self.samples[-1]
        return [
            f"{name}: {first[name].memory} KiB grew to {last[name].memory}"
            for name in first.keys() & last.keys()
            if last[name].memory > first[name].memory + GROWTH
        ]

    async def _left_open(self, idle: dict[str, Sample]) -> list[str]:
        """Processes that have more open than they need, now that no stream is left.

        What they have open while streams live says little: bulk borrows pipes, up to
        ``splice.PIPES``, and each datagram of a fresh flow that is lost leaves a flow behind.
        """
        status, last = await self.house.status(), await look(self.house)
        flows = {row["pid"]: row["flows"] for row in status["workers"]}
        return [
            f"{name}: {idle[name].descriptors} descriptors at first, {sample.descriptors} at last, "
            f"with {flows.get(sample.pid, 0)} flows of datagrams"
            for name, sample in last.items()
            if sample.descriptors
            > idle[name].descriptors + flows.get(sample.pid, 0) + FILES_PER_PIPE * KEPT + OTHERS
        ]

    def report(self) -> str:
        plan = self.plan
        done = ", ".join(f"{number} {deed}s" for deed, number in self.deeds.items()) or "nothing"
        lines = [
            f"{plan.flows} TCP and {plan.datagram_flows} UDP flows, {plan.workers} workers, seed "
            f"{plan.seed}; done: {done}; {self.lost} datagrams lost, "
            f"{self.dropped} dropped by the kernel; {len(self.both.wordless())} connections to "
            f"endpoints begun once more; {self.scrapes} scrapes"
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
