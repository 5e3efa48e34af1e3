"""Flows that change their worker: nothing is lost, repeated or counted twice."""

from __future__ import annotations

import json
from hashlib import sha256
from random import Random
from socket import AF_INET, SO_OOBINLINE, SO_RCVBUF, SOCK_STREAM, SOL_SOCKET

import pytest
import trio
from trio.socket import SocketType

from proxy.core.address import Transport
from proxy.core.query import FlowQuery
from tests.engine.heirs import no_samples, successor_of
from tests.engine.lab import (
    Lab,
    connect,
    datagram_socket,
    is_reset,
    listening,
    opened,
    pair,
    receive_all,
    receive_exactly,
    relaying,
    reset,
    send_all,
    send_and_end,
)
from tests.engine.test_datagram import client_of, exchange
from tests.engine.test_urgent import receive_with_marks, send_urgent

UDP = Transport.UDP


@pytest.fixture(autouse=True)
def _no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    no_samples(monkeypatch)


async def total(lab: Lab) -> tuple[int, int, int]:
    """Opened, closed and live, of all flows of a worker."""
    (row,) = (await lab.counters())["listeners"]
    return row["opened"], sum(row["closed"].values()), sum(row["live"].values())


async def test_an_idle_stream_lives_on_with_its_id_and_its_past() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"question")
        assert await receive_exactly(accepted, 8) == b"question"
        (before,) = await lab.live()
        async with successor_of(lab) as (heir, left):
            assert left.handed == 1
            assert await lab.live() == []
            assert await heir.live() == [before]
            await send_all(accepted, b"answer")
            assert await receive_exactly(client, 6) == b"answer"
            assert await total(lab) == (1, 0, 0)
            assert await total(heir) == (0, 0, 1)
            client.close()
            accepted.close()
            (ended,) = await heir.wait_ended()
            assert ended["close_reason"] == "finished"
            assert ended["original"]["bytes"] == 8
            assert ended["reply"]["bytes"] == 6
            assert await total(heir) == (0, 1, 0)
            (counters,) = (await heir.counters())["listeners"]
            assert counters["original"]["received"] == 0  # the eight are the predecessor's
            assert counters["reply"]["received"] == 6
            (endpoints,) = (await heir.counters())["endpoints"]
            assert endpoints["flows"] == 0


async def test_new_clients_come_to_the_successor_and_ids_go_on() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        await pair(lab, endpoint)
        async with successor_of(lab) as (heir, _):
            client, accepted = await pair(heir, endpoint)
            await send_all(client, b"new")
            assert await receive_exactly(accepted, 3) == b"new"
            assert [row["id"] for row in await heir.live()] == [1, 2]


@pytest.mark.parametrize("turned", [False, True])
async def test_bytes_that_wait_for_a_slow_reader_arrive_in_order(*, turned: bool) -> None:
    endpoint = listening()
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 65536)
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        sender, receiver = (accepted, client) if turned else (client, accepted)
        receiver.setsockopt(SOL_SOCKET, SO_RCVBUF, 65536)
        data = Random(1).randbytes(8 << 20)  # more than sockets and a pipe hold
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await receive_all(receiver))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, sender, data)
            while not await buffered(lab):
                await trio.sleep(0.002)
            before = await sent(lab)
            async with successor_of(lab) as (heir, left):
                assert left.handed == 1
                assert await buffered(heir)
                assert (await sent(lab), await sent(heir)) == (before, 0)  # what waits is not sent
                nursery.start_soon(receive)
                with trio.fail_after(10):
                    while not received:
                        await trio.sleep(0.01)
                assert sha256(received[0]).digest() == sha256(data).digest()
                assert not await buffered(heir)
                assert await sent(lab) + await sent(heir) == len(data)


async def sent(lab: Lab) -> int:
    (row,) = (await lab.counters())["listeners"]
    return row["original"]["sent"] + row["reply"]["sent"]


async def buffered(lab: Lab) -> int:
    (row,) = (await lab.counters())["listeners"]
    return row["original"]["buffered"] + row["reply"]["buffered"]


@pytest.mark.parametrize("turned", [False, True])
async def test_a_half_closed_stream_stays_half_closed(*, turned: bool) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        first, second = (accepted, client) if turned else (client, accepted)
        await send_and_end(first, b"all I had")
        assert await receive_all(second) == b"all I had"
        state = "endpoint_closed" if turned else "client_closed"
        before = await lab.wait_live(state)
        async with successor_of(lab) as (heir, _):
            assert await heir.live() == [before]
            await send_and_end(second, b"so long")
            assert await receive_all(first) == b"so long"
            (ended,) = await heir.wait_ended()
            assert ended["close_side"] == ("endpoint" if turned else "client")
            assert ended["half_closed"] == before["half_closed"]


