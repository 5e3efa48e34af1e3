"""Workers that are left behind: they relay on, say so, and end when nobody can come."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from socket import socket as Socket
from typing import Any

import pytest
import structlog.testing
import trio
from trio.socket import SocketType

from proxy.config.load import parse
from proxy.control import house as house_module
from proxy.control import opening
from proxy.control.crew import Crew
from proxy.control.house import House
from proxy.control.opening import open_house
from proxy.control.remote import RemoteWorker
from proxy.engine.flow_lines import FlowLog
from proxy.engine.handover.succession import knock
from proxy.engine.wire import Wire
from tests.engine.lab import PATIENCE, accept, connect, is_reset, listening, receive_exactly


class Shelf:
    """Keeps channels, as the service manager does: whatever becomes of those who had them."""

    def __init__(self) -> None:
        self.ends: dict[int, Socket] = {}

    def keep(self, pid: int, end: Socket) -> None:
        self.ends[pid] = end.dup()

    def drop(self, pid: int) -> None:
        self.ends.pop(pid).close()


@asynccontextmanager
async def crewed(text: str, shelf: Shelf) -> AsyncIterator[House]:
    """A house with a crew at work, which is cancelled in the end, whatever its workers do."""
    house = await open_house(parse(text, "f"))
    assert isinstance(house.worker, Crew)
    async with trio.open_nursery() as nursery:
        with house:
            await nursery.start(house.worker.run)
            yield house
            nursery.cancel_scope.cancel()


async def wait_gone(remote: RemoteWorker) -> None:
    """Wait until the process of a worker has ended by itself."""
    assert remote._process is not None
    assert await remote._process.wait() == 0


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    kept = Shelf()
    for module in (house_module, opening):
        monkeypatch.setattr(module, "ChannelStore", lambda _: kept)
    return kept


def config_of(endpoint: SocketType, workers: int = 2) -> str:
    host, port = endpoint.getsockname()
    return f"""
