"""What befalls a machine, and what then does not befall the flows.

Elsewhere: descriptors run out (``test_life``), files that are wrong, names that have no address
and ports that are taken at a reload (``test_reload``), workers that die or hang
(``control/test_crew``), a log that nobody reads (``observe/test_log``).
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.program import Command, free_port
from tests.e2e.sockets import (
    connect,
    datagram_client,
    echo,
    exchange,
    expect_reset,
    listen,
    listen_datagrams,
    say,
)
from tests.e2e.subject import Forward, Sockpair

WORKERS = pytest.mark.parametrize("workers", [1, 2])


@WORKERS
async def test_the_configuration_file_is_gone(stage: Stage, workers: int) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web, workers=workers)
    async with await connect(web.address) as client:
        sockpair.settings.file.unlink()
        sockpair.program.process.send_signal(signal.SIGHUP)
        await until(lambda: sockpair.log_records("reload_failed"), "the reload that failed")
        (record,) = sockpair.log_records("reload_failed")
        assert str(sockpair.settings.file) in record["problems"][0]
        await say(client, b"still here")
    assert (await sockpair.metrics()).sum("sockpair_config_last_reload_successful") == 0


async def test_the_admin_socket_is_gone(stage: Stage) -> None:
    """Whoever removes the file has taken it from people; flows, metrics and signals go on."""
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web)
    async with await connect(web.address) as client:
        sockpair.settings.admin.unlink()
        await say(client, b"still here")
        status = await http_status(sockpair.settings.admin_port)
        assert status.startswith(b"HTTP/1.1 200")
        sockpair.program.process.send_signal(signal.SIGHUP)
        await until(lambda: sockpair.log_records("reloaded"), "the reload")
    assert await sockpair.stop() == 0


@WORKERS
async def test_it_is_stopped_for_a_while_and_goes_on(stage: Stage, workers: int) -> None:
    limits = {"idle": "1s"}
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)], limits=limits)
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)])
    sockpair = await stage.sockpair(web, game, workers=workers)
    group = [sockpair.pid, *(row["pid"] for row in (await sockpair.status())["workers"])]
    async with await connect(web.address) as client, datagram_client(game.address) as player:
        await say(client, b"before")
        await exchange(player, b"before")
        for pid in group:
            os.kill(pid, signal.SIGSTOP)
        await trio.sleep(0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, client, b"meanwhile")
            await trio.sleep(0.1)
            for pid in group:
                os.kill(pid, signal.SIGCONT)
        await exchange(player, b"after")
        await say(client, b"after")
    await sockpair.books("web", flows=1)


@WORKERS
async def test_an_endpoint_that_dies_leaves_its_clients_to_the_other(
    stage: Stage, workers: int
) -> None:
    alive = await listen(stage.nursery, echo)
    dead = f"127.0.0.1:{free_port()}"
    web = Forward("web", "tcp", [dead, alive])
    sockpair = await stage.sockpair(web, workers=workers)
    for _ in range(20):
        async with await connect(web.address) as client:
            await say(client, b"hello")
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_endpoint_up", endpoint=dead) == 0
    failures = metrics.sum("sockpair_endpoint_connect_failures_total", endpoint=dead)
    assert failures >= 5, "and then it is ejected"
    books = await sockpair.books("web", flows=20)
    assert books.reasons == {"finished": 20}


@WORKERS
async def test_a_kill_leaves_no_worker_and_no_port_behind(stage: Stage, workers: int) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    first = await stage.sockpair(web, workers=workers)
    pids = [row["pid"] for row in (await first.status())["workers"]]
    assert len(pids) == workers
    async with await connect(web.address) as client:
        await say(client, b"hello")
        first.program.process.send_signal(signal.SIGKILL)
        await first.program.process.wait()
        await until(lambda: not any(map(_lives, pids)), "the workers' end")
    second = await stage.sockpair(web, workers=workers)
    async with await connect(web.address) as client:
        await say(client, b"hello again")
    await second.books("web", flows=1)


@WORKERS
async def test_a_full_disk_under_the_log_stops_nothing(stage: Stage, workers: int) -> None:
    """/dev/full takes no line; each one is counted."""
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await full(stage, web, workers)
    for _ in range(10):
        async with await connect(web.address) as client:
            await say(client, b"hello")

    async def lost() -> bool:
        return (await sockpair.metrics()).sum("sockpair_log_records_dropped_total") >= 10

    await until(lost, "the lines that nobody took")
    assert (await sockpair.metrics()).sum("sockpair_flows_closed_total", reason="finished") == 10
    assert await sockpair.stop() == 0


@pytest.mark.peers("faketime")
@WORKERS
async def test_the_clock_is_set_and_no_flow_ends_of_it(stage: Stage, workers: int) -> None:
    """Hours forward, then back: clocks of flows are monotonic, and times shown follow."""
    hours = {"idle": "1h", "duration": "2h"}
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)], limits=hours)
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)], limits=hours)
    brief = replace(web, name="brief", port=free_port(), limits={"idle": "300ms"})
    clock = stage.folder / "clock"
    clock.write_text("+0s")
    sockpair = await stage.sockpair(web, game, brief, wrapper=faked(clock), workers=workers)
    async with await connect(web.address) as client, datagram_client(game.address) as player:
        for hour in (0, 5, -5):
            clock.write_text(f"{hour:+}h")
            now = time.time() + 3600 * hour
            await say(client, b"hello")
            assert await exchange(player, b"hello") == b"hello"
            async with await connect(brief.address) as other:
                await say(other, b"hello")
                await expect_reset(other)
            rows = {row["listener"]: row for row in await sockpair.flows()}
            assert set(rows) == {"web", "game"}
            for row in rows.values():
                assert abs(row["opened"] - now) < 60, "the time by today's clock"
                assert abs(row["last_active"] - now) < 60
            await until(partial(is_told, sockpair, now), "the line of the flow that has ended")
        sockpair.program.process.send_signal(signal.SIGHUP)
        await until(lambda: sockpair.log_records("reloaded"), "the reload")
    assert (await sockpair.books("web", flows=1)).reasons == {"finished": 1}
    assert {row["close_reason"] for row in sockpair.logged("brief")} == {"idle_timeout"}
    assert await sockpair.stop() == 0


def is_told(sockpair: Sockpair, now: float) -> bool:
    """Whether the last flow of "brief" is in the log, by today's clock."""
    told = sockpair.log_records("flow")
    return bool(told) and abs(told[-1]["closed"] - now) < 60 and iso(told[-1]["time"], now)


def iso(text: str, now: float) -> bool:
    return abs(datetime.fromisoformat(text).timestamp() - now) < 60


def faked(clock: Path) -> Command:
    """Have a program take the time of day from a file; its monotonic clock stays the real one."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    return [
        *("env", f"LD_PRELOAD={library}", f"FAKETIME_TIMESTAMP_FILE={clock}"),
        *("FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"),
    ]


async def full(stage: Stage, web: Forward, workers: int) -> Sockpair:
    """A sockpair whose standard error is a full disk."""
    folder = stage.folder / "sockpair"
    folder.mkdir()
    (folder / "sockpair.err").symlink_to("/dev/full")
    return await stage.sockpair(web, workers=workers)


async def http_status(port: int) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return await stream.receive_some(100)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
