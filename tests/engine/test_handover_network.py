"""Flows change their worker where loopback will not do: many hosts, and diverted clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.core.address import Transport
from proxy.core.query import FlowQuery
from tests.engine.heirs import no_samples, nothing_left, successor_of
from tests.engine.lab import accept, relaying
from tests.engine.origins_lab import (
    CLIENT,
    REDIRECT,
    SERVER,
    connecting,
    housed,
    listening,
    routed,
)
from tests.engine.test_handover_faults import talk
from tests.engine.test_origins import configuration, datagrams, divert
from tests.engine.udp_network import Network, require_namespaces

UDP = Transport.UDP


@pytest.fixture(autouse=True)
def _no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    no_samples(monkeypatch)


@pytest.fixture
def segments() -> Iterator[Network]:
    """``client`` - ``proxy`` - a bridge with ``one`` and ``two``; the test is on ``proxy``."""
    require_namespaces()
    network = Network()
    try:
        for host in ("client", "proxy", "one", "two"):
            network.add(host)
        network.join("near", "client", "eth0", "10.0.1.2/24")
        network.join("near", "proxy", "eth0", "10.0.1.1/24")
        network.join("far", "proxy", "eth1", "10.0.2.1/24")
        for number, host in enumerate(("one", "two"), 2):
            network.join("far", host, "eth0", f"10.0.2.{number}/24")
        with network.inside("proxy"):
            yield network
    finally:
        network.close()


async def test_many_hosts_go_on_answering_one_flow(segments: Network) -> None:
    hosts = [segments.socket(host, "0.0.0.0", 9) for host in ("one", "two")]
    client = segments.socket("client", "10.0.1.2")
    endpoint = ("10.0.2.255", 9)
    async with relaying([endpoint], UDP, host="10.0.1.1") as lab:
        await client.sendto(b"who", lab.address)
        asked = [await host.recvfrom(100) for host in hosts]
        assert [data for data, _ in asked] == [b"who"] * 2
        outbound = asked[0][1]
        await hosts[0].sendto(b"one", outbound)
        assert await client.recvfrom(100) == (b"one", lab.address)
        before = await lab.live()
        assert before[0]["responders"] == [{"remote": "10.0.2.2:9", "packets": 1, "bytes": 3}]
        async with successor_of(lab) as (heir, _):
            assert await heir.live() == before
            await hosts[1].sendto(b"two", outbound)
            assert await client.recvfrom(100) == (b"two", lab.address)
            await client.sendto(b"again", lab.address)
            for host in hosts:
                assert await host.recvfrom(100) == (b"again", outbound)
            assert await heir.worker.kill(FlowQuery()) == 1
            ended = await heir.ended()
            assert len(ended[0]["responders"] or []) == 2
            async with successor_of(heir) as (third, _):
                assert await third.ended() == ended
                third.worker.stop()
                assert nothing_left(third)
            assert nothing_left(heir)
        assert nothing_left(lab)


@pytest.fixture
def router() -> Iterator[Network]:
    with routed() as network:
        yield network


async def test_what_was_diverted_is_still_answered_by_whom_it_was_for(router: Network) -> None:
    divert(router, "udp")
    server = router.socket("server", SERVER, 53)
    async with housed(configuration("udp://0.0.0.0:15000", listener="transparent = true")) as lab:
        clients = [datagrams(router, "client", CLIENT, (SERVER, 53)) for _ in range(2)]
        for client in clients:
            await client.send(b"one")
            data, peer = await server.recvfrom(100)
            assert (data, peer) == (b"one", client.getsockname())
            await server.sendto(b"two", peer)
            assert await client.recv(100) == b"two"
        before = await lab.live()
        assert len(lab.worker._relay.exits) == 1
        async with successor_of(lab) as (heir, left):
            assert left.handed == 2
            assert await heir.live() == before
            assert (len(heir.worker._relay.exits), len(lab.worker._relay.exits)) == (1, 0)
            for client in clients:
                await server.sendto(b"three", client.getsockname())
                assert await client.recv(100) == b"three"
                await client.send(b"four")
                assert await server.recvfrom(100) == (b"four", client.getsockname())
            assert len(await heir.live()) == 2
            heir.worker.stop()
            assert nothing_left(heir)
        assert nothing_left(lab)


async def test_a_stream_to_where_its_client_meant_to_go(router: Network) -> None:
    router.run("proxy", "nft", REDIRECT)
    endpoint = listening(router, "server", SERVER, 7000)
    async with housed(configuration()) as lab:
        client = await connecting(router, "client", CLIENT, endpoint.getsockname())
        accepted = await accept(endpoint)
        await talk(client, accepted)
        before = await lab.live()
        async with successor_of(lab) as (heir, _):
            assert await heir.live() == before
            (row,) = (await heir.counters())["endpoints"]
            assert (row["endpoint"], row["flows"], row["draining"]) == ("original", 1, False)
            await talk(client, accepted)
            heir.worker.stop()
            assert nothing_left(heir)
        assert nothing_left(lab)
