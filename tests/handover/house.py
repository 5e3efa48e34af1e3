"""A sockpair that changes its process: by upgrades, and by the deaths of its workers."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from tests.e2e import subject
from tests.e2e.patience import PATIENCE, until
from tests.e2e.program import ROOT, Program, is_running
from tests.e2e.subject import COMMAND, Settings, Sockpair


class House(Sockpair):
    """Knows which process is sockpair now."""

    now: int | None = None
    """None: the one that was started here."""

    programs: list[Program]

    def __init__(self, settings: Settings, started: Program) -> None:
        super().__init__(settings, started)
        self.programs = [started]

    @property
    def pid(self) -> int:
        return self.program.pid if self.now is None else self.now

    async def upgrade(self) -> bool:
        """Run ``sockpair upgrade``; when it is over the predecessor is gone.

        Returns:
            False if the new one was not there in time, and all is as it was: a busy machine.

        """
        before = self.pid
        done = await trio.run_process(
            [*COMMAND, "upgrade", "--admin", str(self.settings.admin)],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=ROOT,
        )
        self.now = (await self.status())["pid"]
        if done.returncode:
            assert b"was not ready within" in done.stderr, done.stderr.decode()
            assert self.now == before
            return False
        assert self.now != before, "the process is the same"
        await until(lambda: not is_running(before), f"the predecessor, {before}, to end")
        return True

    async def workers(self) -> list[int]:
        """The processes that relay, one after the other."""
        return [row["pid"] for row in (await self.status())["workers"]]

    async def kill_worker(self, pid: int) -> None:
        """Kill a worker, and wait until another is at work in its place."""
        os.kill(pid, signal.SIGKILL)
        await until(lambda: self._is_whole_without(pid), "the next worker", 6 * PATIENCE)

    async def _is_whole_without(self, pid: int) -> bool:
        status = await self.status()
        return not status["not_ready"] and pid not in [row["pid"] for row in status["workers"]]

    @staticmethod
    def sweep(program: Program) -> None:
        """Kill what a program has left behind: all are of the group that it led, and no others."""
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)


@asynccontextmanager
async def house(settings: Settings, **parts: Any) -> AsyncIterator[House]:
    """Run sockpair, whatever processes it becomes; all are gone at the end."""
    async with subject.sockpair(settings, **parts) as first:
        running = House(settings, first.program)
        try:
            yield running
        finally:
            running.sweep(first.program)
