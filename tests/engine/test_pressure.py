"""A full table: who goes for whom, with real sockets. Time is made by dating flows back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.address import Address, Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.flow import Flow, State
from proxy.core.pressure import ANSWER_TIME, IDLE_TIME
from proxy.core.query import FlowQuery
from tests.engine import lab as peers
from tests.engine.lab import (
    Lab,
    accept,
    connect,
    datagram_socket,
    is_refused,
    is_reset,
    listening,
    open_listener,
    receive_exactly,
    relaying,
)

UDP = Transport.UDP
OTHER = "127.0.0.2"


@asynccontextmanager
async def crowded(table_limit: int) -> AsyncIterator[tuple[Lab, SocketType, SocketType, Address]]:
    """A lab of TCP with its endpoint, and a UDP listener beside it: its endpoint and address."""
    endpoint, silent = listening(), datagram_socket()
    async with relaying([endpoint.getsockname()], table_limit=table_limit) as lab:
        socket = bind_socket(ListenAddress(UDP, "127.0.0.1", 0))
        await open_listener(lab.worker, "udp", socket, [silent.getsockname()], UDP)
        yield lab, endpoint, silent, socket.getsockname()


def flows_of(lab: Lab) -> list[Flow]:
    return list(lab.worker._relay.table)


def date_back(lab: Lab, seconds: float) -> None:
    """Make every flow older, and idle for longer; the books, which trust in time, begin anew."""
    for flow in flows_of(lab):
        flow.opened -= seconds
        flow.active -= seconds
    table = lab.worker._relay.table
    table.resize(table.limit, 100)


async def ask(address: Address, text: bytes = b"ask") -> SocketType:
    """A new client over UDP."""
    client = datagram_socket()
    await client.connect(address)
    await client.send(text)
    return client


async def answered(address: Address, endpoint: SocketType) -> SocketType:
    """A client over UDP whose flow is assured."""
    client = await ask(address)
    text, sender = await endpoint.recvfrom(100)
    await endpoint.sendto(text, sender)
    assert await client.recv(100) == text
    return client


async def wait_flows(lab: Lab, count: int) -> None:
    while len(flows_of(lab)) < count:
        await trio.sleep(0.002)


async def established(lab: Lab, endpoint: SocketType, source: str | None = None) -> SocketType:
    """A client over TCP whose flow is established; returns the client's socket."""
    before = {flow.id for flow in flows_of(lab)}
    client = await connect(lab.address, source)
    await accept(endpoint)
    while not any(
        flow.id not in before and flow.state is State.ESTABLISHED for flow in flows_of(lab)
    ):
        await trio.sleep(0.002)
    return client


async def reasons(lab: Lab) -> list[tuple[str, str | None]]:
    return [(row["transport"], row["close_reason"]) for row in await lab.ended()]


async def refused(lab: Lab, listener: int) -> int:
    return (await lab.counters())["listeners"][listener]["refused"]["table_full"]


async def balanced(lab: Lab) -> bool:
    """Whether every flow that was opened is live or closed, and descriptors are counted right."""
    counters = await lab.counters()
    relay = lab.worker._relay
    files = sum(1 if flow.transport is UDP else 2 for flow in relay.table)
    return relay.files.used == files and all(
        row["opened"] == sum(row["live"].values()) + sum(row["closed"].values())
        for row in counters["listeners"]
    )


async def test_a_new_datagram_client_takes_the_place_of_the_oldest_unanswered_one() -> None:
    async with crowded(3) as (lab, _, silent, address):
        await answered(address, silent)
        for count in (2, 3):
            await ask(address)
            await wait_flows(lab, count)
        assured, oldest, younger = flows_of(lab)
        date_back(lab, ANSWER_TIME)
        await ask(address, b"new")
        while (await silent.recvfrom(100))[0] != b"new":
            pass
        assert [flow.id for flow in flows_of(lab)][:2] == [assured.id, younger.id]
        assert oldest.close_reason == "evicted"
        assert oldest.close_side == "proxy"
        assert await balanced(lab)


async def test_an_unanswered_client_is_left_the_time_to_be_answered() -> None:
    async with crowded(1) as (lab, _, _silent, address):
        await ask(address)
        await wait_flows(lab, 1)
        flows_of(lab)[0].opened += 3600.0  # so that no delay of this machine makes it old enough
        await ask(address)
        while not await refused(lab, 1):
            await trio.sleep(0.002)
        assert await reasons(lab) == []


