"""The gate of a soak: clients pass it for each exchange, and for a moment nobody does.

While it is closed no byte is on its way anywhere, though flows live. So what sockpair has counted
of a worker is all there is to count when that worker is killed, and the books stay exact.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.e2e.patience import PATIENCE, until


class Gate:
    """Who is inside is in the middle of an exchange.

    Attributes:
        closings: how often it has been closed.

    """

    def __init__(self) -> None:
        self.closings = 0
        self._inside = 0
        self._opened = trio.Event()
        self._opened.set()

    @asynccontextmanager
    async def passage(self) -> AsyncIterator[None]:
        """Wait until the gate is open, and be inside for as long as the block."""
        while not self._opened.is_set():
            await self._opened.wait()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Let nobody in, and wait until nobody is."""
        self._opened = trio.Event()
        self.closings += 1
        try:
            await until(lambda: not self._inside, "exchanges to end", 6 * PATIENCE)
            yield
        finally:
            self._opened.set()
