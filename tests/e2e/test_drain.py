"""Drain and stop: flows may finish, what is left ends paced, and the operator sees it."""

from __future__ import annotations

import json
import signal
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import PATIENCE, until
from tests.e2e.reloading import command, reload
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

LONG = {"drain_timeout": "1h"}


async def begin_stop(sockpair: Sockpair, number: signal.Signals = signal.SIGTERM) -> None:
    """Send the signal, and wait until it has been heard."""
    sockpair.program.process.send_signal(number)
    await until(lambda: is_draining(sockpair), "it to drain")


async def is_draining(sockpair: Sockpair) -> bool:
    return bool((await sockpair.status())["draining"])


async def ended(sockpair: Sockpair) -> int:
    with trio.fail_after(PATIENCE):
        return await sockpair.program.process.wait()


async def test_a_stop_waits_for_flows_and_ends_with_the_last(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web, **LONG)
    async with await connect(web.address) as client:
        await say(client, b"hello")
        await begin_stop(sockpair)
        with pytest.raises(OSError, match="refused"):
            await connect(web.address)
        await say(client, b"not finished yet")
        status, body = await sockpair.ask("GET", "/readyz")
        assert (status, json.loads(body)["reasons"]) == (503, ["draining"])
        (row,) = (await sockpair.status())["drains"]
        assert (row["listener"], row["phase"], row["flows"]) == (None, "waiting", 1)
        assert "everything: 1 flow left" in (await command(sockpair, "status")).stdout
        await command(sockpair, "reload", status=1)
        sockpair.program.process.send_signal(signal.SIGHUP)
        await say(client, b"now it is")
    assert await ended(sockpair) == 0
    (row,) = sockpair.logged("web")
    assert row["close_reason"] == "finished"
    assert sockpair.log_records("stopped")[0]["ended"] == 0


async def test_datagrams_of_flows_are_served_while_it_stops(stage: Stage) -> None:
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)], limits={"idle": "1s"})
    sockpair = await stage.sockpair(game, **LONG)
    async with datagram_client(game.address) as player, datagram_client(game.address) as late:
        await exchange(player, b"hello")
        await begin_stop(sockpair)
        await exchange(player, b"still playing")
        await late.send(b"may I?")
        await exchange(player, b"game over")
    assert await ended(sockpair) == 0
    (row,) = sockpair.logged("game")
    assert (row["close_reason"], row["original"]["packets"]) == ("idle_timeout", 3)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(stage: Stage, second: signal.Signals) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web, **LONG)
    async with await connect(web.address) as client:
        await say(client, b"hello")
        await begin_stop(sockpair)
        sockpair.program.process.send_signal(second)
        await expect_reset(client)
    assert await ended(sockpair) == 0
    assert [row["close_reason"] for row in sockpair.logged("web")] == ["drained"]
    assert sockpair.log_records("stopped")[0]["ended"] == 1


async def test_what_is_left_ends_paced_and_the_idle_first(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    pace = {"drain_timeout": "1ms", "drain_rate": "20/s", "drain_spread": "1h"}
    sockpair = await stage.sockpair(web, **pace)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await connect(web.address)) for _ in range(10)]
        for client in reversed(clients):
            await say(client, b"hello")
        sockpair.program.process.send_signal(signal.SIGTERM)
        for client in clients:
            await expect_reset(client)
    assert await ended(sockpair) == 0
    rows = sorted(sockpair.logged("web"), key=lambda row: row["closed"])
    assert {row["close_reason"] for row in rows} == {"drained"}
    assert all(one["last_active"] <= two["last_active"] for one, two in pairwise(rows))
    assert sockpair.log_records("stopped")[0]["ended"] == 10
    assert rows[-1]["closed"] - rows[0]["closed"] > 8 / 20  # ten parts of 1/20 s; a tick is 1/20


