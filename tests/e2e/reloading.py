"""Changing the configuration of a running sockpair, and clients that must not notice."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import trio

from tests.e2e.program import ROOT
from tests.e2e.sockets import connect, datagram_client, exchange, say
from tests.e2e.subject import COMMAND, Forward, Sockpair


async def command(
    sockpair: Sockpair, *words: str, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a command of an operator, which must end with this status."""
    done = await trio.run_process(
        [*COMMAND, *words, "--admin", str(sockpair.settings.admin)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        cwd=ROOT,
    )
    said = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == status, said
    return subprocess.CompletedProcess(done.args, done.returncode, *said)


def rewrite(sockpair: Sockpair, *forwards: Forward, **engine: int | str) -> None:
    """Write another file; nobody has read it yet."""
    sockpair.settings = replace(
        sockpair.settings, forwards=forwards, engine={**sockpair.settings.engine, **engine}
    )
    sockpair.settings.write()


async def reload(sockpair: Sockpair, *forwards: Forward, **engine: int | str) -> str:
    """Put another file to work, and return the plan."""
    rewrite(sockpair, *forwards, **engine)
    return (await command(sockpair, "reload")).stdout


class Load:
    """Clients that go on until they are told to stop; a failure is an error of theirs.

    Args:
        nursery: where they live.
        pause: seconds of each between two requests.

    Attributes:
        requests: answered so far.
        flows: opened so far by those who connect anew.

    """

    def __init__(self, nursery: trio.Nursery, pause: float = 0.0) -> None:
        self.requests = 0
        self.flows = 0
        self._pause = pause
        self._nursery = nursery
        self._stopping = False

    def start(self, web: Forward, game: Forward, each: int = 4) -> None:
        for _ in range(each):
            self._nursery.start_soon(self._keep_alive, web)
            self._nursery.start_soon(self._connect_anew, web)
            self._nursery.start_soon(self._datagrams, game)

    def stop(self) -> None:
        self._stopping = True

    async def _keep_alive(self, web: Forward) -> None:
        async with await connect(web.address) as client:
            while not self._stopping:
                await say(client, b"the same connection")
                await self._answered()

    async def _connect_anew(self, web: Forward) -> None:
        while not self._stopping:
            async with await connect(web.address) as client:
                self.flows += 1
                await say(client, b"a new one")
                await self._answered()

    async def _datagrams(self, game: Forward) -> None:
        async with datagram_client(game.address) as player:
            while not self._stopping:
                assert await exchange(player, b"a datagram") == b"a datagram"
                await self._answered()

    async def _answered(self) -> None:
        self.requests += 1
        await trio.sleep(self._pause)
