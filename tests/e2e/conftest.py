"""The stage: where a test puts sockpair and its peers; all of them leave it at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.e2e import peers, subject
from tests.e2e.peers import Origin
from tests.e2e.program import Command
from tests.e2e.subject import Forward, Settings, Sockpair


class Stage:
    """Starts programs, each in a folder of its own below the test's, until the test ends."""

    def __init__(self, folder: Path, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
        self.folder = folder
        self.nursery = nursery
        self._stack = stack

    async def sockpair(
        self,
        *forwards: Forward,
        descriptor_limit: int | None = None,
        wrapper: Command = (),
        **engine: int | str,
    ) -> Sockpair:
        """Run sockpair with these listeners, and keys of [engine]; the wrapper starts it."""
        settings = self.settings(*forwards, **engine)
        return await self._stack.enter_async_context(
            subject.sockpair(settings, descriptor_limit=descriptor_limit, wrapper=wrapper)
        )

    def settings(self, *forwards: Forward, **engine: int | str) -> Settings:
        """A configuration that nobody has been started with yet."""
        return Settings(self._folder("sockpair"), forwards, engine)

    def at_end(self, leave: Callable[[], Awaitable[None]]) -> None:
        """Have something done when the test ends, however it does."""
        self._stack.push_async_callback(leave)

    async def nginx(self) -> Origin:
        return await self._start(peers.nginx)

    async def redis(self) -> Origin:
        return await self._start(peers.redis)

    async def nsd(self) -> Origin:
        return await self._start(peers.nsd)

    async def iperf3(self) -> Origin:
        return await self._start(peers.iperf3)

    async def _start(self, kind: Callable[[Path], AbstractAsyncContextManager[Origin]]) -> Origin:
        return await self._stack.enter_async_context(kind(self._folder(kind.__name__)))

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder


@pytest.fixture
async def stage(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Stage]:
    """An empty stage."""
    async with AsyncExitStack() as stack:
        yield Stage(tmp_path, stack, nursery)
