"""Real programs over Unix sockets, on either side, and back out again."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.peers import HOST, RedisBooks
from tests.e2e.program import Program, free_port, output_of, peer, program, start
from tests.e2e.subject import Forward, Sockpair, UnixForward, agree_nothing_lost

ME = {"uid": os.getuid(), "gid": os.getgid()}


@asynccontextmanager
async def unix_redis(folder: Path) -> AsyncIterator[Path]:
    """Serve redis at a Unix socket alone."""
    path = folder / "redis.sock"
    command = [
        *(peer("redis-server"), "--port", "0", "--unixsocket", path, "--dir", folder),
        *("--save", "", "--appendonly", "no"),
    ]
    async with program(command, folder, path.is_socket, name="redis"):
        yield path


async def sockpair_command(sockpair: Sockpair, *words: str) -> str:
    admin = str(sockpair.settings.admin)
    return await output_of(sys.executable, "-m", "proxy", *words, "--admin", admin)


@pytest.mark.peers("redis-server", "redis-benchmark", "redis-cli")
async def test_a_tcp_listener_fronts_redis_at_a_unix_socket(stage: Stage) -> None:
    async with unix_redis(stage.folder) as path:
        sockpair = await stage.sockpair(cache := Forward("cache", "tcp", [f"unix://{path}"]))
        to_cache = ("-h", cache.host, "-p", str(cache.port))
        large = "x" * 100_000
        assert await output_of(peer("redis-cli"), *to_cache, "SET", "key", large) == "OK\n"
        assert await output_of(peer("redis-cli"), *to_cache, "GET", "key") == f"{large}\n"
        stream = await trio.open_unix_socket(path)
        async with stream:
            ledger = RedisBooks(stream)
            before = await ledger.read()
            while await sockpair.flows():  # of redis-cli, which is gone
                await trio.sleep(0.01)
            known = {row["id"] for row in await sockpair.flows(recent="true")}
            said = await output_of(
                *(peer("redis-benchmark"), *to_cache, "-c", "50", "-n", "5000"),
                *("-t", "set,get,lpush,lrange_100", "-d", "100", "--csv"),
            )
            books = await sockpair.books("cache")
            after = await ledger.read()
        assert re.findall(r'^"(SET|GET|LPUSH)"', said, re.MULTILINE) == ["SET", "GET", "LPUSH"]
        rows = [row for row in books.rows if row["id"] not in known]
        assert len(rows) >= 4 * 50
        carried = [sum(row[way]["bytes"] for row in rows) for way in ("original", "reply")]
        assert carried == [after.received - before.received, after.sent - before.sent]
        assert {row["endpoint"]["remote"] for row in rows} == {f"unix:{path}"}
        (server,) = {tuple(row["endpoint_credentials"].items()) for row in rows}
        assert dict(server).items() >= ME.items()
        told = f"unix:{path}(pid={dict(server)['pid']},uid={os.getuid()})"
        assert told in await sockpair_command(sockpair, "flows", "--recent")
        agree_nothing_lost("cache", await sockpair.metrics())


@pytest.mark.peers("redis-server", "redis-cli", "redis-benchmark")
async def test_a_unix_listener_leads_to_redis_by_tcp(stage: Stage) -> None:
    origin = await stage.redis()
    path = stage.folder / "front.sock"
    front = UnixForward("cache", "unix", [origin.text], str(path))
    sockpair = await stage.sockpair(front)
    assert await output_of(peer("redis-cli"), "-s", path, "PING") == "PONG\n"
    await output_of(
        peer("redis-benchmark"), "-s", path, "-c", "20", "-n", "2000", "-t", "set,get", "-q"
    )
    books = await sockpair.books("cache")
    assert len(books.rows) >= 1 + 2 * 20
    for row in books.rows:
        assert row["transport"] == "unix"
        assert row["client"] == {"local": f"unix:{path}", "remote": "unix:", "via": None}
        assert row["credentials"].items() >= ME.items()
        assert row["credentials"]["pid"] > 0
        assert row["source"] == f"uid:{os.getuid()}"
    agree_nothing_lost("cache", await sockpair.metrics())

    found = json.loads(await sockpair_command(sockpair, "find", f"unix:{path}", "-o", "json"))
    assert len(found) == min(100, len(books.rows))
    assert "unix:" in await sockpair_command(sockpair, "flows", "--recent")
    everything = ("flows", "--recent", "--client", "0.0.0.0/0", "-o", "json")
    assert json.loads(await sockpair_command(sockpair, *everything)) == []
    listening = await sockpair_command(sockpair, "flows", "-l")
    assert f"unix:{path}" in listening
    assert await sockpair.stop() == 0
    assert not path.exists()


@asynccontextmanager
async def socat_sink(folder: Path, address: str, output: str) -> AsyncIterator[Program]:
    """Have socat write what it receives to a file."""
    started = await start(
        (peer("socat"), "-u", address, f"OPEN:{output},creat,append"), folder, name="sink"
    )
    try:
        yield started
    finally:
        await started.kill()


@pytest.mark.peers("socat")
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
async def test_socat_sends_datagrams_through_a_unix_socket(stage: Stage, named: bool) -> None:
    """Two lines from each of two senders, as a syslog client would."""
    door, origin, lines = (stage.folder / name for name in ("door", "origin", "lines"))
    async with socat_sink(stage.folder, f"UNIX-RECV:{origin}", str(lines)):
        await until(origin.is_socket, "socat to listen")
        forward = UnixForward("log", "unixgram", [f"unixgram://{origin}"], str(door))
        sockpair = await stage.sockpair(forward)
        for number in range(2):
            target = f"UNIX-SENDTO:{door}" + (f",bind={door}{number}" if named else "")
            await output_of(peer("socat"), "-u", f"SYSTEM:echo line {number}", target)
        expected = {f"line {number}" for number in range(2)}
        await until(
            lambda: lines.exists() and expected <= set(lines.read_text().split("\n")),
            "both lines to arrive",
        )
        rows = await sockpair.wait_flows(2 if named else 1)
    for number, row in enumerate(sorted(rows, key=lambda row: row["id"])):
        assert row["state"] == "unreplied"
        assert row["client"]["remote"] == (f"unix:{door}{number}" if named else "unix:")
        assert (row["credentials"] or {}).get("uid") == (os.getuid() if named else None)


@pytest.mark.peers("socat")
async def test_socat_is_answered_through_a_unix_datagram_socket(stage: Stage) -> None:
    door, client = stage.folder / "door", stage.folder / "client"
    port = free_port()
    echo = (peer("socat"), f"UDP-LISTEN:{port},bind={HOST},fork", "PIPE")
    started = await start(echo, stage.folder, name="echo")
    try:
        await until(lambda: _is_bound(port), "socat to listen")
        forward = UnixForward("echo", "unixgram", [f"{HOST}:{port}"], str(door))
        sockpair = await stage.sockpair(forward)
        said = await output_of(
            *("sh", "-c", 'echo "there and back" | "$0" -t 2 - "$1"', peer("socat")),
            f"UNIX-SENDTO:{door},bind={client}",
        )
        assert said == "there and back\n"
        (row,) = await sockpair.flows()
        assert (row["state"], row["client"]["remote"]) == ("assured", f"unix:{client}")
    finally:
        await started.kill()


def _is_bound(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


@pytest.mark.peers("redis-server", "redis-cli")
async def test_a_socket_left_by_a_crash_is_replaced(stage: Stage) -> None:
    origin = await stage.redis()
    path = stage.folder / "front.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    await stage.sockpair(UnixForward("cache", "unix", [origin.text], str(path)))
    assert await output_of(peer("redis-cli"), "-s", path, "PING") == "PONG\n"
