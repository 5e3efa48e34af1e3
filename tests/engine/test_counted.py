"""Flows that end after so many answers, and clients whose datagrams are spread over endpoints."""

from __future__ import annotations

import trio

from proxy.core.address import Transport
from proxy.core.expiry import FlowLimits
from proxy.core.flow import CloseReason
from proxy.engine.datagram_options import DatagramOptions
from tests.engine.lab import Lab, datagram_socket, relaying
from tests.engine.test_datagram import client_of, exchange

UDP = Transport.UDP


async def files_used(lab: Lab) -> int:
    return lab.worker._relay.files.used


async def test_one_answer_to_one_datagram_finishes_the_flow() -> None:
    endpoint = datagram_socket()
    options = DatagramOptions(responses=1)
    async with relaying([endpoint.getsockname()], UDP, datagrams=options) as lab:
        client = await client_of(lab)
        outbound = {await exchange(client, endpoint, b"%d" % number) for number in range(3)}
        rows = await lab.wait_ended(3)
        assert len(outbound) == 3
        assert {row["close_reason"] for row in rows} == {"finished"}
        assert {row["close_side"] for row in rows} == {"endpoint"}
        assert [row["reply"]["packets"] for row in rows] == [1, 1, 1]
        assert await files_used(lab) == 0


async def test_questions_sent_together_all_get_their_answers() -> None:
    endpoint = datagram_socket()
    options = DatagramOptions(responses=2)
    async with relaying([endpoint.getsockname()], UDP, datagrams=options) as lab:
        client = await client_of(lab)
        for number in range(3):
            await client.send(b"%d" % number)
        asked = [await endpoint.recvfrom(100) for _ in range(3)]
        for data, sender in asked * 2:
            await endpoint.sendto(data, sender)
        received = [await client.recv(100) for _ in range(6)]
        assert received == [b"0", b"1", b"2"] * 2
        (row,) = await lab.wait_ended()
        assert (row["close_reason"], row["reply"]["packets"]) == ("finished", 6)


async def test_datagrams_of_one_client_are_spread_and_every_answer_comes_back() -> None:
    endpoints = [datagram_socket() for _ in range(3)]
    addresses = [endpoint.getsockname() for endpoint in endpoints]
    async with relaying(addresses, UDP, datagrams=DatagramOptions(datagrams=1)) as lab:
        client = await client_of(lab)
        for number in range(6):
            await client.send(b"%d" % number)
        waiting = [
            (endpoint, await endpoint.recvfrom(100)) for endpoint in endpoints for _ in range(2)
        ]
        assert {data for _, (data, _) in waiting} == {b"%d" % number for number in range(6)}
        for endpoint, (data, sender) in reversed(waiting):  # late, and in any order
            await endpoint.sendto(data, sender)
        assert {await client.recv(100) for _ in range(6)} == {b"%d" % number for number in range(6)}
        rows = await lab.live()
        assert len(rows) == 6
        assert len({row["client"]["remote"] for row in rows}) == 1
        assert len({row["endpoint"]["local"] for row in rows}) == 6
        assert [row["original"]["packets"] for row in rows] == [1] * 6


async def test_a_spent_flow_waits_for_its_answers_and_no_longer() -> None:
    endpoint = datagram_socket()
    limits = FlowLimits(unreplied=0.1, idle=300)
    options = DatagramOptions(datagrams=2)
    async with relaying([endpoint.getsockname()], UDP, limits=limits, datagrams=options) as lab:
        client = await client_of(lab)
        one = await exchange(client, endpoint, b"first")
        assert await exchange(client, endpoint, b"second") == one
        assert await exchange(client, endpoint, b"third") != one
        spent, current = await lab.live()
        assert (spent["limits"]["idle"], current["limits"]["idle"]) == (0.1, 300)
        while await lab.ended() == []:
            await trio.sleep(0.01)
        (row,) = await lab.ended()
        assert (row["id"], row["close_reason"]) == (spent["id"], "idle_timeout")
        (row,) = await lab.live()
        assert row["id"] == current["id"]
        assert await exchange(client, endpoint, b"fourth") != one


async def test_with_both_the_flow_is_finished_when_spent_and_answered() -> None:
    endpoint = datagram_socket()
    options = DatagramOptions(datagrams=2, responses=1)
    async with relaying([endpoint.getsockname()], UDP, datagrams=options) as lab:
        client = await client_of(lab)
        one = await exchange(client, endpoint, b"first")
        assert await lab.ended() == []
        assert await exchange(client, endpoint, b"second") == one
        (row,) = await lab.wait_ended()
        assert (row["close_reason"], row["original"]["packets"]) == ("finished", 2)
        assert lab.listener.flows == {}


async def test_killing_a_spent_flow_leaves_the_clients_next_one_alone() -> None:
    endpoint = datagram_socket()
    async with relaying(
        [endpoint.getsockname()], UDP, datagrams=DatagramOptions(datagrams=2)
    ) as lab:
        client = await client_of(lab)
        for word in (b"one", b"two", b"three"):
            await exchange(client, endpoint, word)
        spent, current = list(lab.worker._relay.table)
        lab.worker._end([spent], CloseReason.KILLED)
        await exchange(client, endpoint, b"four")
        assert current.original.packets == 2
