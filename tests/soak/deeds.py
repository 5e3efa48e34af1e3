"""What is done to sockpair during a soak, one deed after the other: reloads, kills, deaths."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random
from typing import Final

import trio

from tests.e2e.patience import until
from tests.e2e.reloading import command, rewrite
from tests.e2e.subject import Forward, Row
from tests.soak.clients import Client
from tests.soak.scene import Scene

QUIET: Final = 3.0
"""Seconds without traffic after which a worker's last reading is the whole truth: what was torn
has lingered for its second, and there were readings since (``proxy.control.crew``)."""

BETWEEN_DEATHS: Final = 65.0
"""Seconds; a worker that lives shorter is started again only after a pause."""


WARM_UP: Final = 1.0
"""Seconds until clients of every kind have begun, so that the first deed meets them."""


class Deeds:
    """Does them, in an order of chance, each about as often as any other.

    Args:
        scene: what to do them to.
        mortal: owns the endpoints that are killed.
        pause: seconds between two.

    """

    def __init__(self, scene: Scene, mortal: AsyncExitStack, pause: float) -> None:
        self._scene = scene
        self._mortal = mortal
        self._pause = pause
        self._chance: Random = scene.random("deeds")
        self._deaths = 0
        self._next_death = 0.0

    async def run(self, until_time: float) -> None:
        """Do each at least once, and then go on until a time."""
        deeds: list[Callable[[], Awaitable[None]]] = [
            self.change_limits,
            self.change_endpoints,
            self.add_and_remove_a_listener,
            self.write_a_broken_file,
            self.kill_flows,
            self.kill_endpoints,
            self.kill_a_worker,
        ]
        await trio.sleep(WARM_UP)
        first = True
        while first or trio.current_time() < until_time:
            for deed in self._chance.sample(deeds, len(deeds)):
                if first or trio.current_time() < until_time:
                    await deed()
                    await trio.sleep(self._pause)
            first = False

    async def reload(self, *forwards: Forward) -> Row:
        """Put another file to work, as the API does it: many commands would cost more than we."""
        rewrite(self._scene.sockpair, *forwards)
        status, body = await self._scene.sockpair.ask("POST", "/api/v1/reload")
        assert status == 200, body
        self._scene.deeds["reloads"] += 1
        answer: Row = json.loads(body)
        return answer

    async def change_limits(self) -> None:
        idle = {"idle": f"{self._chance.randrange(600, 900)}s"}
        answer = await self.reload(
            *(
                replace(forward, limits={**forward.limits, **idle})
                if forward.transport == "tcp"
                else forward
                for forward in self._scene.usual()
            )
        )
        assert any("per_flow.idle" in line for line in answer["lines"]), answer

    async def change_endpoints(self) -> None:
        echo = self._scene.forwards["echo"]
        endpoints = self._chance.choice([echo.endpoints[:1], echo.endpoints[1:], echo.endpoints])
        await self.reload(
            *(
                replace(forward, endpoints=endpoints) if forward is echo else forward
                for forward in self._scene.usual()
            )
        )

    async def add_and_remove_a_listener(self) -> None:
        """One flow of it ends before it is gone, another is drained."""
        scene = self._scene
        await self.reload(*scene.usual(), scene.forwards["spare"])
        brief, long = (Client(scene, "spare", number) for number in range(2))
        flow = await brief.connect()
        await flow.say(brief.data())
        await flow.end()
        flow = await long.connect()
        await flow.say(long.data())
        await self.reload(*scene.usual())
        await flow.reset_by_proxy("drained")

    async def write_a_broken_file(self) -> None:
        sockpair = self._scene.sockpair
        good = sockpair.settings.file.read_text()
        sockpair.settings.file.write_text(good + "typo = 1\n")
        status, body = await sockpair.ask("POST", "/api/v1/reload")
        assert status == 409, body
        self._scene.deeds["reloads refused"] += 1
        sockpair.settings.file.write_text(good)

    async def kill_flows(self) -> None:
        """Some are killed by the command, and no other."""
        scene = self._scene
        clients = [Client(scene, "held", 100 + number) for number in range(4)]
        flows = [await client.connect() for client in clients]
        for flow in flows:
            await flow.say(b"hello")
        rows = {
            row["client"]["remote"].partition(":")[0]: row
            for row in await scene.sockpair.flows(listener="held")
        }
        doomed = [str(rows[client.source]["id"]) for client in clients[:2]]
        await command(scene.sockpair, "kill", *doomed)
        for flow in flows[:2]:
            await flow.reset_by_proxy("killed")
        for flow in flows[2:]:
            await flow.end()
        scene.deeds["kills by command"] += 1

    async def kill_endpoints(self) -> None:
        """The process ends without a word, and begins again after a while."""
        scene = self._scene
        await scene.mortal.program.kill()
        await trio.sleep(self._pause)
        await self._mortal.aclose()
        await self._mortal.enter_async_context(scene.mortal.running())
        scene.deeds["endpoints killed"] += 1

    async def kill_a_worker(self) -> None:
        """Its flows are gone, and no others; what it had carried is still known."""
        scene = self._scene
        status = await scene.sockpair.status()
        if len(status["workers"]) == 1 or trio.current_time() < self._next_death:
            return
        self._next_death = trio.current_time() + BETWEEN_DEATHS
        victim = self._chance.choice(status["workers"])["pid"]
        async with scene.gate.closed():
            await trio.sleep(QUIET)
            os.kill(victim, signal.SIGKILL)
        self._deaths += 1
        scene.deeds["workers killed"] += 1
        await until(self._all_at_work, "the next worker")

    async def _all_at_work(self) -> bool:
        metrics = await self._scene.sockpair.metrics()
        ready = not (await self._scene.sockpair.status())["not_ready"]
        return ready and metrics.sum("sockpair_worker_restarts_total") == self._deaths
