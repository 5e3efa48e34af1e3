"""The life of the program: it starts whole or not at all, and stops cleanly."""

from __future__ import annotations

import signal
import socket
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import PATIENCE, until
from tests.e2e.program import free_port, peer
from tests.e2e.sockets import (
    connect,
    datagram_client,
    echo,
    exchange,
    expect_refusal,
    expect_reset,
    listen,
    listen_datagrams,
    say,
)
from tests.e2e.subject import Forward, start_sockpair


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_it_cleanly(stage: Stage, number: signal.Signals) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)])
    sockpair = await stage.sockpair(web, game)
    async with await connect(web.address) as client, datagram_client(game.address) as player:
        await say(client, b"hello")
        await exchange(player, b"hello")
        assert await sockpair.stop(number) == 0
        await expect_reset(client)
    assert [len(sockpair.logged(name)) for name in ("web", "game")] == [1, 1]
    for row in sockpair.logged("web") + sockpair.logged("game"):
        assert (row["close_reason"], row["close_side"]) == ("drained", "proxy")
        assert row["original"]["bytes"] == row["reply"]["bytes"] == 5
    assert not sockpair.settings.admin.exists()
    assert bindable(web)
    assert bindable(game)


async def test_hangup_reloads_and_ends_nothing(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web)
    async with await connect(web.address) as client:
        await say(client, b"hello")
        sockpair.program.process.send_signal(signal.SIGHUP)
        await until(lambda: len(sockpair.log_records("reloaded")) == 1, "the reload")
        await say(client, b"still here")
    assert await sockpair.stop() == 0


async def test_it_starts_again_at_once_on_the_same_ports(stage: Stage) -> None:
    forward = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    for _ in range(2):
        sockpair = await stage.sockpair(forward)
        async with await connect(forward.address) as client:
            await say(client, b"hello")
            await sockpair.stop()


def standard_error(pid: int) -> str:
    return str(Path(f"/proc/{pid}/fd/2").readlink())


@pytest.mark.parametrize("workers", [1, 2])
async def test_it_runs_though_standard_error_was_closed(stage: Stage, workers: int) -> None:
    forward = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    closing = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh"]
    sockpair = await stage.sockpair(forward, wrapper=closing, workers=workers)
    assert standard_error(sockpair.pid) == "/dev/null"
    async with await connect(forward.address) as client:
        await say(client, b"hello")
        await client.send_eof()
    assert await sockpair.program.stop() == 0


async def test_socket_of_a_killed_one_is_taken_over(stage: Stage) -> None:
    forward = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    settings = stage.settings(forward)
    killed = await stage.sockpair(forward)
    await killed.program.kill()
    assert settings.admin.exists()
    again = await stage.sockpair(forward)
    assert (await again.status())["pid"] == again.pid


