"""Worker processes that are killed, and flows that live on in their standbys."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from pathlib import Path
from socket import MSG_OOB, SHUT_WR, SO_OOBINLINE, SO_RCVBUF, SOL_SOCKET
from typing import Final

import trio
from trio.socket import SocketType

from proxy.control.crew import Crew
from proxy.control.house import House
from proxy.control.lineage import Lineage
from proxy.core.counters import ListenerSnapshot
from proxy.core.query import FlowQuery
from proxy.engine.survival.executor import SUSPECT_TIMES
from tests.control.test_crew import crewed, listener, settings
from tests.engine import lab
from tests.engine.lab import _noted, listening, receive_all, receive_exactly, send_all

TCP: Final = Path("/proc/net/tcp")


def surviving(folder: Path, endpoint: tuple[str, int], workers: int = 1) -> str:
    table = listener("web", "tcp://127.0.0.1:0", endpoint)
    table = table.replace("listen =", 'survive = "crash"\nlisten =')
    return settings(folder, table, workers)


def waiting(folder: Path, endpoint: tuple[str, int]) -> str:
    """The same with an endpoint that has room for one flow; others wait, and are connecting."""
    text = surviving(folder, endpoint)
    one = f'endpoints = [{{ address = "{endpoint[0]}:{endpoint[1]}", flows = 1 }}]'
    head, _, _ = text.partition("endpoints =")
    return f'{head}{one}\nwhen_full = "wait"\nwait = "1m"\n'


async def address_of(house: House) -> tuple[str, int]:
    (row,) = (await house.worker.status())["listening"]
    host, port = row["local"].rsplit(":", 1)
    return host, int(port)


async def flow(house: House, endpoint: SocketType) -> tuple[SocketType, SocketType]:
    client = await lab.connect(await address_of(house))
    accepted = await lab.accept(endpoint)
    await send_all(accepted, b"welcome")  # so that it is known to be established
    assert await receive_exactly(client, 7) == b"welcome"
    return client, accepted


async def kill(house: House, number: int = signal.SIGKILL) -> None:
    """Kill the first worker, and wait until the next is at work."""
    crew = house.worker
    assert isinstance(crew, Crew)
    before = crew._remotes[0]
    assert before is not None
    os.kill(before.pid, number)
    while crew._remotes[0] in {before, None}:
        await trio.sleep(0.005)


async def standby_of(lineage: Lineage, former: int = 0) -> int:
    """Wait until its keeper knows a standby, other than the former one; return its pid.

    Who asks whether there is one hears of it in the keeper's place, who would wait on.
    """
    while not lineage._standbys or lineage._standbys[0].process.pid == former:
        await trio.sleep(0.005)
    return lineage._standbys[0].process.pid


async def test_flows_live_on_when_their_worker_is_killed(tmp_path: Path) -> None:
    endpoint = listening()
    async with crewed(surviving(tmp_path, endpoint.getsockname())) as house:
        client, accepted = await flow(house, endpoint)
        await send_all(client, b"before")
        assert await receive_exactly(accepted, 6) == b"before"
        (row,) = (await house.worker.flows(FlowQuery()))["rows"]
        await kill(house)
        await send_all(client, b"after")
        assert await receive_exactly(accepted, 5) == b"after"
        await send_all(accepted, b"reply")
        assert await receive_exactly(client, 5) == b"reply"
        (again,) = (await house.worker.flows(FlowQuery()))["rows"]
        assert again["id"] == row["id"]
        assert again["original"]["bytes"] == 11
        client.shutdown(SHUT_WR)
        assert await receive_all(accepted) == b""
        accepted.close()
        assert await receive_all(client) == b""


async def test_a_worker_that_fails_is_followed_as_well(tmp_path: Path) -> None:
    """By a fault of Python's, or of a library: whatever ends it, but an order."""
    endpoint = listening()
    async with crewed(surviving(tmp_path, endpoint.getsockname())) as house:
        client, accepted = await flow(house, endpoint)
        for number in (signal.SIGSEGV, signal.SIGABRT):
            await kill(house, number)
            await send_all(client, b"again")
            assert await receive_exactly(accepted, 5) == b"again"


