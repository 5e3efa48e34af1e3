"""What a UDP flow does with datagrams, silence and ICMP; with real sockets on loopback."""

from __future__ import annotations

from socket import AF_INET, SO_RCVBUF, SOCK_DGRAM, SOL_SOCKET

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.address import Address, Transport
from proxy.core.expiry import FlowLimits
from proxy.core.query import FlowQuery
from proxy.engine.port import RelayCounters
from tests.engine.lab import Lab, closed_port, datagram_socket, open_listener, relaying

UDP = Transport.UDP


async def client_of(lab: Lab, host: str = "127.0.0.1") -> SocketType:
    client = datagram_socket(host)
    await client.connect((host, lab.address[1]))
    return client


async def exchange(client: SocketType, endpoint: SocketType, data: bytes) -> Address:
    """Send a datagram through, answer it backwards; returns our outbound address."""
    await client.send(data)
    received, sender = await endpoint.recvfrom(70000)
    assert received == data
    await endpoint.sendto(data[::-1], sender)
    assert await client.recv(70000) == data[::-1]
    address: Address = sender
    return address


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
async def test_datagrams_of_every_size_pass_both_ways(host: str) -> None:
    loopback = "::1" if ":" in host else "127.0.0.1"
    endpoint = datagram_socket(loopback)
    async with relaying([endpoint.getsockname()], UDP, host) as lab:
        client = await client_of(lab, loopback)
        sizes = (0, 1, 512, 1472, 9000, 65507 if loopback == "127.0.0.1" else 65487)
        for size in sizes:
            await exchange(client, endpoint, b"x" * size)
        row = await lab.wait_live("assured")
        assert row["original"] == row["reply"] == {"bytes": sum(sizes), "packets": len(sizes)}
        assert row["client"]["remote"].endswith(f":{client.getsockname()[1]}")
        assert row["client"]["local"].endswith(f":{lab.address[1]}")


async def test_each_client_has_a_flow_of_its_own() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        clients = [await client_of(lab) for _ in range(20)]
        outbound = {await exchange(client, endpoint, b"hello") for client in clients}
        assert len(outbound) == 20
        assert {await exchange(client, endpoint, b"again") for client in clients} == outbound
        assert (await lab.counters())["listeners"][0]["opened"] == 20


async def test_a_burst_keeps_its_order_and_its_boundaries() -> None:
    endpoint = datagram_socket()
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 1 << 20)
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        for number in range(150):
            await client.send(b"%d" % number)
        received = [await endpoint.recv(100) for _ in range(150)]
        assert received == [b"%d" % number for number in range(150)]


async def test_a_burst_of_replies_keeps_its_order() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        outbound = await exchange(client, endpoint, b"x")
        for number in range(100):
            await endpoint.sendto(b"%d" % number, outbound)
        received = [await client.recv(100) for _ in range(100)]
        assert received == [b"%d" % number for number in range(100)]


async def test_on_a_wildcard_the_answer_comes_from_the_address_that_was_hit() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP, "0.0.0.0") as lab:
        client = datagram_socket()
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            await client.sendto(b"who are you", (host, lab.address[1]))
            _, sender = await endpoint.recvfrom(100)
            await endpoint.sendto(b"me", sender)
            _, answerer = await client.recvfrom(100)
            assert answerer == (host, lab.address[1])
        rows = await lab.live()
        assert {row["client"]["local"] for row in rows} == {
            f"127.0.0.{n}:{lab.address[1]}" for n in (1, 2, 3)
        }


async def test_a_dual_stack_wildcard_shows_ipv4_clients_as_ipv4() -> None:

    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        socket = bind_socket(ListenAddress(UDP, "::", 0), dual_stack=True)
        port = socket.getsockname()[1]
        await open_listener(lab.worker, "dual", socket, [endpoint.getsockname()], UDP)
        client = datagram_socket()
        await client.connect(("127.0.0.2", port))
        await exchange(client, endpoint, b"four through six")
        (row,) = await lab.live()
        assert row["client"]["local"] == f"127.0.0.2:{port}"
        assert row["client"]["remote"].startswith("127.0.0.1:")


async def test_silence_ends_an_unreplied_flow_sooner_than_an_assured_one() -> None:
    endpoint = datagram_socket()
    limits = FlowLimits(unreplied=0.15, idle=0.5)
    async with relaying([endpoint.getsockname()], UDP, limits=limits) as lab:
        silent, answered = await client_of(lab), await client_of(lab)
        await exchange(answered, endpoint, b"x")
        await silent.send(b"anybody?")
        rows = sorted(await lab.wait_ended(2), key=lambda row: row["closed"] or 0)
        assert [row["state"] for row in rows] == ["unreplied", "assured"]
        assert {row["close_reason"] for row in rows} == {"idle_timeout"}


async def test_a_sender_who_is_never_answered_gets_another_endpoint() -> None:
    endpoints = [datagram_socket() for _ in range(2)]
    limits = FlowLimits(unreplied=0.05)
    addresses = [endpoint.getsockname() for endpoint in endpoints]
    async with relaying(addresses, UDP, limits=limits) as lab:
        client = await client_of(lab)
        seen: set[int] = set()

        async def listen(number: int) -> None:
            while True:
                await endpoints[number].recv(100)
                seen.add(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, 0)
            nursery.start_soon(listen, 1)
            while len(seen) < 2:
                await client.send(b"log line")
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        reasons = {row["close_reason"] for row in await lab.ended()}
        assert reasons == {"max_duration"}