@pytest.mark.parametrize("taken", ["listener", "datagrams", "admin"])
async def test_port_that_is_taken_is_one_line_and_nothing_half_open(
    stage: Stage, taken: str
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    first = Forward("first", "tcp", [endpoint])
    second = Forward("second", "udp" if taken == "datagrams" else "tcp", [endpoint])
    last = Forward("last", "udp", [endpoint])
    settings = stage.settings(first, second, last)
    if taken == "admin":
        settings = replace(settings, admin_port=second.port)
    kind = socket.SOCK_DGRAM if taken == "datagrams" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(second.address)
        if kind == socket.SOCK_STREAM:
            holder.listen()
        forwards = (first, last) if taken == "admin" else settings.forwards
        settings = replace(settings, forwards=forwards)
        failed = await start_sockpair(settings)
        try:
            with trio.fail_after(PATIENCE):
                assert await failed.process.wait() == 1
        finally:
            await failed.kill()
    (line,) = failed.errors.read_text().splitlines()
    assert second.text in line
    assert "in use" in line
    assert failed.output.read_text() == ""
    assert not settings.admin.exists()
    assert bindable(first)
    assert bindable(last)


async def test_second_one_does_not_take_the_admin_socket_of_the_first(stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    sockpair = await stage.sockpair(Forward("web", "tcp", [endpoint]))
    rival = replace(
        sockpair.settings,
        forwards=[Forward("web", "tcp", [endpoint])],
        admin_port=free_port(),
    )
    failed = await start_sockpair(rival)
    try:
        with trio.fail_after(PATIENCE):
            assert await failed.process.wait() == 1
    finally:
        await failed.kill()
    assert (await sockpair.status())["pid"] == sockpair.pid


async def test_descriptor_limit_refuses_new_flows_and_keeps_old_ones(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web, descriptor_limit=256)
    async with AsyncExitStack() as stack:
        served, refused = [], 0
        while refused < 20:
            client = await served_client(web)
            if client is None:
                refused += 1
            else:
                served.append(await stack.enter_async_context(client))
        assert len(served) >= 60
        metrics = await sockpair.metrics()
        assert metrics.sum("sockpair_flows_opened_total", listener="web") == len(served)
        counted = metrics.sum(
            "sockpair_flows_refused_total", listener="web", reason="file_descriptors"
        )
        assert counted == refused
        assert len(await sockpair.flows()) == len(served)
        for client in served:
            await say(client, b"still here?")
        assert sockpair.descriptors() < 256
    await sockpair.wait_flows(0)
    async with await connect(web.address) as client:
        await say(client, b"and again")
    books = await sockpair.books("web", flows=len(served) + 1)
    assert set(books.reasons) == {"finished"}


@pytest.mark.parametrize("workers", [1, 2])
async def test_flows_leave_descriptors_to_the_admin_however_many_listeners_there_are(
    stage: Stage, workers: int
) -> None:
    endpoint = await listen(stage.nursery, echo)
    forwards = [Forward(f"web{number}", "tcp", [endpoint]) for number in range(80)]
    sockpair = await stage.sockpair(*forwards, descriptor_limit=256, workers=workers)
    async with AsyncExitStack() as stack:
        served = refused = 0
        for forward in forwards * 6:
            client = await served_client(forward)
            if client is None:
                refused += 1
            else:
                served += 1
                await stack.enter_async_context(client)
        assert refused > served > 40
        for _ in range(30):  # people, who keep their connections
            people = await trio.open_unix_socket(sockpair.settings.admin)
            await stack.enter_async_context(people)
        metrics = await sockpair.metrics()
        reasons = metrics.by("sockpair_flows_refused_total", "reason")
        assert reasons["file_descriptors"] == refused
        assert metrics.sum("sockpair_flows_opened_total") == served
        assert metrics.by("sockpair_flows_closed_total", "reason").total() == 0
    assert sockpair.log_records("admin_accept_paused") == []


async def served_client(web: Forward) -> trio.SocketStream | None:
    """A client that has had an answer; None if it was reset in place of that."""
    try:
        client = await connect(web.address)
    except ConnectionResetError:
        return None
    try:
        await say(client, b"me too")
    except trio.BrokenResourceError:
        await client.aclose()
        return None
    return client


async def test_full_table_refuses_new_flows_and_keeps_old_ones(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web, table_limit=3)
    clients = [await connect(web.address) for _ in range(3)]
    for client in clients:
        await say(client, b"hello")
    await expect_refusal(web.address)
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_flows_refused_total", listener="web", reason="table_full") == 1
    for client in clients:
        await say(client, b"still here")
        await client.aclose()
    await sockpair.books("web", flows=3)


@pytest.mark.peers("promtool")
async def test_prometheus_finds_no_fault_in_the_metrics(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    game = Forward("game", "udp", [await listen_datagrams(stage.nursery)])
    sockpair = await stage.sockpair(web, game)
    async with await connect(web.address) as client, datagram_client(game.address) as player:
        await say(client, b"hello")
        await exchange(player, b"hello")
        scraped = (await sockpair.metrics()).text
    done = await trio.run_process(
        [peer("promtool"), "check", "metrics"],
        stdin=scraped.encode(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def bindable(forward: Forward) -> bool:
    """Whether nobody listens there any more."""
    kind = socket.SOCK_STREAM if forward.transport == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:  # what lingers of ended connections does not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(forward.address)
            if kind == socket.SOCK_STREAM:
                probe.listen()
        except OSError:
            return False
    return True