async def test_a_client_that_is_being_connected_is_served_by_the_next(tmp_path: Path) -> None:
    endpoint = listening()
    async with crewed(waiting(tmp_path, endpoint.getsockname())) as house:
        first, accepted = await flow(house, endpoint)
        client = await lab.connect(await address_of(house))
        await wait_flows(house, established=1, connecting=1)
        await send_all(client, b"question")
        await kill(house)
        await wait_flows(house, established=1, connecting=1)
        first.close()
        accepted.close()
        accepted = await lab.accept(endpoint)
        assert await receive_exactly(accepted, 8) == b"question"
        await send_all(accepted, b"answer")
        assert await receive_exactly(client, 6) == b"answer"
        read = await counters(house)
        assert (read["opened"], read["taken_over"], read["lost"]) == (2, 2, 0)
        assert read["live"]["established"] == read["closed"]["finished"] == 1
        assert sum(read["closed"].values()) == 1


async def test_a_client_that_kills_its_workers_is_reset(tmp_path: Path) -> None:
    """The worker that it came to, and the next one, just after that has begun."""
    endpoint = listening()
    async with crewed(waiting(tmp_path, endpoint.getsockname())) as house:
        await flow(house, endpoint)
        client = await lab.connect(await address_of(house))
        await wait_flows(house, established=1, connecting=1)
        await kill(house)
        await kill(house)
        assert await lab.is_reset(client)
        read = await counters(house)
        assert (read["opened"], read["lost"], read["closed"]["internal"]) == (2, 1, 1)
        assert read["live"]["established"] == sum(read["live"].values()) == 1


async def test_what_both_sides_have_ended_arrives(tmp_path: Path) -> None:
    """The kernel tells no more who the peer of such a socket was, if it is only asked so."""
    endpoint = listening()
    async with crewed(surviving(tmp_path, endpoint.getsockname())) as house:
        client, accepted = await flow(house, endpoint)
        client.shutdown(SHUT_WR)
        assert await receive_all(accepted) == b""
        crew = house.worker
        assert isinstance(crew, Crew)
        worker = crew._remotes[0]
        assert worker is not None
        os.kill(worker.pid, signal.SIGSTOP)  # what comes now, it has not read when it is killed
        await send_all(accepted, b"the last")
        await close(accepted)
        await kill(house)
        assert await receive_all(client) == b"the last"
        while not (read := await counters(house))["closed"]["finished"]:
            await trio.sleep(0.005)
        assert sum(read["closed"].values()) == read["opened"] == 1


async def test_bytes_that_wait_outlive_the_worker(tmp_path: Path) -> None:
    endpoint = listening()
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 16 << 10)
    bulk = os.urandom(12 << 20)
    async with crewed(surviving(tmp_path, endpoint.getsockname())) as house:
        client, accepted = await flow(house, endpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, bulk)
            while not (await counters(house))["original"]["buffered"]:
                await trio.sleep(0.005)
            received = b""
            for _ in range(2):  # at the third in a row, each within a second, it is suspected
                await kill(house)
                received += await receive_exactly(accepted, 1 << 20)
            received += await receive_exactly(accepted, len(bulk) - len(received))
            assert received == bulk
        read = await counters(house)
        assert read["original"]["received"] == read["original"]["sent"] == len(bulk)
        assert read["opened"] == 1


async def test_half_closed_flows_stay_so(tmp_path: Path) -> None:
    endpoint = listening()
    async with crewed(surviving(tmp_path, endpoint.getsockname())) as house:
        client, accepted = await flow(house, endpoint)
        await send_all(client, b"question")
        client.shutdown(SHUT_WR)
        assert await receive_all(accepted) == b"question"
        await kill(house)
        (row,) = (await house.worker.flows(FlowQuery()))["rows"]
        assert row["state"] == "client_closed"
        await send_all(accepted, b"answer")
        accepted.close()
        assert await receive_all(client) == b"answer"
        read = await counters(house)
        while not read["closed"]["finished"]:
            await trio.sleep(0.005)
            read = await counters(house)
        assert sum(read["closed"].values()) == read["opened"] == 1


async def test_urgent_data_keeps_its_place(tmp_path: Path) -> None:
    endpoint = listening()
    async with crewed(surviving(tmp_path, endpoint.getsockname())) as house:
        client, accepted = await flow(house, endpoint)
        accepted.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
        for _ in range(SUSPECT_TIMES - 1):
            await send_all(client, b"ab")
            await client.send(b"!", MSG_OOB)
            await send_all(client, b"cd")
            await kill(house)
            assert await receive_exactly(accepted, 5) == b"ab!cd"


