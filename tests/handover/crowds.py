"""Both halves of a crowd, as a test or a driver speaks to them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from statistics import median, quantiles
from typing import Any, Final

import trio

from tests.e2e.patience import PATIENCE, SLOWNESS, until
from tests.e2e.program import ROOT, free_port
from tests.handover.crowd import Order, Place
from tests.handover.kinds import DATAGRAMS, STREAMS
from tests.handover.told import LOST, WORDLESS, Account, Fault

STUCK: Final = 20 * SLOWNESS
"""Seconds after which a flow that should move and does not is a fault."""

FAULTS_SHOWN: Final = 40

ENDING: Final = 120 * SLOWNESS
"""Seconds until all flows have come to their end: what is throttled takes its time."""


class Half:
    """One process of a crowd."""

    def __init__(self, process: trio.Process, faults: list[Fault]) -> None:
        self._process = process
        self._faults = faults
        self._sender, self._answers = trio.open_memory_channel[Any](10)

    async def read(self) -> None:
        """Hear what it says, until it leaves."""
        rest = b""
        assert self._process.stdout is not None
        async with self._sender:
            async for data in self._process.stdout:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    told = json.loads(line)
                    if "fault" in told:
                        self._faults.append(Fault(*told["fault"]))
                    else:
                        await self._sender.send(told["done"])

    async def answer(self, seconds: float = 6 * PATIENCE) -> Any:
        with trio.fail_after(seconds):
            return await self._answers.receive()

    async def obey(self, word: str, seconds: float = 6 * PATIENCE) -> Any:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(f"{word}\n".encode())
        return await self.answer(seconds)


class Crowds:
    """The clients and the endpoints.

    Attributes:
        faults: seen so far, by either.
        places: of each group of flows.

    """

    def __init__(self, places: Mapping[str, Place], seed: int, stuck: float) -> None:
        self.places = places
        self.seed = seed
        self.faults: list[Fault] = []
        self.clients: Half
        self.endpoints: Half
        self._order = Order(seed=seed, stuck=stuck, groups=dict(places))
        self.accounts: dict[str, dict[int, Account]] = {"clients": {}, "endpoints": {}}

    async def begin(self, nursery: trio.Nursery) -> None:
        self.endpoints = await self._start(nursery, "endpoints")
        self.clients = await self._start(nursery, "clients")

    async def _start(self, nursery: trio.Nursery, side: str) -> Half:
        command = [sys.executable, "-m", "tests.handover.crowd", side, json.dumps(self._order)]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
        )
        half = Half(process, self.faults)
        nursery.start_soon(self._serve, process, half)
        await half.answer()
        return half

    @staticmethod
    async def _serve(process: trio.Process, half: Half) -> None:
        try:
            await half.read()
            await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                if process.poll() is None:
                    process.kill()
                await process.wait()

    async def open(self) -> None:
        """Begin all flows."""
        await self.clients.obey("open")

    async def look(self) -> dict[str, Any]:
        """How the clients stand."""
        told: dict[str, Any] = await self.clients.obey("look")
        return told

    async def stop(self, seconds: float = ENDING) -> None:
        """Bring all flows to their end, and compare what both ends have seen of each."""
        await self.endpoints.obey("brace")
        await self.clients.obey("brace")
        try:
            async with trio.open_nursery() as nursery:
                for half in (self.clients, self.endpoints):
                    nursery.start_soon(half.obey, "stop", seconds)
        except* trio.TooSlowError:
            self._note("all", 0, f"flows have not come to their end within {seconds:g} s")
        await self._tell(self.clients, "clients")
        await self._tell(self.endpoints, "endpoints")
        sent = self._datagrams("clients", "sent")

        async def have_come() -> bool:
            if self._datagrams("endpoints", "received") < sent:
                await self._tell(self.endpoints, "endpoints")
            return self._datagrams("endpoints", "received") >= sent

        with suppress(AssertionError):  # those that are missing are found below
            await until(have_come, "datagrams", SLOWNESS)
        self._compare()

    async def _tell(self, half: Half, side: str) -> None:
        told = await half.obey("tell")
        self.accounts[side] = {int(flow): each for flow, each in told["accounts"].items()}

    def _datagrams(self, side: str, what: str) -> int:
        return sum(
            each[what]  # type: ignore[literal-required]
            for each in self.accounts[side].values()
            if self._is_lasting_talk(each["group"])
        )

    def _is_lasting_talk(self, group: str) -> bool:
        kind = DATAGRAMS.get(self.places[group]["kind"])
        return kind is not None and not kind.fresh

    def _compare(self) -> None:
        """Find what one end has sent, and the other has not received, though it ended in order."""
        bad = {fault.flow for fault in self.faults}
        for flow, client in self.accounts["clients"].items():
            group = client["group"]
            streams = self.places[group]["kind"] in STREAMS
            if flow in bad or not (streams or self._is_lasting_talk(group)):
                continue
            endpoint = self.accounts["endpoints"].get(flow)
            if endpoint is None:
                if client["sent"]:
                    self._note(group, flow, "no endpoint knows of it")
            elif streams:
                if not client["done"] or not endpoint["done"]:
                    self._note(group, flow, "it did not come to its end")
                for one, other in ((client, endpoint), (endpoint, client)):
                    if one["sent"] != other["received"]:
                        self._note(group, flow, f"{one['sent']} sent, {other['received']} received")
            else:
                for missing in range(endpoint["received"], client["sent"]):
                    self.faults.append(Fault("endpoint", group, flow, "original", missing, LOST))

    def _note(self, group: str, flow: int, what: str) -> None:
        self.faults.append(Fault("driver", group, flow, "original", 0, what))

    def hard_faults(self) -> list[Fault]:
        """All but those that the kill of a worker may bring about."""
        return [fault for fault in self.faults if fault.what not in (LOST, WORDLESS)]

    def wordless(self) -> list[Fault]:
        """Connections to endpoints that were reset before the first byte."""
        return [fault for fault in self.faults if fault.what == WORDLESS]

    def lost(self) -> Counter[str]:
        """Datagrams that did not come, by group; the answer to one of them is not another one."""
        lost = {(each.group, each.flow, each.place) for each in self.faults if each.what == LOST}
        return Counter(group for group, _, _ in lost)

    def pauses(self) -> str:
        """How long flows that wait for answers have waited, at their longest; for people."""
        lines = []
        for group in self.places:
            found = [
                each["pause"]
                for each in self.accounts["clients"].values()
                if each["group"] == group and each["pause"]
            ]
            if len(found) > 1:
                cuts = quantiles(found, n=100)
                lines.append(
                    f"{group}: longest pause of a flow, ms: median {1000 * median(found):.0f}, "
                    f"p99 {1000 * cuts[98]:.0f}, max {1000 * max(found):.0f}"
                )
        return "\n".join(lines)


def places(counts: Mapping[str, int]) -> dict[str, Place]:
    """Ports for so many flows of each kind; each is a group."""
    return {
        kind: Place(kind=kind, count=count, listener=free_port(), endpoint=free_port())
        for kind, count in counts.items()
        if count
    }


@asynccontextmanager
async def crowds(
    places: Mapping[str, Place], seed: int = 1, stuck: float = STUCK
) -> AsyncIterator[Crowds]:
    """Both halves, ready; they leave at the end of the block."""
    async with trio.open_nursery() as nursery:
        both = Crowds(places, seed, stuck)
        await both.begin(nursery)
        yield both
        nursery.cancel_scope.cancel()
