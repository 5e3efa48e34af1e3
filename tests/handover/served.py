"""sockpair under a service manager, which is this process: it is restarted, or its supervisor dies.

The manager keeps what lives store, and gives it to the next one; see ``tests.control.manager``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.control.manager import Manager
from tests.e2e.launch import launch
from tests.e2e.patience import PATIENCE, until
from tests.e2e.program import is_running
from tests.e2e.subject import Settings
from tests.handover.house import House


class ServedHouse(House):
    """Lives of sockpair, one after the other."""

    def __init__(self, settings: Settings, manager: Manager) -> None:
        self.settings = settings
        self.programs = []
        self._manager = manager
        self._said: list[dict[str, str]] = []

    async def hear(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._manager.socket)
            self._said.append(self._manager.hear())

    async def begin(self) -> None:
        """Start a life with all that is stored; return when it is ready."""
        self._said.clear()
        stored, name = {**self._manager.stored}, f"life{len(self.programs)}"
        self.program = await launch(self.settings, self._manager, stored, name)
        self.programs.append(self.program)
        await until(self._is_decided, "the next life to be ready", 6 * PATIENCE)
        assert self.program.process.poll() is None, self.program.story()

    def _is_decided(self) -> bool:
        ready = any("READY" in said for said in self._said)
        return ready or self.program.process.poll() is not None

    async def restart(self) -> None:
        """As ``systemctl restart`` does."""
        await self._end(signal.SIGUSR2, 0)
        await self.begin()

    async def lose(self) -> None:
        """Have the supervisor killed; the manager starts the next one."""
        await self._end(signal.SIGKILL, -signal.SIGKILL)
        await self.begin()

    async def _end(self, number: signal.Signals, code: int) -> None:
        """End this life; after an upgrade it is no child of ours, and nobody has its code."""
        ending, self.now = self.now, None
        if ending is None:
            assert await self.stop(number) == code, self.program.story()
        else:
            os.kill(ending, number)
            await until(lambda: not is_running(ending), f"{ending} to end", 6 * PATIENCE)


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[ServedHouse]:
    """Run sockpair under a manager, for as long as the block."""
    settings.write()
    with Manager(settings.folder) as manager:
        async with trio.open_nursery() as nursery:
            serving = ServedHouse(settings, manager)
            nursery.start_soon(serving.hear)
            try:
                await serving.begin()
                yield serving
            finally:
                for life in serving.programs:
                    serving.sweep(life)
                    await life.kill()
            nursery.cancel_scope.cancel()
