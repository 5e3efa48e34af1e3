"""Names whose addresses change under way, by a real DNS server: who gets new flows, who keeps his.

The endpoints are on loopback addresses of their own, all at one port, and say their address to
whoever connects.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import PATIENCE, until
from tests.e2e.peers import ZONE
from tests.e2e.program import free_port
from tests.e2e.reloading import command, reload
from tests.e2e.sockets import connect, datagram_client, exchange, family_of, say
from tests.e2e.subject import Forward, Sockpair, start_sockpair
from tests.e2e.zone import Zone, zone

FAST = '[names]\nservers = ["{}"]\ntimeout = "{}"\nttl_min = "50ms"\nttl_max = "1s"\n'
NAME = f"web.{ZONE}"

ONE, TWO, SIX = "127.0.1.1", "127.0.1.2", "::1"

pytestmark = pytest.mark.peers("nsd")

WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
async def dns(tmp_path: Path) -> AsyncIterator[Zone]:
    async with zone(tmp_path / "nsd", f"web 0 A {ONE}\n") as served:
        yield served


def named(dns: Zone, *endpoints: str, timeout: str = "5s", transport: str = "tcp") -> Forward:
    """A listener whose endpoints are names."""
    return Forward("web", transport, endpoints, more=FAST.format(dns.server, timeout))


async def tell(nursery: trio.Nursery, hosts: Sequence[str], port: int) -> None:
    """Serve at each address: say it first, then echo."""

    async def serve(host: str, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await stream.send_all(f"{host}\n".encode())
                async for chunk in stream:
                    await stream.send_all(chunk)
            except trio.BrokenResourceError:
                return

    for host in hosts:
        listening = trio.socket.socket(family_of(host), socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await listening.bind((host, port))
        listening.listen(64)
        served = [trio.SocketListener(listening)]
        nursery.start_soon(trio.serve_listeners, partial(serve, host), served)


async def greeting(client: trio.SocketStream) -> str:
    told = b""
    with trio.fail_after(PATIENCE):
        while not told.endswith(b"\n"):
            told += await client.receive_some(1)
    return told.decode().strip()


async def who(web: Forward, count: int = 6) -> set[str]:
    """The endpoints that so many new flows reach."""
    reached = set[str]()
    for _ in range(count):
        async with await connect(web.address) as client:
            reached.add(await greeting(client))
    return reached


async def until_reached(web: Forward, hosts: set[str]) -> None:
    async def look() -> bool:
        return await who(web) == hosts

    await until(look, f"new flows to reach {hosts}")


async def names(sockpair: Sockpair) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await sockpair.get("/api/v1/names"))["names"]
    return found


@WORKERS
async def test_another_address_takes_new_flows_and_the_former_keeps_its_own(
    stage: Stage, dns: Zone, workers: int
) -> None:
    port = free_port()
    await tell(stage.nursery, [ONE, TWO], port)
    web = named(dns, f"{NAME}:{port}")
    sockpair = await stage.sockpair(web, workers=workers)
    async with await connect(web.address) as client:
        assert await greeting(client) == ONE
        await dns.become(f"web 0 A {TWO}\n")
        await until_reached(web, {TWO})
        await say(client, b"still here")
        (row,) = [row for row in await sockpair.flows() if row["state"] == "established"]
        assert row["endpoint"]["remote"] == f"{ONE}:{port}"
        await dns.become(f"web 0 A {ONE}\nweb 0 A {TWO}\n")
        await until_reached(web, {ONE, TWO})
    (row,) = await names(sockpair)
    assert row["endpoint"] == f"{NAME}:{port}"
    assert row["addresses"] == [ONE, TWO]
    assert not row["stale"]
    await until(lambda: len(sockpair.log_records("name_changed")) == 2, "both changes in the log")
    changes = [(each["added"], each["removed"]) for each in sockpair.log_records("name_changed")]
    assert changes == [([TWO], [ONE]), ([ONE], [])]
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_name_addresses") == 2
    assert metrics.sum("sockpair_name_lookups_total", result="ok") >= 3
    assert metrics.sum("sockpair_name_lookups_total", result="failed") == 0
    books = await sockpair.books("web")
    assert set(books.reasons) == {"finished"}


async def test_a_second_family_comes_and_is_not_wanted(stage: Stage, dns: Zone) -> None:
    port = free_port()
    await tell(stage.nursery, [ONE, SIX], port)
    web = named(dns, f"{NAME}:{port}")
    sockpair = await stage.sockpair(web)
    assert await who(web) == {ONE}
    await dns.become(f"web 0 A {ONE}\nweb 0 AAAA {SIX}\n")
    await until_reached(web, {ONE, SIX})
    only = Forward("web", "tcp", web.endpoints, port=web.port, more=f'family = "ipv6"\n{web.more}')
    assert "~ upstream.web.family" in await reload(sockpair, only)
    assert await who(only) == {SIX}


async def test_a_service_has_its_own_ports_and_priorities(stage: Stage, dns: Zone) -> None:
    one, two, three = free_port(), free_port(), free_port()
    await tell(stage.nursery, [ONE], one)
    await tell(stage.nursery, [TWO], two)
    await tell(stage.nursery, ["127.0.1.3"], three)
    hosts = f"a 0 A {ONE}\nb 0 A {TWO}\nc 0 A 127.0.1.3\n"
    service = f"_web._tcp 0 SRV 1 3 {one} a\n_web._tcp 0 SRV 1 1 {two} b\n"
    await dns.become(f"{hosts}{service}_web._tcp 0 SRV 2 0 {three} c\n")
    web = named(dns, f"srv://_web._tcp.{ZONE}")
    sockpair = await stage.sockpair(web)
    assert await who(web, count=8) == {ONE, TWO}
    metrics = await sockpair.metrics()
    attempts = "sockpair_endpoint_connect_attempts_total"
    assert metrics.sum(attempts, endpoint=f"srv://_web._tcp.{ZONE}") == 8
    async with await connect(web.address) as client:
        await greeting(client)
        rows = [row["endpoint"]["remote"] for row in await sockpair.flows(recent="true")]
        assert sorted(map(rows.count, set(rows))) == [2, 6]  # by their weights, three to one
        await dns.become(f"{hosts}_web._tcp 0 SRV 1 0 {three} c\n")
        await until_reached(web, {"127.0.1.3"})
        await say(client, b"still here")


async def test_datagrams_follow_a_name_with_their_next_flow(stage: Stage, dns: Zone) -> None:
    port = free_port()
    for host in (ONE, TWO):
        bound = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await bound.bind((host, port))
        stage.nursery.start_soon(tell_datagrams, bound, host)
    game = named(dns, f"{NAME}:{port}", transport="udp")
    await stage.sockpair(game)
    async with datagram_client(game.address) as former:
        assert await exchange(former, b"who") == ONE.encode()
        await dns.become(f"web 0 A {TWO}\n")

        async def moved() -> bool:
            async with datagram_client(game.address) as client:
                return await exchange(client, b"who") == TWO.encode()

        await until(moved, "a flow to the other address")
        assert await exchange(former, b"who") == ONE.encode()


async def tell_datagrams(bound: trio.socket.SocketType, host: str) -> None:
    with bound:
        while True:
            _, sender = await bound.recvfrom(100)
            await bound.sendto(host.encode(), sender)


@WORKERS
async def test_dns_is_gone_and_comes_back(stage: Stage, dns: Zone, workers: int) -> None:
    port = free_port()
    await tell(stage.nursery, [ONE, TWO], port)
    web = named(dns, f"{NAME}:{port}", timeout="100ms")
    sockpair = await stage.sockpair(web, workers=workers)
    dns.stop()
    await until(lambda: sockpair.log_records("name_failed"), "the line that DNS is gone")

    async def failing() -> bool:
        metrics = await sockpair.metrics()
        return metrics.sum("sockpair_name_lookups_total", result="failed") >= 3

    await until(failing, "some more failures")
    assert await who(web) == {ONE}
    assert (await sockpair.ask("GET", "/readyz"))[0] == 200
    (row,) = await names(sockpair)
    assert row["stale"]
    assert dns.server in row["reason"]
    (record,) = sockpair.log_records("name_failed")
    assert (record["name"], record["addresses"]) == (NAME, 1)
    await reload(sockpair, web)
    assert await who(web) == {ONE}
    dns.go_on()
    await dns.become(f"web 0 A {TWO}\n")
    await until_reached(web, {TWO})
    await until(lambda: sockpair.log_records("name_recovered"), "the line that DNS is back")
    (row,) = await names(sockpair)
    assert not row["stale"]
    assert row["last_success"] > record_time(record)


def record_time(record: dict[str, Any]) -> float:
    from datetime import datetime

    return datetime.fromisoformat(record["time"]).timestamp()


async def test_a_name_that_is_gone_leaves_its_last_addresses(stage: Stage, dns: Zone) -> None:
    port = free_port()
    await tell(stage.nursery, [ONE], port)
    web = named(dns, f"{NAME}:{port}")
    sockpair = await stage.sockpair(web)
    await dns.become("other 0 A 127.0.1.9\n")

    async def absent() -> bool:
        metrics = await sockpair.metrics()
        return metrics.sum("sockpair_name_lookups_total", result="absent") > 0

    await until(absent, "the answer that there is no such name")
    assert await who(web) == {ONE}


async def test_a_start_does_not_wait_for_dns_that_is_gone(stage: Stage, dns: Zone) -> None:
    """What needs no name is served at once, the rest when DNS is back."""
    port = free_port()
    await tell(stage.nursery, [ONE], port)
    web = named(dns, f"{NAME}:{port}", timeout="200ms")
    plain = Forward("plain", "tcp", [f"{ONE}:{port}"])
    dns.stop()
    sockpair = await started(stage, web, plain)
    assert await who(plain) == {ONE}
    status, body = await sockpair.ask("GET", "/readyz")
    assert status == 503
    assert 'upstream \\"web\\": no endpoint has an address' in body
    (record,) = sockpair.log_records("name_unresolved")
    assert NAME in record["problem"]
    with trio.fail_after(PATIENCE):
        assert await is_reset(web)
    assert (await sockpair.metrics()).sum("sockpair_name_addresses") == 0
    dns.go_on()
    await until(partial(is_ready, sockpair), "the name to be resolved")
    assert await who(web) == {ONE}


async def started(stage: Stage, *forwards: Forward) -> Sockpair:
    """Start sockpair where it is not ready at once."""
    settings = stage.settings(*forwards)
    sockpair = Sockpair(settings, await start_sockpair(settings))
    stage.at_end(sockpair.program.kill)
    await until(lambda: sockpair.log_records("started"), "sockpair to start")
    return sockpair


async def is_reset(web: Forward) -> bool:
    """Connect, and tell whether RST was the answer, be it at once or a moment later."""
    try:
        async with await connect(web.address) as client:
            await client.receive_some(1)
    except (trio.BrokenResourceError, ConnectionResetError):
        return True
    return False


async def is_ready(sockpair: Sockpair) -> bool:
    return (await sockpair.ask("GET", "/readyz"))[0] == 200


async def test_a_start_fails_for_a_name_that_does_not_exist(stage: Stage, dns: Zone) -> None:
    settings = stage.settings(named(dns, f"nobody.{ZONE}:80"))
    failed = await start_sockpair(settings)
    try:
        with trio.fail_after(2 * PATIENCE):
            assert await failed.process.wait() == 1
    finally:
        await failed.kill()
    *_, line = failed.errors.read_text().splitlines()  # after those of the log
    assert f'upstream.web: cannot resolve "nobody.{ZONE}": there is no such name' in line


async def test_what_was_drained_by_hand_stays_so_at_its_new_address(
    stage: Stage, dns: Zone
) -> None:
    port = free_port()
    await tell(stage.nursery, [ONE, TWO, "127.0.1.3"], port)
    other = f"127.0.1.3:{port}"
    web = named(dns, f"{NAME}:{port}", other)
    sockpair = await stage.sockpair(web)
    assert await who(web) == {ONE, "127.0.1.3"}
    await command(sockpair, "drain", "--endpoint", f"{NAME}:{port}")
    await dns.become(f"web 0 A {TWO}\n")
    await until(lambda: sockpair.log_records("name_changed"), "the other address")
    assert await who(web) == {"127.0.1.3"}
    await reload(sockpair, web)
    assert await who(web) == {TWO, "127.0.1.3"}


async def test_a_reload_that_fails_leaves_names_as_they_are(stage: Stage, dns: Zone) -> None:
    port = free_port()
    await tell(stage.nursery, [ONE, TWO], port)
    web = named(dns, f"{NAME}:{port}")
    sockpair = await stage.sockpair(web)
    sockpair.settings.file.write_text(
        sockpair.settings.file.read_text().replace(NAME, f"no.{ZONE}")
    )
    os.kill(sockpair.pid, signal.SIGHUP)
    await until(lambda: sockpair.log_records("reload_failed"), "the reload that failed")
    assert f"no.{ZONE}" in sockpair.log_records("reload_failed")[0]["problems"][0]
    await dns.become(f"web 0 A {TWO}\n")
    await until_reached(web, {TWO})