async def test_no_datagram_evicts_what_is_proven_however_idle_it_is() -> None:
    async with crowded(3) as (lab, endpoint, silent, address):
        await answered(address, silent)
        for _ in range(2):
            await established(lab, endpoint)
        date_back(lab, 100 * IDLE_TIME)
        await ask(address)
        while not await refused(lab, 1):
            await trio.sleep(0.002)
        assert await reasons(lab) == []


async def test_a_connection_takes_the_place_of_an_unanswered_datagram_first() -> None:
    async with crowded(3) as (lab, endpoint, _, address):
        for _ in range(2):
            await established(lab, endpoint)
        await ask(address)
        await wait_flows(lab, 3)
        date_back(lab, 2 * IDLE_TIME)
        await established(lab, endpoint, OTHER)
        assert await reasons(lab) == [("udp", "evicted")]
        assert await balanced(lab)


async def test_then_of_what_is_half_closed_and_its_client_is_reset() -> None:
    async with crowded(3) as (lab, endpoint, _, _address):
        client = await connect(lab.address)
        await accept(endpoint)
        client.shutdown(1)
        await lab.wait_live("client_closed")
        for _ in range(2):
            await established(lab, endpoint)
        date_back(lab, IDLE_TIME)
        await established(lab, endpoint, OTHER)
        assert await reasons(lab) == [("tcp", "evicted")]
        assert await is_reset(client)
        assert await balanced(lab)


async def test_then_the_longest_idle_of_the_source_that_holds_most() -> None:
    async with crowded(4) as (lab, endpoint, _, _address):
        rare = await established(lab, endpoint, OTHER)
        greedy = [await established(lab, endpoint) for _ in range(3)]
        date_back(lab, IDLE_TIME)
        busy = flows_of(lab)[1]
        busy.active += IDLE_TIME
        await established(lab, endpoint, OTHER)
        assert await is_reset(greedy[1])
        assert [flow.client_remote[1] for flow in flows_of(lab)][:3] == [
            socket.getsockname()[1] for socket in (rare, greedy[0], greedy[2])
        ]
        assert await is_refused(lab.address, OTHER)  # each has two by now
        assert await balanced(lab)


async def test_what_has_just_moved_stays() -> None:
    async with crowded(2) as (lab, endpoint, _, _address):
        for _ in range(2):
            await established(lab, endpoint)
        assert await is_refused(lab.address, OTHER)
        assert await refused(lab, 0) == 1
        assert await reasons(lab) == []


async def test_nobody_goes_for_a_client_who_is_refused_for_something_else() -> None:
    endpoint = listening()
    admission = AdmissionLimits(source_flows=2)
    parts = {"table_limit": 3, "admission": admission}
    async with relaying([endpoint.getsockname()], **parts) as lab:  # type: ignore[arg-type]
        for source in ("127.0.0.1", "127.0.0.1", OTHER):
            await established(lab, endpoint, source)
        date_back(lab, IDLE_TIME)
        assert await is_refused(lab.address, "127.0.0.1")
        assert await reasons(lab) == []
        await established(lab, endpoint, "127.0.0.3")
        assert await reasons(lab) == [("tcp", "evicted")]


async def test_nobody_goes_later_for_a_client_who_was_refused() -> None:
    endpoint = listening()
    admission = AdmissionLimits(source_flows=2)
    parts = {"table_limit": 3, "admission": admission}
    async with relaying([endpoint.getsockname()], **parts) as lab:  # type: ignore[arg-type]
        clients = [
            await established(lab, endpoint, source) for source in ("127.0.0.1", "127.0.0.1", OTHER)
        ]
        date_back(lab, IDLE_TIME)
        flows_of(lab)[0].counters.gate.become(AdmissionLimits(flows=3), 0.0)
        assert await is_refused(lab.address, "127.0.0.3")  # by the listener's ceiling
        assert lab.worker._relay.leaving is not None
        peers.reset(clients[2])
        while len(flows_of(lab)) == 3:
            await trio.sleep(0.002)
        await established(lab, endpoint, "127.0.0.4")
        assert await reasons(lab) == [("tcp", "client_reset")]