async def test_icmp_refusal_is_counted_and_ends_nothing() -> None:
    address = closed_port()
    async with relaying([address], UDP) as lab:
        client = await client_of(lab)
        await client.send(b"nobody there")

        def refused(counters: RelayCounters) -> int:
            return counters["listeners"][0]["dropped"]["refused"]

        await lab.wait_counter(refused, 1)
        late = trio.socket.socket(AF_INET, SOCK_DGRAM)
        with late:
            await late.bind(address)
            await exchange(client, late, b"back again")
        assert len(await lab.live()) == 1
        assert await lab.ended() == []


async def test_no_route_ends_the_flow_as_unreachable() -> None:
    async with relaying([("fe80::1", 9, 0, 0)], UDP) as lab:  # link-local, without its interface
        client = await client_of(lab)
        await client.send(b"x")
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == "unreachable"


async def test_a_full_table_refuses_new_clients_and_serves_the_old() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP, table_limit=1) as lab:
        old, new = await client_of(lab), await client_of(lab)
        await exchange(old, endpoint, b"x")
        await new.send(b"x")
        await lab.wait_counter(lambda c: c["listeners"][0]["refused"]["table_full"], 1)
        await exchange(old, endpoint, b"y")


async def test_a_datagram_from_ourselves_is_a_loop() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        listener = lab.listener.socket
        listener.sendto(b"x", lab.address)
        await lab.wait_counter(lambda c: c["listeners"][0]["refused"]["loop"], 1)
        assert await lab.live() == []


async def test_what_the_kernel_drops_is_seen() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        lab.listener.socket.setsockopt(SOL_SOCKET, SO_RCVBUF, 2048)
        client = await client_of(lab)
        for _ in range(50):
            client._sock.send(b"x" * 1000)  # without a checkpoint, so that the pump cannot read
        await lab.wait_counter(lambda c: c["listeners"][0]["dropped"]["kernel"], 1)


async def test_killing_by_filter_spares_the_rest() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        clients = [await client_of(lab) for _ in range(3)]
        for number, client in enumerate(clients):
            await exchange(client, endpoint, b"x" * (10 * number + 1))
        assert await lab.worker.kill(FlowQuery(min_bytes=20)) == 2
        assert len(await lab.live()) == 1
        assert {row["close_reason"] for row in await lab.ended()} == {"killed"}
        assert lab.worker._relay.files.used == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
async def test_a_burst_of_many_sizes_and_senders_arrives_datagram_by_datagram(host: str) -> None:
    loopback = "::1" if ":" in host else "127.0.0.1"
    endpoint = datagram_socket(loopback)
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 8 << 20)
    async with relaying([endpoint.getsockname()], UDP, host) as lab:
        lab.listener.socket.setsockopt(SOL_SOCKET, SO_RCVBUF, 8 << 20)
        clients = [await client_of(lab, loopback) for _ in range(2)]
        sizes = [100, 100, 100, 40, 0, 0, 0, *[1400] * 40, 30000, 30000, 30000, 9, 65000, 9, 9]
        for client in clients:
            await client.send(b"first")
        seen = {(await endpoint.recvfrom(100))[1] for _ in clients}
        for number, size in enumerate(sizes):
            for client in clients if number % 5 == 0 else clients[:1]:
                client._sock.send(bytes([number]) * size)  # no checkpoint: they wait together
        expected = [bytes([number]) * size for number, size in enumerate(sizes)]
        received: dict[Address, list[bytes]] = {sender: [] for sender in seen}
        for _ in range(len(expected) + len(expected[::5])):
            data, sender = await endpoint.recvfrom(70000)
            received[sender].append(data)
        assert sorted(received.values(), key=len) == [expected[::5], expected]
        rows = sorted(await lab.live(), key=lambda row: row["original"]["packets"] or 0)
        assert [row["original"]["packets"] for row in rows] == [
            len(expected[::5]) + 1,
            len(expected) + 1,
        ]
        assert rows[1]["original"]["bytes"] == sum(sizes) + len(b"first")
        counters = (await lab.counters())["listeners"][0]
        assert counters["original"]["received"] == counters["original"]["sent"]


async def test_a_burst_after_an_icmp_error_arrives_whole() -> None:
    address = closed_port()
    async with relaying([address], UDP) as lab:
        client = await client_of(lab)
        await client.send(b"nobody there")
        await lab.wait_counter(lambda c: c["listeners"][0]["dropped"]["refused"], 1)
        for _ in range(20):
            client._sock.send(b"nor there")
        await lab.wait_counter(lambda c: c["listeners"][0]["dropped"]["refused"], 2)
        late = trio.socket.socket(AF_INET, SOCK_DGRAM)
        with late:
            await late.bind(address)
            for _ in range(20):
                client._sock.send(b"back again")
            assert [await late.recv(100) for _ in range(20)] == [b"back again"] * 20


async def test_listeners_that_feed_each_other_in_a_ring_do_not_go_round() -> None:
    """One listener may feed another; a datagram that comes to the same one again is a loop."""
    sockets = [bind_socket(ListenAddress(UDP, "127.0.0.1", 0)) for _ in range(2)]
    addresses = [socket.getsockname() for socket in sockets]
    async with relaying([addresses[0]], UDP) as lab:
        for number, socket in enumerate(sockets):
            await open_listener(lab.worker, f"ring{number}", socket, [addresses[1 - number]], UDP)
        client = await client_of(lab)
        await client.send(b"round and round")
        await lab.wait_counter(lambda c: sum(row["refused"]["loop"] for row in c["listeners"]), 1)
        assert len(await lab.live()) == 3
