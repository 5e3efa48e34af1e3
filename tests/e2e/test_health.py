"""Active checks of real servers that fall ill and get well, and who gets new flows meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.peers import ZONE, dns_answer, dns_query
from tests.e2e.program import free_port
from tests.e2e.reloading import reload
from tests.e2e.sockets import connect, echo, listen, listen_datagrams
from tests.e2e.subject import Forward, Sockpair

WORKERS = pytest.mark.parametrize("workers", [1, 2])

QUICK: Mapping[str, Any] = {"interval": "20ms", "timeout": "500ms", "rise": 2, "fall": 2}


def checked(forward: Forward, **keys: Any) -> Forward:
    """A listener whose endpoints are checked."""
    values = {**QUICK, **keys}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    return replace(forward, more=f"[upstream.{forward.name}.health]\n{lines}{forward.more}")


async def rows(sockpair: Sockpair) -> dict[str, dict[str, Any]]:
    """What checks say, by address."""
    found = json.loads(await sockpair.get("/api/v1/checks"))["checks"]
    return {row["address"]: row for row in found}


async def health_of(sockpair: Sockpair, address: str, health: str) -> None:
    async def look() -> bool:
        found = (await rows(sockpair)).get(address)
        return found is not None and found["health"] == health

    await until(look, f"{address} to be {health}")


async def reached(sockpair: Sockpair, web: Forward, count: int = 6) -> set[str]:
    """The endpoints of so many new flows."""
    clients = [await connect(web.address) for _ in range(count)]
    found = set[str]()

    async def established() -> bool:
        live = await sockpair.flows(listener=web.name)
        found.update(row["endpoint"]["remote"] for row in live)
        return len(live) == count and all(row["state"] == "established" for row in live)

    await until(established, "the flows")
    for client in clients:
        await client.aclose()

    async def over() -> bool:
        return not await sockpair.flows(listener=web.name)

    await until(over, "their end")
    return found


async def until_reached(sockpair: Sockpair, web: Forward, endpoints: set[str]) -> None:
    """Wait until new flows go there and nowhere else: workers hear of a change one by one."""

    async def look() -> bool:
        return await reached(sockpair, web) == endpoints

    await until(look, f"flows to go to {endpoints}")


@pytest.mark.peers("nginx")
@WORKERS
async def test_nginx_without_its_page_gets_no_new_flows(stage: Stage, workers: int) -> None:
    nginx = await stage.nginx()
    other = await listen(stage.nursery, partial(answer, b"HTTP/1.1 200 OK\r\n\r\n"))
    page = Path(nginx.folder) / "html" / "health"
    page.write_text("well")
    web = checked(Forward("web", "tcp", [nginx.text, other]), check="http", path="/health")
    sockpair = await stage.sockpair(web, workers=workers)
    await health_of(sockpair, nginx.text, "up")
    await health_of(sockpair, other, "up")
    await until_reached(sockpair, web, {nginx.text, other})
    page.unlink()
    await health_of(sockpair, nginx.text, "down")
    await until_reached(sockpair, web, {other})
    row = (await rows(sockpair))[nginx.text]
    assert (row["result"], row["reason"]) == ("failed", "status 404")
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_endpoint_up", endpoint=nginx.text) == 0
    assert metrics.sum("sockpair_endpoint_up", endpoint=other) == 1
    failed = "sockpair_check_results_total"
    assert metrics.sum(failed, endpoint=nginx.text, result="failed") >= 2
    addresses = metrics.by("sockpair_check_addresses", "health", endpoint=nginx.text)
    assert addresses == {"down": 1, "up": 0, "unknown": 0}
    assert (await sockpair.ask("GET", "/readyz"))[0] == 200
    page.write_text("well")
    await health_of(sockpair, nginx.text, "up")
    await until_reached(sockpair, web, {nginx.text, other})
    told = [
        (each["event"], each["reason"])
        for event in ("endpoint_up", "endpoint_down")
        for each in sockpair.log_records(event)
        if each["address"] == nginx.text
    ]
    assert ("endpoint_down", "status 404") in told
    assert ("endpoint_up", "status 200") in told


async def answer(data: bytes, stream: trio.SocketStream) -> None:
    async with stream:
        try:
            await stream.receive_some()
            await stream.send_all(data)
        except trio.BrokenResourceError:
            return


@pytest.mark.peers("redis-server")
async def test_redis_that_accepts_and_says_nothing_is_down(stage: Stage) -> None:
    redis = await stage.redis()
    web = checked(
        Forward("web", "tcp", [redis.text]),
        check="tcp",
        send="PING\r\n",
        expect="+PONG",
        timeout="200ms",
    )
    sockpair = await stage.sockpair(web)
    await health_of(sockpair, redis.text, "up")
    os.killpg(redis.program.pid, signal.SIGSTOP)
    try:
        await health_of(sockpair, redis.text, "down")
        reason = (await rows(sockpair))[redis.text]["reason"]
        assert reason == "connected, but no answer as expected within 0.2 s"
        status, body = await sockpair.ask("GET", "/readyz")
        assert status == 503
        assert "no endpoint is usable: down" in body
    finally:
        os.killpg(redis.program.pid, signal.SIGCONT)
    await health_of(sockpair, redis.text, "up")
    assert await reached(sockpair, web, count=2) == {redis.text}


@pytest.mark.peers("nsd")
async def test_a_name_server_that_dies_is_told_from_one_that_lives(stage: Stage) -> None:
    nsd = await stage.nsd()
    dead = f"127.0.0.1:{free_port()}"
    query = dns_query(f"ns.{ZONE}")
    dns = checked(
        Forward("dns", "udp", [nsd.text, dead]),
        check="udp",
        send_hex=query.hex(),
        expect_hex="c000",
    )
    sockpair = await stage.sockpair(dns)
    await health_of(sockpair, nsd.text, "up")
    await health_of(sockpair, dead, "down")
    assert (await rows(sockpair))[dead]["reason"] == "port unreachable"
    for _ in range(4):
        assert await dns_answer(dns.port, query)
    await nsd.program.kill()
    await health_of(sockpair, nsd.text, "down")


async def test_silence_of_a_datagram_endpoint_is_neither_up_nor_down(stage: Stage) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*silent.getsockname())
        log = checked(Forward("log", "udp", [address]), check="udp", timeout="20ms")
        sockpair = await stage.sockpair(log)

        async def silences() -> bool:
            metrics = await sockpair.metrics()
            return metrics.sum("sockpair_check_results_total", result="silent") >= 4

        await until(silences, "some checks")
        assert (await rows(sockpair))[address]["health"] == "unknown"
        assert (await sockpair.ask("GET", "/readyz"))[0] == 200
        assert (await sockpair.metrics()).sum("sockpair_endpoint_up") == 1
    await health_of(sockpair, address, "down")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        await health_of(sockpair, address, "unknown")


async def test_a_command_says_how_they_are(stage: Stage) -> None:
    one, two = await listen(stage.nursery, echo), await listen(stage.nursery, echo)
    file = stage.folder / "ill"
    script = f'echo "looked at $SOCKPAIR_ADDRESS"; ! grep -q "^$SOCKPAIR_PORT$" {file}'
    file.write_text("")
    web = checked(
        Forward("web", "tcp", [one, two]), check="command", command=["/bin/sh", "-c", script]
    )
    sockpair = await stage.sockpair(web)
    await health_of(sockpair, one, "up")
    await health_of(sockpair, two, "up")
    file.write_text(one.rpartition(":")[2] + "\n")
    await health_of(sockpair, one, "down")
    assert (await rows(sockpair))[one]["reason"] == "exit status 1: looked at 127.0.0.1"
    assert await reached(sockpair, web, count=4) == {two}
    assert await sockpair.stop() == 0


@WORKERS
async def test_an_endpoint_is_checked_once_however_many_workers(stage: Stage, workers: int) -> None:
    connections = 0

    async def count(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await stream.aclose()

    address = await listen(stage.nursery, count)
    web = checked(Forward("web", "tcp", [address]), check="tcp")
    sockpair = await stage.sockpair(web, workers=workers)

    async def results() -> int:
        return (await sockpair.metrics()).sum("sockpair_check_results_total")

    async def enough() -> bool:
        return await results() >= 10

    await until(enough, "some checks")
    before = connections
    assert before - 2 <= await results() <= connections + 2


async def test_another_port_is_checked_in_place_of_the_endpoints_own(stage: Stage) -> None:
    address = await listen(stage.nursery, echo)
    other = await listen(stage.nursery, echo)
    web = checked(Forward("web", "tcp", [address]), check="tcp", port=int(other.rpartition(":")[2]))
    sockpair = await stage.sockpair(web)
    await health_of(sockpair, address, "up")
    closed = replace(web, more=web.more.replace(f"port = {other.rpartition(':')[2]}", "port = 1"))
    await reload(sockpair, closed)
    await health_of(sockpair, address, "down")
    await reload(sockpair, replace(web, more=""))
    assert await rows(sockpair) == {}
    assert await reached(sockpair, web, count=2) == {address}, "nothing is known of it any more"


@WORKERS
async def test_a_worker_that_begins_later_knows_who_is_down(stage: Stage, workers: int) -> None:
    alive, dead = await listen(stage.nursery, echo), f"127.0.0.1:{free_port()}"
    web = checked(Forward("web", "tcp", [dead, alive]), check="tcp")
    sockpair = await stage.sockpair(web, workers=workers)
    await health_of(sockpair, dead, "down")
    if workers > 1:
        victim = (await sockpair.status())["workers"][0]["pid"]
        os.kill(victim, signal.SIGKILL)

        async def replaced() -> bool:
            pids = [row["pid"] for row in (await sockpair.status())["workers"]]
            return len(pids) == workers and victim not in pids

        await until(replaced, "another worker")
    assert await reached(sockpair, web, count=8) == {alive}
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_endpoint_connect_failures_total", endpoint=dead) <= 1


async def test_datagram_flows_go_where_checks_pass(stage: Stage) -> None:
    alive = await listen_datagrams(stage.nursery)
    dead = f"127.0.0.1:{free_port()}"
    game = checked(Forward("game", "udp", [dead, alive]), check="udp", send="ping", expect="ping")
    sockpair = await stage.sockpair(game)
    await health_of(sockpair, alive, "up")
    await health_of(sockpair, dead, "down")
    for _ in range(4):
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            await client.connect(game.address)
            await client.send(b"hello")
            with trio.fail_after(5):
                assert await client.recv(100) == b"hello"
