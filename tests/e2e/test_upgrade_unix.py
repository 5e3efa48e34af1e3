"""`sockpair upgrade` with Unix sockets: their files stay, and go with the last life."""

from __future__ import annotations

import os
import signal
import socket

import pytest
import trio

from tests.e2e.chatter import chatting
from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.program import is_running
from tests.e2e.subject import UnixForward
from tests.e2e.test_succession import service
from tests.e2e.test_upgrade import lives


async def test_a_unix_socket_is_the_successors_with_its_file(stage: Stage) -> None:
    async with chatting() as chatter:
        path = stage.folder / "web.sock"
        web = UnixForward("web", "unix", [chatter.tcp], host=str(path))
        async with lives(stage.settings(web)) as running:
            old = await connected(str(path))
            assert await answered(old, b"before")
            answer = await running.upgraded()
            assert answer["flows"] == 1
            assert await answered(old, b"after")
            new = await connected(str(path))
            assert await answered(new, b"new")
            assert await running.first.process.wait() == 0
            assert path.exists()
            assert len(await running.sockpair.flows()) == 2
            old.close()
            new.close()
            os.kill(answer["pid"], signal.SIGTERM)
            await until(lambda: not is_running(answer["pid"]), "the end")
            assert not path.exists()
            assert not running.settings.admin.exists()
        chatter.nursery.cancel_scope.cancel()


async def connected(path: str) -> trio.socket.SocketType:
    client = trio.socket.socket(socket.AF_UNIX)
    await client.connect(path)
    return client


async def answered(client: trio.socket.SocketType, word: bytes) -> bool:
    await client.send(word)
    return await client.recv(100) == word


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_unix_socket_outlives_a_restart_with_its_file(stage: Stage, workers: int) -> None:
    async with chatting() as chatter:
        path = stage.folder / "web.sock"
        web = UnixForward("web", "unix", [chatter.tcp], host=str(path))
        async with service(stage.settings(web, workers=workers)) as serving:
            old = await connected(str(path))
            assert await answered(old, b"before")
            assert await serving.lives[-1].stop(signal.SIGUSR2) == 0
            between = await connected(str(path))
            assert await answered(between, b"between")
            await serving.begin()
            for client in (old, between, await connected(str(path))):
                assert await answered(client, b"after")
                client.close()
            assert await serving.lives[-1].stop() == 0
            assert not path.exists()
        chatter.nursery.cancel_scope.cancel()