[admin]
socket = ""
http = ""
[engine]
workers = {workers}
[listener.x]
listen = "tcp://127.0.0.1:0"
upstream = "x"
[upstream.x]
endpoints = ["{host}:{port}"]
"""


async def address_of(house: House) -> tuple[str, int]:
    (row,) = (await house.worker.status())["listening"]
    host, _, port = row["local"].rpartition(":")
    return host, int(port)


def remotes_of(house: House) -> list[RemoteWorker]:
    assert isinstance(house.worker, Crew)
    remotes = [remote for remote in house.worker._remotes if remote is not None]
    assert len(remotes) == 2
    return remotes


async def ask(wire: Wire, question: object) -> Any:
    await wire.send(json.dumps(question).encode())
    return json.loads((await wire.receive()).body)


async def test_orphans_relay_accept_and_log_until_a_successor_has_them_drain(
    shelf: Shelf, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint = listening()
    with structlog.testing.capture_logs(), trio.fail_after(3 * PATIENCE):
        async with crewed(config_of(endpoint), shelf) as house:
            address = await address_of(house)
            await house.worker.log_flows(FlowLog("all"))
            client = await connect(address)
            accepted = await accept(endpoint)
            remotes = remotes_of(house)
            for remote in remotes:
                await remote.part()
        await client.send(b"hello")
        assert await receive_exactly(accepted, 5) == b"hello"
        late = await connect(address)
        other = await accept(endpoint)
        flows = 0
        for remote in remotes:
            with closing(knock(shelf.ends[remote.pid])) as wire:
                greeting = await ask(wire, {"ask": "greet"})
                assert (greeting["pid"], greeting["worker"]) == (remote.pid, remote.index)
                assert await ask(wire, {"ask": "drain"}) == {"draining": True}
                flows += greeting["flows"]
        assert flows == 2
        for one in (client, accepted, late, other):
            one.close()
        for remote in remotes:
            await wait_gone(remote)
            shelf.drop(remote.pid)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines].count("flow") == 2
    assert [line["event"] for line in lines].count("orphan_ended") == 2


async def test_orphans_end_at_once_when_nobody_can_come(shelf: Shelf) -> None:
    endpoint = listening()
    with structlog.testing.capture_logs(), trio.fail_after(3 * PATIENCE):
        async with crewed(config_of(endpoint), shelf) as house:
            client = await connect(await address_of(house))
            await accept(endpoint)
            remotes = remotes_of(house)
            for remote in remotes:
                await remote.part()
        for remote in remotes:
            shelf.drop(remote.pid)
        for remote in remotes:
            await wait_gone(remote)
        assert await is_reset(client)


@pytest.mark.parametrize("is_owned", [False, True])
async def test_what_a_killed_worker_left_is_given_back_unless_it_is_owned(
    shelf: Shelf, is_owned: bool
) -> None:
    endpoint = listening()
    text = config_of(endpoint, 1).replace("upstream =", 'survive = "crash"\nupstream =')
    with structlog.testing.capture_logs(), trio.fail_after(3 * PATIENCE):
        async with crewed(text, shelf) as house:
            crew = house.worker
            assert isinstance(crew, Crew)
            client = await connect(await address_of(house))
            accepted = await accept(endpoint)
            await accepted.send(b"welcome")
            assert await receive_exactly(client, 7) == b"welcome"
            if is_owned:
                await crew.own()
            killed = crew._remotes[0]
            assert killed is not None
            os.kill(killed.pid, signal.SIGKILL)
            while (remote := crew._remotes[0]) is killed or remote is None:
                await trio.sleep(0.005)
            await remote.part()
        shelf.drop(remote.pid)
        if is_owned:
            assert await is_reset(client)
        else:  # whoever has it, too, would go on with it
            assert await client.recv(1) == b""


@pytest.mark.parametrize("survive", ["restart", "crash"])
async def test_what_killed_workers_counted_is_left_to_a_successor(
    shelf: Shelf, survive: str
) -> None:
    """Only the supervisor knows it, which may be killed next."""
    endpoint = listening()
    text = config_of(endpoint).replace("upstream =", f'survive = "{survive}"\nupstream =')
    with structlog.testing.capture_logs(), trio.fail_after(3 * PATIENCE):
        async with crewed(text, shelf) as house, trio.open_nursery() as nursery:
            nursery.start_soon(house.inherit)
            nursery.start_soon(house.keep_estate)
            client = await connect(await address_of(house))
            accepted = await accept(endpoint)
            await accepted.send(b"welcome")
            assert await receive_exactly(client, 7) == b"welcome"
            await house.worker.counters()  # what was not read yet nobody knows
            for index in (0, 1, 0, 1):
                killed = remotes_of(house)[index]
                os.kill(killed.pid, signal.SIGKILL)
                await replaced(house, killed)
            while await opened(shelf, remotes_of(house)) != 1:
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()


async def replaced(house: House, killed: RemoteWorker) -> None:
    assert isinstance(house.worker, Crew)
    while house.worker._remotes[killed.index] in {killed, None}:
        await trio.sleep(0.005)


async def opened(shelf: Shelf, remotes: list[RemoteWorker]) -> int:
    """How many flows a successor hears to have been opened."""
    greetings = []
    for remote in remotes:
        with closing(knock(shelf.ends[remote.pid])) as wire:
            greetings.append(await ask(wire, {"ask": "greet"}))
    past = greetings[0]["estate"].get("past", ())
    readings = [*past, *(greeting["counters"] for greeting in greetings)]
    return sum(row["opened"] for reading in readings for row in reading["listeners"])


async def test_a_worker_that_is_not_left_behind_ends_with_its_supervisor(shelf: Shelf) -> None:
    with structlog.testing.capture_logs(), trio.fail_after(3 * PATIENCE):
        async with crewed(config_of(listening()), shelf) as house:
            pids = [remote.pid for remote in remotes_of(house)]
            assert sorted(shelf.ends) == sorted(pids)
        assert shelf.ends == {}
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