async def test_a_standby_that_is_killed_alone_is_replaced(tmp_path: Path) -> None:
    """And the new one takes over as well, with a standby of its own."""
    endpoint = listening()
    async with crewed(surviving(tmp_path, endpoint.getsockname())) as house:
        client, accepted = await flow(house, endpoint)
        crew = house.worker
        assert isinstance(crew, Crew)
        lineage = crew._lineages[0]
        assert lineage is not None
        pid = await standby_of(lineage)
        os.kill(pid, signal.SIGKILL)
        await standby_of(lineage, pid)
        for _ in range(2):
            await send_all(client, b"on")
            assert await receive_exactly(accepted, 2) == b"on"
            await kill(house)
        await send_all(accepted, b"reply")
        assert await receive_exactly(client, 5) == b"reply"
        read = await counters(house)
        assert (read["opened"], read["lost"], sum(read["closed"].values())) == (1, 0, 0)


async def test_no_process_is_left_behind(tmp_path: Path) -> None:
    endpoint = listening()
    async with crewed(surviving(tmp_path, endpoint.getsockname())) as house:
        crew = house.worker
        assert isinstance(crew, Crew)
        await kill(house)
        lineage, remote = crew._lineages[0], crew._remotes[0]
        assert lineage is not None
        assert remote is not None
        pids = [remote.pid, await standby_of(lineage)]
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()  # noqa: ASYNC240 - of the kernel


async def test_only_flows_that_are_to_live_on_do(tmp_path: Path) -> None:
    endpoint, other = listening(), listening()
    text = surviving(tmp_path, endpoint.getsockname())
    text += listener("other", "tcp://127.0.0.1:0", other.getsockname())
    async with crewed(text) as house:
        rows = (await house.worker.status())["listening"]
        places = {row["listener"]: row["local"].rsplit(":", 1) for row in rows}
        client = await lab.connect(("127.0.0.1", int(places["web"][1])))
        accepted = await lab.accept(endpoint)
        lost = await lab.connect(("127.0.0.1", int(places["other"][1])))
        _noted((await other.accept())[0])
        await wait_flows(house, established=2)
        await kill(house)
        assert await lab.is_reset(lost)
        await send_all(client, b"on")
        assert await receive_exactly(accepted, 2) == b"on"
        await kill(house)
        assert len((await house.worker.flows(FlowQuery()))["rows"]) == 1


async def test_a_flow_that_kills_its_workers_is_reset(tmp_path: Path) -> None:
    """Three workers in a row are killed just after they served it; the next one does not."""
    endpoint = listening()
    async with crewed(surviving(tmp_path, endpoint.getsockname())) as house:
        client, accepted = await flow(house, endpoint)
        bystander, its_end = await flow(house, endpoint)
        for number in range(SUSPECT_TIMES):
            await send_all(client, b"poison")
            assert await receive_exactly(accepted, 6) == b"poison"
            await kill(house)
            if number < SUSPECT_TIMES - 1:
                assert len((await house.worker.flows(FlowQuery()))["rows"]) == 2
        assert await lab.is_reset(client)
        assert await lab.is_reset(accepted)
        await send_all(bystander, b"on")
        assert await receive_exactly(its_end, 2) == b"on"
        assert (await counters(house))["lost"] == 1


async def close(socket: SocketType) -> None:
    """Close a socket whose peer has ended, and wait until that has heard of it."""
    (_, port), (_, peers) = socket.getsockname(), socket.getpeername()
    socket.close()
    entry = re.compile(rf": \w+:{port:04X} \w+:{peers:04X} ")
    while entry.search(TCP.read_text()):
        await trio.sleep(0.005)


async def wait_flows(house: House, **states: int) -> None:
    """Wait until so many flows are in these states."""
    while True:
        rows = (await house.worker.flows(FlowQuery()))["rows"]
        if Counter(row["state"] for row in rows) == Counter(states):
            return
        await trio.sleep(0.005)


async def counters(house: House) -> ListenerSnapshot:
    """Of the first listener."""
    return (await house.worker.counters())["listeners"][0]