async def test_the_books_hear_of_every_change_of_state() -> None:
    async with crowded(2) as (lab, endpoint, silent, address):
        client = await established(lab, endpoint)
        table = lab.worker._relay.table
        await answered(address, silent)
        assert table._pressure is not None  # since before the answer
        half_closed, assured = table
        client.shutdown(1)
        await lab.wait_live("client_closed")
        later = half_closed.active + 2 * IDLE_TIME
        assert assured.state is State.ASSURED
        assert table.victim(None, later) is None
        assert table.victim("203.0.113.1", later) is half_closed
        assert table._pressure._half_closed == {half_closed}


async def test_nobody_goes_where_descriptors_are_short() -> None:
    """Those of the evicted are closed at the end of the round, and the reserve is for the admin."""
    async with crowded(2) as (lab, endpoint, _, _address):
        for _ in range(2):
            await established(lab, endpoint)
        date_back(lab, IDLE_TIME)
        files = lab.worker._relay.files
        files.limit = files.used + 1
        assert await is_refused(lab.address, OTHER)
        counters = await lab.counters()
        assert counters["listeners"][0]["refused"]["file_descriptors"] == 1
        assert await reasons(lab) == []


async def test_datagrams_of_a_flow_that_goes_in_the_same_batch_are_counted_as_lost() -> None:
    """A run is sent when the next one begins, and that one's flow may take the place of its own."""
    async with crowded(1) as (lab, _, silent, address):
        old = await ask(address, b"first")
        await wait_flows(lab, 1)
        date_back(lab, ANSWER_TIME)
        new = datagram_socket()
        await new.connect(address)
        for client, text in ((old, b"run1"), (old, b"run2"), (new, b"other")):
            client._sock.send(text)  # without a checkpoint, so that they are one batch
        texts = set()
        while b"other" not in texts:
            texts.add((await silent.recvfrom(100))[0])
        assert texts == {b"first", b"other"}
        row = (await lab.counters())["listeners"][1]
        assert row["dropped"]["other"] == 2
        assert row["original"]["received"] - row["original"]["sent"] == len(b"run1run2")
        assert await reasons(lab) == [("udp", "evicted")]
        assert await balanced(lab)


@pytest.mark.parametrize("newcomer", [Transport.TCP, UDP])
async def test_the_preview_tells_what_then_goes(newcomer: Transport) -> None:
    async with crowded(8) as (lab, endpoint, _, address):
        for _ in range(2):
            await ask(address)
        await wait_flows(lab, 2)
        client = await established(lab, endpoint)
        client.shutdown(1)
        await lab.wait_live("client_closed")
        for source in (OTHER, OTHER, OTHER, "127.0.0.3", "127.0.0.3"):
            await established(lab, endpoint, source)
        date_back(lab, 2 * IDLE_TIME)
        # Of sources that hold as much as each other, the first to do so is the first to lose.
        expected = [1, 2, 3, 4, 7, 5] if newcomer is Transport.TCP else [1, 2]

        preview = await lab.worker.flow_ids(FlowQuery(evictable=True, newcomer=newcomer))
        assert preview["ids"] == expected
        assert preview["matched"] == len(expected)
        assert preview["keys"] == sorted(preview["keys"])
        first = await lab.worker.flow_ids(FlowQuery(evictable=True, newcomer=newcomer, limit=1))
        assert (first["ids"], first["matched"]) == ([1], len(expected))
        assert await reasons(lab) == []

        if newcomer is Transport.TCP:
            for number in range(len(expected)):
                await established(lab, endpoint, f"127.0.1.{number + 1}")
            gone = [flow.id for flow in lab.worker._relay.table.recent]
            assert gone == expected
            assert await is_refused(lab.address, "127.0.1.99")


async def test_clients_that_are_served_notice_nothing() -> None:
    async with crowded(2) as (lab, endpoint, _, address):
        client = await connect(lab.address)
        far = await accept(endpoint)
        await ask(address)
        await wait_flows(lab, 2)
        date_back(lab, ANSWER_TIME)
        await ask(address)
        await peers.send_all(client, b"still here")
        assert await receive_exactly(far, 10) == b"still here"