async def test_the_spread_bounds_the_time_of_all(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    pace = {"drain_timeout": "1ms", "drain_rate": "1/h", "drain_spread": "200ms"}
    sockpair = await stage.sockpair(web, **pace)
    async with AsyncExitStack() as stack:
        for _ in range(5):
            client = await stack.enter_async_context(await connect(web.address))
            await say(client, b"hello")
        assert await sockpair.stop() == 0


async def test_a_listener_drains_and_a_reload_opens_it_again(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)])
    sockpair = await stage.sockpair(web, game)
    async with await connect(web.address) as client, datagram_client(game.address) as player:
        await say(client, b"hello")
        await exchange(player, b"hello")
        await command(sockpair, "drain", "web", "--timeout", "1h", "--no-wait")
        with pytest.raises(OSError, match="refused"):
            await connect(web.address)
        await say(client, b"still here")
        await exchange(player, b"and I")
        status, body = await sockpair.ask("GET", "/readyz")
        assert (status, "web" in body) == (503, True)
        assert "listener web: 1 flow left" in (await command(sockpair, "status")).stdout
        done = await command(sockpair, "drain", "web", "--now")
        assert done.stdout == "listener web: drained, 1 ended\n"
        await expect_reset(client)
        plan = await reload(sockpair, web, game)
        assert plan == "+ listener web: it was drained, and opens again\n"
        async with await connect(web.address) as other:
            await say(other, b"hello")
        await exchange(player, b"nothing to do with me")
    assert (await sockpair.ask("GET", "/readyz"))[0] == 200


async def test_a_datagram_listener_drains_and_opens_again(stage: Stage) -> None:
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)])
    sockpair = await stage.sockpair(game)
    async with datagram_client(game.address) as player, datagram_client(game.address) as other:
        await exchange(player, b"hello")
        await command(sockpair, "drain", "game", "--timeout", "1h", "--no-wait")
        await exchange(player, b"still here")
        await reload(sockpair, game)
        await exchange(player, b"and on")
        await exchange(other, b"me too")
        await command(sockpair, "drain", "game", "--now")
        await reload(sockpair, game)
        await exchange(player, b"a new flow, on a new socket")
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_flows_opened_total", listener="game") == 3


async def test_an_endpoint_drains_and_a_reload_brings_it_back(stage: Stage) -> None:
    one, two = [await listen(stage.nursery, echo) for _ in range(2)]
    web, other = Forward("web", "tcp", [one, two]), Forward("other", "tcp", [one])
    sockpair = await stage.sockpair(web, other)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await connect(web.address)) for _ in range(2)]
        for client in clients:
            await say(client, b"hello")
        words = (one, "--upstream", "web")
        await command(sockpair, "drain", *words, "--timeout", "1h", "--no-wait")
        for _ in range(4):
            await say(await stack.enter_async_context(await connect(web.address)), b"hello")
        towards = [row["endpoint"]["remote"] for row in await sockpair.flows(listener="web")]
        assert sorted(towards) == sorted([one] + [two] * 5)
        upstreams = json.loads(await sockpair.get("/api/v1/upstreams"))["upstreams"]
        draining = {
            (row["upstream"], each["endpoint"]): each["draining"]
            for row in upstreams
            for each in row["endpoints"]
        }
        assert draining == {("web", one): True, ("web", two): False, ("other", one): False}
        done = await command(sockpair, "drain", "--endpoint", *words, "--now")
        assert done.stdout == f"endpoint {one} of upstream web: drained, 1 ended\n"
        plan = await reload(sockpair, web, other)
        assert f"+ endpoint {one} of upstream web: it was drained" in plan
        for _ in range(2):
            await say(await stack.enter_async_context(await connect(web.address)), b"hello")
        towards = [row["endpoint"]["remote"] for row in await sockpair.flows(listener="web")]
        assert towards.count(one) == 1


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("nobody",), 1, 'there is no listener "nobody"; there are: web'),
        (("--endpoint", "192.0.2.1:9"), 1, "no upstream has the endpoint"),
        (("192.0.2.1:9",), 1, "no upstream has the endpoint"),
        (("192.0.2.1:9", "--endpoint", "192.0.2.1:9"), 2, "say what to drain"),
        ((), 2, "say what to drain"),
        (("web", "--endpoint", "192.0.2.1:9"), 2, "say what to drain"),
        (("web", "--upstream", "web"), 2, "HOST:PORT, which is missing"),
        (("web", "--timeout", "soon"), 2, "soon"),
        (("web", "--timeout", "1s", "--now"), 2, "not both"),
    ],
)
async def test_a_wrong_drain_says_what_is_right(
    stage: Stage, words: tuple[str, ...], status: int, said: str
) -> None:
    web = Forward("web", "tcp", ["127.0.0.1:9"])
    sockpair = await stage.sockpair(web)
    done = await command(sockpair, "drain", *words, status=status)
    assert said in done.stderr
    assert done.stdout == ""
