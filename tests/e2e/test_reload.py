"""Reload, as operators do it: nothing is lost, nothing is half done, and what it did is told."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.program import free_port, peer
from tests.e2e.reloading import Load, command, reload, rewrite
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


@pytest.mark.parametrize(
    "reloads", [20, pytest.param(100, marks=pytest.mark.slow)], ids=["some", "many"]
)
async def test_clients_never_notice(
    stage: Stage, reloads: int, measured: Callable[[str], None]
) -> None:
    origins = [await listen(stage.nursery, echo) for _ in range(2)]
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)])
    web = Forward("web", "tcp", origins)
    spare = Forward("spare", "tcp", origins)
    sockpair = await stage.sockpair(web, game)
    least = 300 * reloads if reloads > 20 else 0
    async with trio.open_nursery() as clients:
        load = Load(clients)
        load.start(web, game)
        for number in range(reloads):
            before = load.requests
            extra = [spare] if number % 2 else []
            endpoints = origins[: 1 + number % 2]
            limits = {"idle": f"{60 + number}s"}
            now = replace(web, endpoints=endpoints, limits=limits)
            assert await reload(sockpair, now, replace(game, limits=limits), *extra)
            await until(lambda seen=before: load.requests > seen + 50, "clients to go on")
        await until(lambda: load.requests >= least, f"{least} requests", 600)
        load.stop()
    await sockpair.wait_flows(0, listener="web")
    metrics = await sockpair.metrics()
    opened = metrics.sum("sockpair_flows_opened_total", listener="web")
    assert metrics.sum("sockpair_flows_closed_total", listener="web", reason="finished") == opened
    await until(lambda: len(sockpair.log_records("reloaded")) == reloads, "the log")
    measured(f"{load.requests} requests across {reloads} reloads, none failed")


async def test_a_bad_file_changes_nothing_and_says_why(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web)
    good = sockpair.settings.file.read_text()
    sockpair.settings.file.write_text(f"{good}typo = 1\n[listener.web.limts]\n[upstream.x]\n")
    done = await command(sockpair, "reload", status=1)
    lines = done.stderr.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith(f"{sockpair.settings.file}:") for line in lines)
    assert done.stdout == ""
    (record,) = await until(lambda: sockpair.log_records("reload_failed"), "the log")
    assert record["problems"] == lines
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_config_last_reload_successful") == 0
    begun = metrics.sum("sockpair_config_last_reload_success_timestamp_seconds")
    async with await connect(web.address) as client:
        await say(client, b"as before")
    sockpair.settings.file.write_text(good)
    assert (await command(sockpair, "reload")).stdout == ""
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_config_last_reload_successful") == 1
    assert metrics.sum("sockpair_config_last_reload_success_timestamp_seconds") >= begun


async def test_a_port_that_is_taken_changes_nothing(stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    web, old = Forward("web", "tcp", [endpoint]), Forward("old", "tcp", [endpoint])
    new, taken = Forward("new", "tcp", [endpoint]), Forward("taken", "tcp", [endpoint])
    sockpair = await stage.sockpair(web, old)
    before = sockpair.descriptors()
    with socket.socket() as holder:
        holder.bind(taken.address)
        holder.listen()
        rewrite(sockpair, replace(web, limits={"idle": "1s"}), new, taken)
        done = await command(sockpair, "reload", status=1)
    assert taken.text in done.stderr
    assert "in use" in done.stderr
    assert {row["listener"] for row in (await sockpair.status())["listening"]} == {"web", "old"}
    assert sockpair.descriptors() <= before + 1
    for forward in (web, old):
        async with await connect(forward.address) as client:
            await say(client, b"as before")
            (row,) = await sockpair.flows(listener=forward.name)
            assert row["limits"]["idle"] == 7440.0
    assert new.port  # nobody has it
    with socket.socket() as probe:
        probe.bind(new.address)


async def test_a_dry_run_tells_and_changes_nothing(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web)
    rewrite(sockpair, replace(web, port=free_port()), table_limit=7)
    plan = (await command(sockpair, "reload", "--dry-run")).stdout
    assert "~ listener.web.listen: " in plan
    assert "~ engine.table_limit: 100000 -> 7\n" in plan
    status = await sockpair.status()
    assert [row["local"] for row in status["listening"]] == [web.text]
    assert status["table_limit"] == 100000
    assert not sockpair.log_records("reloaded")


async def test_limits_apply_to_live_flows(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)])
    sockpair = await stage.sockpair(web, game)
    async with await connect(web.address) as client, datagram_client(game.address) as player:
        await say(client, b"hello")
        await exchange(player, b"hello")
        short = {"idle": "100ms"}
        await reload(sockpair, replace(web, limits=short), replace(game, limits=short))
        await expect_reset(client)
    for name in ("web", "game"):
        assert (await sockpair.books(name, flows=1)).reasons == {"idle_timeout": 1}


async def test_a_listener_that_moves_keeps_its_flows_and_its_counters(stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    web = Forward("web", "tcp", [endpoint])
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)])
    sockpair = await stage.sockpair(web, game)
    moved, moved_game = replace(web, port=free_port()), replace(game, port=free_port())
    async with await connect(web.address) as client, datagram_client(game.address) as player:
        await say(client, b"hello")
        await exchange(player, b"hello")
        await reload(sockpair, moved, moved_game)
        await say(client, b"still here")
        await exchange(player, b"me too")
        async with await connect(moved.address) as other:
            await say(other, b"hello")
        async with datagram_client(moved_game.address) as other_player:
            await exchange(other_player, b"hello")
        with pytest.raises(OSError, match="refused"):
            await connect(web.address)
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_flows_opened_total", listener="web") == 2
    assert metrics.sum("sockpair_flows_opened_total", listener="game") == 2


async def test_a_wildcard_may_take_the_place_of_one_address(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web)
    for host in ("0.0.0.0", "127.0.0.1"):
        await reload(sockpair, replace(web, host=host))
        async with await connect(web.address) as client:
            await say(client, b"hello")


async def test_a_listener_that_is_removed_drains_and_may_come_back(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)])
    keep = Forward("keep", "tcp", ["127.0.0.1:9"])
    sockpair = await stage.sockpair(web, game, keep, drain_timeout="1h")
    async with await connect(web.address) as client, datagram_client(game.address) as player:
        await say(client, b"hello")
        await exchange(player, b"hello")
        plan = await reload(sockpair, keep)
        assert "- listener web: accepts no more, its flows drain\n" in plan
        with pytest.raises(OSError, match="refused"):
            await connect(web.address)
        await say(client, b"still here")
        await exchange(player, b"me too")
        async with datagram_client(game.address) as stranger:
            await stranger.send(b"anybody?")
            await until(lambda: was_refused(sockpair), "a stranger to be refused")
        status = await sockpair.status()
        assert {row["listener"]: row["flows"] for row in status["drains"]} == {"web": 1, "game": 1}
        await reload(sockpair, web, game, keep)
        assert (await sockpair.status())["drains"] == []
        await say(client, b"and still here")
        await exchange(player, b"me too")
        async with await connect(web.address) as other:
            await say(other, b"hello")
        async with datagram_client(game.address) as stranger:
            await exchange(stranger, b"now?")
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_flows_opened_total", listener="web") == 2
    assert metrics.sum("sockpair_flows_opened_total", listener="game") == 2
    await reload(sockpair, web, game, keep, drain_timeout="1ms")


async def was_refused(sockpair: Sockpair) -> bool:
    metrics = await sockpair.metrics()
    return metrics.sum("sockpair_flows_refused_total", listener="game", reason="draining") == 1


async def test_a_removed_listener_ends_its_flows_in_the_end_and_its_series(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    keep = Forward("keep", "tcp", ["127.0.0.1:9"])
    sockpair = await stage.sockpair(web, keep, drain_timeout="50ms")
    async with await connect(web.address) as client:
        await say(client, b"hello")
        await reload(sockpair, keep)
        await expect_reset(client)
    await until(lambda: len(sockpair.logged("web")) == 1, "the log")
    assert sockpair.logged("web")[0]["close_reason"] == "drained"
    assert 'listener="web"' not in (await sockpair.metrics()).text
    await reload(sockpair, web, keep)
    assert (await sockpair.metrics()).sum("sockpair_flows_opened_total", listener="web") == 1


async def test_another_transport_under_the_same_name(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web)
    async with await connect(web.address) as client:
        await say(client, b"hello")
        game = replace(web, transport="udp", endpoints=[await listen_datagrams(stage.nursery)])
        await reload(sockpair, game)
        async with datagram_client(game.address) as player:
            await exchange(player, b"hello")
        await say(client, b"still here")
        text = (await sockpair.metrics()).text
    assert len(text.splitlines()) == len(set(text.splitlines()))
    assert 'sockpair_flows_opened_total{listener="web"} 2.0' in text


async def test_what_needs_a_restart_is_said_and_the_rest_is_done(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web)
    sockpair.settings = replace(sockpair.settings, admin_port=free_port())
    for _ in range(2):
        plan = await reload(sockpair, web, table_limit=7)
        assert "! admin.http: " in plan
        assert "needs a restart" in plan
    assert (await sockpair.status())["table_limit"] == 7


async def test_hundreds_of_reloads_leave_nothing_behind(
    stage: Stage, measured: Callable[[str], None]
) -> None:
    endpoint = await listen(stage.nursery, echo)
    web, other = Forward("web", "tcp", [endpoint]), Forward("other", "tcp", [endpoint])
    game = Forward("game", "udp", [endpoint])
    sockpair = await stage.sockpair(web)
    memory, files = [], sockpair.descriptors()
    for _ in range(3):
        for number in range(100):
            rewrite(sockpair, web, *([other, game] if number % 2 == 0 else []))
            assert (await sockpair.ask("POST", "/api/v1/reload"))[0] == 200
        memory.append(sockpair.memory())
    await until(lambda: sockpair.descriptors() <= files, "all sockets to be closed")
    assert memory[2] - memory[1] < 2048
    measured(f"300 reloads: memory in KiB after each hundred {memory}")


async def test_the_log_changes_at_once(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web)
    file = sockpair.settings.file
    usual = file.read_text()
    for text in (usual.replace("[log]", '[log]\nflows = "off"'), usual):
        file.write_text(text)
        await command(sockpair, "reload")
        async with await connect(web.address) as client:
            await say(client, b"hello")
        await sockpair.wait_flows(0)
    await until(lambda: sockpair.logged("web"), "the second flow")
    assert [row["id"] for row in sockpair.logged("web")] == [2]


@pytest.mark.slow
@pytest.mark.peers("redis-server", "redis-benchmark")
@pytest.mark.parametrize(
    ("requests", "connections"), [(1_000_000, "keep"), (50_000, "new")], ids=["keep-alive", "new"]
)
async def test_a_million_requests_across_a_hundred_reloads(
    stage: Stage, requests: int, connections: str, measured: Callable[[str], None]
) -> None:
    origin = await stage.redis()
    cache = Forward("cache", "tcp", [origin.text])
    spare = Forward("spare", "tcp", ["127.0.0.1:9"])
    sockpair = await stage.sockpair(cache)
    running = trio.Event()
    reloads = 0

    async def ask() -> None:
        said = await trio.run_process(
            [
                *(peer("redis-benchmark"), "-h", cache.host, "-p", str(cache.port), "-c", "50"),
                *("-n", str(requests), "-t", "ping_mbulk", "-q"),
                *("-k", "1" if connections == "keep" else "0"),
            ],
            capture_stdout=True,
            capture_stderr=True,
        )
        assert b"rror" not in said.stdout + said.stderr
        running.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        while reloads < 100 or not running.is_set():
            limits = {"idle": f"{60 + reloads % 100}s"}
            rewrite(sockpair, replace(cache, limits=limits), *([spare] if reloads % 2 else []))
            assert (await sockpair.ask("POST", "/api/v1/reload"))[0] == 200
            reloads += 1
            await trio.sleep(requests / 5_000_000)  # spread over the run, not all at its start
    await sockpair.wait_flows(0)
    metrics = await sockpair.metrics()
    opened = metrics.sum("sockpair_flows_opened_total", listener="cache")
    assert metrics.sum("sockpair_flows_closed_total", listener="cache", reason="finished") == opened
    assert metrics.sum("sockpair_flows_refused_total", listener="cache") == 0
    measured(f"{requests} requests, {opened} flows, {reloads} reloads")
