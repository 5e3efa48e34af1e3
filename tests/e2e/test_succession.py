"""One life after the other: those who talk never notice. The service manager is the test."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from socket import AF_INET, SOCK_STREAM, socket

import pytest
import trio

from tests.control.manager import Manager
from tests.e2e.chatter import TALKERS, chatting, talk
from tests.e2e.conftest import Stage
from tests.e2e.launch import launch
from tests.e2e.patience import PATIENCE, until
from tests.e2e.program import Program
from tests.e2e.subject import Forward, Settings, Sockpair


class Service:
    """Lives of sockpair, and the manager that keeps what they store."""

    def __init__(self, settings: Settings, manager: Manager) -> None:
        self.settings = settings
        self.manager = manager
        self.said: list[dict[str, str]] = []
        self.lives: list[Program] = []

    @property
    def sockpair(self) -> Sockpair:
        return Sockpair(self.settings, self.lives[-1])

    async def hear(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.manager.socket)
            self.said.append(self.manager.hear())

    async def begin(self) -> None:
        """Start another life with all that is stored; return when it is ready."""
        life = await self._try_to_begin()
        assert life.process.poll() is None, life.story()

    async def fail(self) -> str:
        """Start another life that does not come up; what it says."""
        life = await self._try_to_begin()
        assert life.process.poll() == 1, life.story()
        return life.story()

    async def _try_to_begin(self) -> Program:
        self.settings.write()
        self.said.clear()
        stored, name = {**self.manager.stored}, f"life{len(self.lives)}"
        life = await launch(self.settings, self.manager, stored, name)
        self.lives.append(life)
        await until(
            lambda: life.process.poll() is not None or self._has_said("READY"),
            "a start",
            3 * PATIENCE,
        )
        return life

    def story(self) -> str:
        return "\n".join(life.story() for life in self.lives)

    def _has_said(self, key: str) -> bool:
        return any(key in said for said in self.said)


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[Service]:
    with Manager(settings.folder) as manager:
        async with trio.open_nursery() as nursery:
            serving = Service(settings, manager)
            nursery.start_soon(serving.hear)
            try:
                await serving.begin()
                yield serving
            finally:
                for life in serving.lives:
                    await life.kill()
                print(serving.story())
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("workers", [1, 2])
async def test_flows_outlive_a_restart(stage: Stage, workers: int) -> None:
    async with chatting() as chatter:
        web, dns = Forward("web", "tcp", [chatter.tcp]), Forward("dns", "udp", [chatter.udp])
        async with service(stage.settings(web, dns, workers=workers)) as serving:
            talk(chatter, web, dns, "first")
            await chatter.wait_words()
            before = await serving.sockpair.flows()
            for number in range(2):
                assert await serving.lives[-1].stop(signal.SIGUSR2) == 0
                talk(chatter, web, dns, f"between{number}")
                await chatter.wait_words()
                await serving.begin()
                await chatter.wait_words()
            after = {row["id"]: row for row in await serving.sockpair.flows()}
            assert len(before) == 2 * TALKERS
            assert len(after) == 6 * TALKERS
            for row in before:
                assert after[row["id"]]["endpoint"] == row["endpoint"]
                assert after[row["id"]]["opened"] == pytest.approx(row["opened"], abs=0.1)
            assert len(chatter.ways) == 6 * TALKERS
            metrics = await serving.sockpair.metrics()
            assert metrics.sum("sockpair_flows_opened_total") == 6 * TALKERS
            assert metrics.sum("sockpair_flows_closed_total") == 0
            assert metrics.sum("sockpair_flows") == 6 * TALKERS
            chatter.nursery.cancel_scope.cancel()
            assert await serving.lives[-1].stop() == 0


async def test_flows_and_orders_outlive_a_supervisor_that_is_killed(stage: Stage) -> None:
    async with chatting() as chatter:
        web, dns = Forward("web", "tcp", [chatter.tcp]), Forward("dns", "udp", [chatter.udp])
        async with service(stage.settings(web, dns, workers=2)) as serving:
            talk(chatter, web, dns, "first")
            await chatter.wait_words()
            ask = serving.sockpair.ask
            assert (await ask("POST", "/api/v1/limits?listener=web&bytes=1000000000"))[0] == 200
            assert (await ask("POST", f"/api/v1/disable?endpoint={chatter.tcp}"))[0] == 200
            assert await serving.lives[-1].stop(signal.SIGKILL) == -signal.SIGKILL
            await chatter.wait_words()
            await serving.begin()
            await chatter.wait_words()
            assert len(await serving.sockpair.flows()) == 2 * TALKERS
            assert len(chatter.ways) == 2 * TALKERS
            (order,) = json.loads(await serving.sockpair.get("/api/v1/limits"))["orders"]
            assert (order["listener"], order["bytes"]) == ("web", 1_000_000_000)
            assert order["matched"] == TALKERS
            rows = json.loads(await serving.sockpair.get("/api/v1/upstreams"))["upstreams"]
            assert "disabled" in json.dumps(rows)
            chatter.nursery.cancel_scope.cancel()
            assert await serving.lives[-1].stop() == 0


@dataclass(frozen=True)
class DualForward(Forward):
    """A listener that is bound otherwise."""

    @property
    def toml(self) -> str:
        return super().toml.replace("upstream =", "dual_stack = true\nupstream =", 1)


async def test_who_is_in_the_way_of_a_start_ends(stage: Stage) -> None:
    async with chatting() as chatter:
        web = Forward("web", "tcp", [chatter.tcp], host="::")
        settings = stage.settings(web, workers=2)
        async with service(settings) as serving:
            assert await serving.lives[-1].stop(signal.SIGKILL) == -signal.SIGKILL
            other = DualForward("web", "tcp", [chatter.tcp], host="::", port=web.port)
            serving.settings = Settings(
                settings.folder, [other], settings.engine, settings.admin_port
            )
            await serving.begin()
            chatter.begin("one", "tcp", ("127.0.0.1", web.port), "127.0.0.2")
            await chatter.wait_words()
            assert "predecessors_in_the_way" in serving.story()
            chatter.nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("workers", "number"),
    [(1, signal.SIGUSR2), (2, signal.SIGUSR2), (2, signal.SIGKILL)],
    ids=["restart-1", "restart-2", "kill-2"],
)
async def test_a_strangers_address_keeps_the_next_life_away_and_cuts_no_flow(
    stage: Stage, workers: int, number: signal.Signals
) -> None:
    """It is as with a file that has a problem: there is time to mend it."""
    async with chatting() as chatter:
        web, dns = Forward("web", "tcp", [chatter.tcp]), Forward("dns", "udp", [chatter.udp])
        settings = stage.settings(web, dns, workers=workers)
        async with service(settings) as serving:
            talk(chatter, web, dns, "first")
            await chatter.wait_words()
            await serving.lives[-1].stop(number)
            with socket(AF_INET, SOCK_STREAM) as stranger:
                stranger.bind(("127.0.0.1", 0))
                stranger.listen()
                new = Forward("new", "tcp", [chatter.tcp], port=stranger.getsockname()[1])
                serving.settings = Settings(
                    settings.folder, [web, dns, new], settings.engine, settings.admin_port
                )
                for _ in range(2):
                    story = await serving.fail()
                    assert f"listener.new: cannot listen on tcp://127.0.0.1:{new.port}" in story
                    assert "predecessors_in_the_way" not in story
                    await chatter.wait_words()
                talk(chatter, web, dns, "between")
                await chatter.wait_words()
            await serving.begin()
            await chatter.wait_words()
            flows = await serving.sockpair.flows()
            assert len(flows) == len(chatter.ways) == 4 * TALKERS
            chatter.nursery.cancel_scope.cancel()


@dataclass(frozen=True)
class CrashForward(Forward):
    """A listener whose flows have a standby."""

    @property
    def toml(self) -> str:
        return super().toml.replace("upstream =", 'survive = "crash"\nupstream =', 1)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGKILL], ids=["restart", "kill"])
@pytest.mark.parametrize("workers", [1, 2])
async def test_flows_with_a_standby_outlive_a_supervisor(
    stage: Stage, workers: int, number: signal.Signals
) -> None:
    async with chatting() as chatter:
        web = CrashForward("web", "tcp", [chatter.tcp])
        dns = CrashForward("dns", "udp", [chatter.udp])
        async with service(stage.settings(web, dns, workers=workers)) as serving:
            talk(chatter, web, dns, "first")
            await chatter.wait_words()
            await serving.lives[-1].stop(number)
            talk(chatter, web, dns, "between")
            await chatter.wait_words()
            await serving.begin()
            await chatter.wait_words()
            assert len(await serving.sockpair.flows()) == len(chatter.ways) == 4 * TALKERS
            chatter.nursery.cancel_scope.cancel()
            assert await serving.lives[-1].stop() == 0