async def test_urgent_data_keeps_its_place() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"before")
        assert await receive_exactly(accepted, 6) == b"before"
        async with successor_of(lab):
            accepted.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
            await send_all(client, b"then ")
            await send_urgent(client, b"!")
            await send_and_end(client, b" after")
            assert await receive_with_marks(accepted) == (b"then ! after", [5])


async def test_a_reset_after_the_hand_over_is_a_reset() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        async with successor_of(lab) as (heir, _):
            reset(client)
            assert await is_reset(accepted)
            (ended,) = await heir.wait_ended()
            assert ended["close_reason"] == "client_reset"


async def test_a_flow_that_is_connecting_follows_when_it_has_connected() -> None:
    endpoint = listening(backlog=0)
    for _ in range(4):  # its queue is full: what comes now waits
        await connect_at_once(endpoint)
    async with relaying([endpoint.getsockname()]) as lab:
        client = await connect(lab.address)
        await send_all(client, b"hello")
        await lab.wait_live("connecting")
        async with trio.open_nursery() as nursery:

            async def accept_soon() -> None:
                await trio.sleep(0.1)
                while True:
                    accepted, _ = await endpoint.accept()
                    held.append(accepted)

            held: list[SocketType] = []
            nursery.start_soon(accept_soon)
            async with successor_of(lab, patience=8.0) as (heir, left):
                assert left.handed == 1
                assert (await heir.live())[0]["state"] == "established"
            nursery.cancel_scope.cancel()
        for socket in held:
            socket.close()


async def connect_at_once(endpoint: SocketType) -> None:
    socket = trio.socket.socket(AF_INET, SOCK_STREAM)
    opened.append(socket)
    with trio.move_on_after(0.05):
        await socket.connect(endpoint.getsockname())


async def test_what_ended_before_is_remembered() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"question")
        await receive_exactly(accepted, 8)
        client.close()
        accepted.close()
        (before,) = await lab.wait_ended()
        async with successor_of(lab) as (heir, _):
            assert await heir.ended() == [before]
            (row,) = await heir.worker.flow_rows([before["id"]], recent=True)
            assert row is not None
            assert json.loads(row) == before
            found = await heir.worker.flows(FlowQuery(recent=True, id=before["id"]))
            assert found["matched"] == 1


async def test_datagram_flows_live_on() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        outbound = await exchange(client, endpoint, b"one")
        before = await lab.wait_live("assured")
        async with successor_of(lab) as (heir, left):
            assert left.handed == 1
            assert await heir.live() == [before]
            assert await exchange(client, endpoint, b"two") == outbound  # from the same socket
            (row,) = await heir.live()
            assert row["id"] == before["id"]
            assert row["original"]["packets"] == 2
            assert await total(heir) == (0, 0, 1)


async def test_datagrams_that_come_meanwhile_wait() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        clients = [datagram_socket() for _ in range(20)]
        for client in clients:
            await client.connect(lab.address)
            await client.send(b"1")
            await endpoint.recvfrom(100)
        sent = 1

        async def go_on() -> None:
            nonlocal sent
            while True:
                sent += 1
                for client in clients:
                    await client.send(b"%d" % sent)
                await trio.sleep(0.005)

        heard: dict[object, list[int]] = {}

        async def listen() -> None:
            while True:
                data, outbound = await endpoint.recvfrom(100)
                heard.setdefault(outbound, []).append(int(data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            nursery.start_soon(go_on)
            await trio.sleep(0.05)
            async with successor_of(lab) as (heir, left):
                assert left.handed == 20
                await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert len(await heir.live()) == 20
        assert len(heard) == 20
        for numbers in heard.values():
            assert numbers == list(range(2, 2 + len(numbers)))


async def test_many_streams_go_while_they_talk() -> None:
    endpoint = listening(backlog=1024)
    async with relaying([endpoint.getsockname()]) as lab:
        pairs = [await pair(lab, endpoint) for _ in range(150)]
        async with trio.open_nursery() as nursery:
            done = trio.Event()
            rounds = [0] * len(pairs)
            talking = len(pairs)

            async def talk(number: int, client: SocketType, accepted: SocketType) -> None:
                random = Random(number)
                while not done.is_set():
                    data = random.randbytes(random.randrange(1, 3000))
                    await send_all(client, data)
                    assert await receive_exactly(accepted, len(data)) == data
                    await send_all(accepted, data[::-1])
                    assert await receive_exactly(client, len(data)) == data[::-1]
                    rounds[number] += 1
                nonlocal talking
                talking -= 1

            for number, (client, accepted) in enumerate(pairs):
                nursery.start_soon(talk, number, client, accepted)
            async with successor_of(lab) as (heir, left):
                assert left.handed == 150
                before = list(rounds)
                while any(now <= then for now, then in zip(rounds, before, strict=True)):
                    await trio.sleep(0.01)
                assert [row["id"] for row in await heir.live()] == list(range(1, 151))
                done.set()
                while talking:
                    await trio.sleep(0.01)
