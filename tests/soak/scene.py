"""The scene of a soak: which listeners there are, what stands behind them, and the clients' books.

Each kind of traffic has a listener of its own, so that what its clients have counted can be laid
beside what sockpair and the endpoints have.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final

from tests.e2e.program import Program, free_port, program
from tests.e2e.subject import Forward, Sockpair, UnixForward
from tests.soak.endpoint import HOST
from tests.soak.gate import Gate

KINDS: Final = {
    "echo": "echo",
    "bulk": "echo",
    "half": "digest",
    "slow": "source",
    "reset": "reset",
    "torn": "echo",
    "held": "echo",
    "doomed": "echo",
    "spare": "echo",
    "unix": "echo",
    "game": "answer",
    "void": "silence",
}
"""What the endpoints of each listener do."""

DATAGRAMS: Final = frozenset({"game", "void"})

LIMITS: Final = {
    "game": {"idle": "10s"},  # far longer than its clients are silent
    "void": {"unreplied": "2s"},
    "torn": {"linger": "1s"},  # its endpoint takes nothing more, as nobody takes its answers
}

INEXACT: Final = frozenset({"torn", "doomed"})
"""Where flows are cut while bytes are on their way: how many arrived nobody can know."""


@dataclass
class Tally:
    """What the clients of one listener have counted; bytes of whole exchanges only."""

    opened: int = 0
    sent: int = 0
    received: int = 0
    datagrams: int = 0
    ends: Counter[str] = field(default_factory=Counter)


class Endpoints:
    """A process of endpoints, which may be killed and started again."""

    def __init__(self, name: str, folder: Path, served: list[str]) -> None:
        self._name = name
        self._folder = folder
        self._served = [
            f"{each}:{KINDS[each]}:{folder / 'unix' if each == 'unix' else free_port()}"
            for each in served
        ]
        self.program: Program

    def text(self, name: str) -> str:
        """Where a listener's flows go to."""
        (where,) = (each.split(":")[2] for each in self._served if each.split(":")[0] == name)
        return f"unix://{where}" if where.startswith("/") else f"{HOST}:{where}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        output = self._folder / f"{self._name}.out"
        command = [sys.executable, "-m", "tests.soak.endpoint", *self._served]
        async with program(
            command, self._folder, lambda: "ready" in output.read_text(), name=self._name
        ) as self.program:
            yield

    async def books(self) -> dict[str, dict[str, int]]:
        """End it, and read what it has counted."""
        assert await self.program.stop() == 0, self.program.story()
        books: dict[str, dict[str, int]] = json.loads(
            self.program.output.read_text().removeprefix("ready\n")
        )
        return books


class Scene:
    """Everything that clients, and those who disturb them, have in common."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.gate = Gate()
        self.stopping = False
        self.tallies = {name: Tally() for name in KINDS}
        self.deeds: Counter[str] = Counter()
        self.steady = Endpoints("steady", folder, list(KINDS))
        self.second = Endpoints("second", folder, ["echo"])
        self.mortal = Endpoints("mortal", folder, ["doomed"])
        self.forwards = {name: self._forward(name) for name in KINDS}
        self.sockpair: Sockpair

    def _forward(self, name: str) -> Forward:
        endpoints = [self.steady.text(name)]
        if name == "echo":
            endpoints.append(self.second.text(name))
        if name == "doomed":
            endpoints.insert(0, self.mortal.text(name))
        if name == "unix":
            return UnixForward(name, "unix", endpoints, host=str(self.folder / "listener"))
        transport = "udp" if name in DATAGRAMS else "tcp"
        return Forward(name, transport, endpoints, limits=LIMITS.get(name, {}))

    def random(self, who: str) -> Random:
        """Chance for one of them: the same for the same seed."""
        return Random(f"{self.seed} {who}")

    def usual(self) -> list[Forward]:
        """The listeners that are there all the time."""
        return [forward for name, forward in self.forwards.items() if name != "spare"]

    def everything(self, **limits: str) -> list[Forward]:
        """All listeners, those of datagrams with other limits."""
        return [
            replace(forward, limits={**forward.limits, **limits}) if name in DATAGRAMS else forward
            for name, forward in self.forwards.items()
        ]
