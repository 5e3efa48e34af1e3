"""Ceilings of a listener hold over all workers together, also when one dies."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from time import monotonic

import trio

from proxy.control.house import House
from proxy.control.steward import Steward
from tests.control.test_crew import (
    CLIENTS,
    asks,
    client_from,
    crewed,
    echo,
    listener,
    port_of,
    rows_by_worker,
    settings,
    until,
)
from tests.e2e.program import free_port
from tests.engine.lab import listening


def limited(folder: Path, endpoint: tuple[str, int], limits: str) -> str:
    return (
        settings(folder)
        + listener("web", "tcp://127.0.0.1:0", endpoint)
        + f"[listener.web.limits]\n{limits}\n"
    )


async def admitted(port: int, *, at_once: bool = True) -> list[trio.socket.SocketType]:
    """Connect from twenty sources, at once or one after the other; those that are served."""
    served = []

    async def attempt(host: str) -> None:
        with suppress(ConnectionResetError):
            client = await client_from(host, port)
            if await asks(client):
                served.append(client)

    async with trio.open_nursery() as nursery:
        for host in CLIENTS:
            if at_once:
                nursery.start_soon(attempt, host)
            else:
                await attempt(host)
    return served


async def both_serve(house: House) -> bool:
    return len([ids for ids in (await rows_by_worker(house)).values() if ids]) == 2


async def test_flows_of_all_workers_together_are_never_more_than_the_ceiling(
    tmp_path: Path,
) -> None:
    endpoint = listening()
    text = limited(tmp_path, endpoint.getsockname(), "flows = 15")
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")
        served = await admitted(port)
        # Two that reach for the last place at once may both find it taken.
        assert 14 <= len(served) <= 15
        assert await both_serve(house)
        counters = await until(house, lambda read: read["table_entries"] == len(served))
        refused = counters["listeners"][0]["refused"]["listener_flows"]
        assert refused == len(CLIENTS) - len(served)
        for client in served[:5]:
            client.close()
        await until(house, lambda read: read["table_entries"] == len(served) - 5)
        assert 4 <= len(await admitted(port)) <= 15 - len(served[5:])
        nursery.cancel_scope.cancel()


async def test_the_rate_of_new_flows_is_that_of_all_workers_together(tmp_path: Path) -> None:
    endpoint = listening()
    text = limited(tmp_path, endpoint.getsockname(), 'flow_rate = "1/h"\nburst = 10')
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")
        assert len(await admitted(port, at_once=False)) == 10
        assert await both_serve(house)
        assert len(await admitted(port)) == 0
        nursery.cancel_scope.cancel()


async def test_the_places_of_a_dead_worker_are_free(tmp_path: Path) -> None:
    endpoint = listening()
    text = limited(tmp_path, endpoint.getsockname(), "flows = 20")
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")
        assert len(await admitted(port)) == 20
        of_worker = await rows_by_worker(house)
        victim = min(of_worker)
        pid = (await house.worker.status())["workers"][victim]["pid"]
        os.kill(pid, signal.SIGKILL)
        await until(house, lambda read: read["worker_restarts"] == 1)
        await until(house, lambda read: read["table_entries"] == 20 - len(of_worker[victim]))
        assert len(await admitted(port)) == len(of_worker[victim])
        nursery.cancel_scope.cancel()


async def test_a_ceiling_that_a_reload_brings_knows_the_flows_of_all(tmp_path: Path) -> None:
    endpoint = listening()
    file = tmp_path / "sockpair.toml"
    text = limited(tmp_path, endpoint.getsockname(), "").replace(":0", f":{free_port()}")
    file.write_text(text)
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")
        served = await admitted(port)
        assert len(served) == 20
        file.write_text(text.replace("limits]\n", "limits]\nflows = 10\n"))
        answer = await Steward(house, str(file)).reload("test")
        assert answer["reloaded"], answer
        assert len(await admitted(port)) == 0
        for client in served[:12]:
            client.close()
        await until(house, lambda read: read["table_entries"] == 8)
        assert 1 <= len(await admitted(port)) <= 2
        nursery.cancel_scope.cancel()


async def test_a_source_is_steered_by_the_prefix_that_names_it(tmp_path: Path) -> None:
    """With a /24 as a source its addresses have one worker, so that its ceiling is exact."""
    endpoint = listening()
    limits = "per_source = { prefix_v4 = 24, flows = 7 }"
    text = limited(tmp_path, endpoint.getsockname(), limits)
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        assert len(await admitted(await port_of(house, "web"))) == 7
        assert len(await rows_by_worker(house)) == 1
        nursery.cancel_scope.cancel()


async def test_a_bandwidth_is_that_of_all_workers_together_and_each_gets_its_part(
    tmp_path: Path,
) -> None:
    """Twenty clients are sent all they take, in whichever worker they are."""
    rate = 8 << 20
    endpoint = listening()
    text = limited(tmp_path, endpoint.getsockname(), f'bandwidth = "{rate}B/s"')
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(pour, endpoint)
        port = await port_of(house, "web")
        clients = [await client_from(host, port) for host in CLIENTS]
        taken = [0] * len(clients)

        async def take(index: int) -> None:
            while True:
                taken[index] += len(await clients[index].recv(1 << 16))

        for index in range(len(clients)):
            nursery.start_soon(take, index)
        while min(taken) < 1 << 16:
            await trio.sleep(0.01)
        assert await both_serve(house)
        await trio.sleep(0.2)  # some ticks, in which the workers hear of each other
        before, began = list(taken), monotonic()
        while sum(taken) - sum(before) < 3 * rate:
            await trio.sleep(0.01)
        took = monotonic() - began
        # What each worker's bucket and the kernel's buffers held when we began to count.
        assert sum(taken) - sum(before) <= 1.15 * rate * took + (4 << 20)
        each = [now - then for now, then in zip(taken, before, strict=True)]
        assert max(each) < 2 * min(each)
        nursery.cancel_scope.cancel()


async def pour(endpoint: trio.socket.SocketType) -> None:
    """Send without end on every connection."""
    data = bytes(1 << 16)

    async def serve(connection: trio.socket.SocketType) -> None:
        with connection, suppress(OSError):
            while True:
                await connection.send(data)

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(serve, (await endpoint.accept())[0])


async def test_who_waits_at_one_worker_gets_the_place_that_another_frees(tmp_path: Path) -> None:
    """One place for twenty sources, that both workers have; all are served, never two at once."""
    endpoint = listening()
    text = limited(tmp_path, endpoint.getsockname(), 'flows = 1\nwhen_full = "wait"\nwait = "1h"')
    at_once = 0
    served_by: list[dict[int, list[int]]] = []
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")

        async def attempt(host: str) -> None:
            nonlocal at_once
            client = await client_from(host, port)
            assert await asks(client)
            at_once += 1
            assert at_once == 1
            served_by.append(await rows_by_worker(house))
            at_once -= 1
            client.close()

        async with trio.open_nursery() as attempts:
            for host in CLIENTS:
                attempts.start_soon(attempt, host)
        counters = await until(house, lambda read: read["listeners"][0]["waiting"] == 0)
        row = counters["listeners"][0]
        assert not any(row["refused"].values())
        assert row["waited"] >= 1
        holders = {worker for rows in served_by for worker, ids in rows.items() if ids}
        assert len(holders) == 2
        nursery.cancel_scope.cancel()
