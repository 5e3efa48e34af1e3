"""Under a service manager: it hears that we are ready, and keeps our sockets between two lives.

The manager is this test. tests/systemd has the real one.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio

from tests.control.manager import Manager
from tests.e2e.conftest import Stage
from tests.e2e.launch import launch
from tests.e2e.patience import PATIENCE
from tests.e2e.program import Program
from tests.e2e.subject import Forward, Settings


@asynccontextmanager
async def life(
    settings: Settings, manager: Manager, given: Mapping[str, int] | None = None
) -> AsyncIterator[Program]:
    """One life of a service, from ready to its end."""
    settings.write()
    running = await launch(settings, manager, given or {}, "service")
    try:
        await trio.to_thread.run_sync(manager.hear_until, "READY")
        yield running
        await running.stop()
        assert (await trio.to_thread.run_sync(manager.hear_until, "STOPPING"))["STATUS"]
    finally:
        await running.kill()


@pytest.mark.peers("redis-server")
async def test_clients_of_a_restart_wait_and_are_served(stage: Stage) -> None:
    redis = await stage.redis()
    web = Forward("web", "tcp", [redis.text])
    settings = stage.settings(web)
    with Manager(settings.folder) as manager:
        async with life(settings, manager):
            assert manager.stored.keys() == {"kept/web"}
            said = await trio.to_thread.run_sync(manager.hear_until, "WATCHDOG")
            assert said["STATUS"].endswith("1 listener")
        waiting = socket.socket()
        waiting.settimeout(PATIENCE)
        waiting.connect(web.address)  # nobody runs
        waiting.sendall(b"PING\r\n")
        async with life(settings, manager, {**manager.stored}):
            answer = await trio.to_thread.run_sync(waiting.recv, 100)
            assert answer == b"+PONG\r\n"
            waiting.close()


async def test_a_listener_that_is_gone_from_the_file_listens_no_more(stage: Stage) -> None:
    web, old = (Forward(name, "tcp", ["127.0.0.1:9"]) for name in ("web", "old"))
    settings = stage.settings(web, old)
    with Manager(settings.folder) as manager:
        async with life(settings, manager):
            assert manager.stored.keys() == {"kept/web", "kept/old"}
        changed = Settings(settings.folder, [web], admin_port=settings.admin_port)
        async with life(changed, manager, {**manager.stored}):
            assert manager.stored.keys() == {"kept/web"}
            with socket.socket() as client:
                assert client.connect_ex(old.address) != 0
