"""A flood of datagrams whose sources are forged, by a host beside us that nobody stops."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address
from socket import AF_INET, IPPROTO_RAW, SOCK_NONBLOCK, SOCK_RAW
from socket import socket as Socket

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import parse_listen
from proxy.control.listen import bind_socket
from proxy.core.address import Transport
from proxy.core.flow import State
from proxy.core.pressure import ANSWER_TIME
from proxy.engine.worker import Worker
from tests.engine.lab import PATIENCE, Lab, open_listener
from tests.engine.udp_network import Network, require_namespaces

TABLE = 300
ASSURED = 60
WAVES = 6
WAVE = 400
AT_ONCE = 50
"""Datagrams that fit into any receive buffer together."""

FORGED = IPv4Address("10.0.1.100")
GREETING = b"hello"


@pytest.fixture
def network() -> Iterator[Network]:
    """``client`` - ``proxy`` - ``one``; the test is on ``proxy``."""
    require_namespaces()
    network = Network()
    try:
        for host in ("client", "proxy", "one"):
            network.add(host)
        network.join("near", "client", "eth0", "10.0.1.2/24")
        network.join("near", "proxy", "eth0", "10.0.1.1/24")
        network.join("far", "proxy", "eth1", "10.0.2.1/24")
        network.join("far", "one", "eth0", "10.0.2.2/24")
        with network.inside("proxy"):
            yield network
    finally:
        network.close()


def forged(number: int) -> bytes:
    """An IPv4 packet with a datagram, from one of 100 hosts; the kernel fills in IP's checksum."""
    source = (FORGED + number % 100).packed
    datagram = struct.pack("!HHHH", 1024 + number, 53, 8 + 4, 0) + b"spam"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, 17, 0)
    return head + source + IPv4Address("10.0.1.1").packed + datagram


async def answer_greetings(endpoint: SocketType) -> None:
    """Say nothing to spam, as a service does whose first datagram must prove something."""
    while True:
        data, sender = await endpoint.recvfrom(100)
        if data == GREETING:
            await endpoint.sendto(data, sender)


async def greet(client: SocketType) -> None:
    await client.send(GREETING)
    assert await client.recv(100) == GREETING


async def test_every_assured_flow_outlives_a_flood_of_forged_sources(network: Network) -> None:
    endpoint = network.socket("one", "10.0.2.2")
    clients = [network.socket("client", "10.0.1.2") for _ in range(ASSURED)]
    with network.inside("client"):
        raw = Socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_RAW)
    worker = Worker(TABLE, recent=WAVES * WAVE)
    socket = bind_socket(parse_listen("udp://10.0.1.1:53"))
    await open_listener(worker, "lab", socket, [endpoint.getsockname()], Transport.UDP)
    lab, table = Lab(worker, socket.getsockname(), Transport.UDP), worker._relay.table

    async def wait_heard(datagrams: int) -> None:
        while True:
            row = (await lab.counters())["listeners"][0]
            if row["opened"] + row["refused"]["table_full"] >= datagrams:
                return
            await trio.sleep(0.002)

    async def flood() -> None:
        for wave in range(WAVES):
            for start in range(0, WAVE, AT_ONCE):
                for number in range(start, start + AT_ONCE):
                    raw.sendto(forged(wave * WAVE + number), ("10.0.1.1", 0))
                await wait_heard(ASSURED + wave * WAVE + start + AT_ONCE)
            for client in clients:
                await greet(client)
            for flow in table:
                flow.opened -= ANSWER_TIME if flow.state is State.UNREPLIED else 0.0

    with raw, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            nursery.start_soon(answer_greetings, endpoint)
            for client in clients:
                await client.connect(("10.0.1.1", 53))
                await greet(client)
            before = [flow.id for flow in table]
            await flood()

            assured = [flow.id for flow in table if flow.state is State.ASSURED]
            row = (await lab.counters())["listeners"][0]
            ends = Counter((flow.state, flow.close_reason) for flow in table.recent)
            worker.stop()
            nursery.cancel_scope.cancel()

    room = TABLE - ASSURED
    assert assured == before
    assert set(ends) == {("unreplied", "evicted")}
    assert row["closed"]["evicted"] == (WAVES - 1) * room  # in each wave all of the one before
    assert row["refused"]["table_full"] == WAVES * (WAVE - room)
    assert row["opened"] == ASSURED + WAVES * room
    assert row["live"] == {"unreplied": room, "assured": ASSURED}
    assert row["original"]["received"] == row["original"]["sent"]
