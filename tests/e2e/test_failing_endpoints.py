"""Endpoints that die and come back under load, refuse, or answer nothing: clients hardly notice."""

from __future__ import annotations

import socket

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.sockets import connect, datagram_client, echo, exchange, listen_datagrams, say
from tests.e2e.subject import Forward

WORKERS = pytest.mark.parametrize("workers", [1, 2])

EJECTION = 'on_down = "close"\n[upstream.web.ejection]\nfailures = 2\ntime = "200ms"\n'


async def serve(port: int, *, task_status: trio.TaskStatus[None]) -> None:
    """An endpoint that answers, until cancelled; it may have been there before."""
    with trio.socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await listener.bind(("127.0.0.1", port))
        listener.listen(128)
        task_status.started()
        async with trio.open_nursery() as connections:
            while True:
                accepted, _ = await listener.accept()
                connections.start_soon(echo, trio.SocketStream(accepted))


def free_ports(count: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


@WORKERS
async def test_an_endpoint_dies_and_comes_back_and_no_client_is_refused(
    stage: Stage, workers: int
) -> None:
    dying, lasting = free_ports(2)
    addresses = [f"127.0.0.1:{port}" for port in (dying, lasting)]
    web = Forward("web", "tcp", addresses, more=EJECTION)
    await stage.nursery.start(serve, lasting)
    sockpair = await stage.sockpair(web, workers=workers)

    async def ask(count: int) -> None:
        for _ in range(count):
            async with await connect(web.address) as client:
                await say(client, b"hello")

    async def attempts() -> int:
        metrics = await sockpair.metrics()
        name = "sockpair_endpoint_connect_attempts_total"
        return metrics.sum(name, endpoint=addresses[0])

    await ask(40)  # it is not there yet
    await until(lambda: sockpair.log_records("endpoint_ejected"), "the ejection")
    assert await attempts() < 20
    for _ in range(2):
        with trio.CancelScope() as life:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, dying)
                before = await attempts()
                with trio.fail_after(20):
                    while await attempts() < before + 20:
                        await ask(5)
                life.cancel()
        await ask(20)
    metrics = await sockpair.metrics()
    closed = metrics.by("sockpair_flows_closed_total", "reason", listener="web")
    assert {reason for reason, count in closed.items() if count} == {"finished"}


async def test_a_datagram_endpoint_dies_and_its_clients_are_answered_by_another(
    stage: Stage,
) -> None:
    living = await listen_datagrams(stage.nursery)
    dying = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await dying.bind(("127.0.0.1", 0))
    dead = f"127.0.0.1:{dying.getsockname()[1]}"
    more = "[upstream.game.ejection]\nfailures = 2\n"
    game = Forward("game", "udp", [dead, living], more=more)
    sockpair = await stage.sockpair(game)
    async with datagram_client(game.address) as first, datagram_client(game.address) as second:
        await first.send(b"hello")
        await dying.recvfrom(100)
        dying.close()
        await exchange(second, b"hello")
        while not sockpair.log_records("endpoint_ejected"):
            await first.send(b"anybody?")
            await trio.sleep(0.02)
        await exchange(first, b"hello again")
