"""Endpoints that fall silent: a firewall drops everything to them, and nobody is told.

No RST comes and no ICMP, as when a host loses its power. Loopback cannot show that, so the
endpoints are hosts in network namespaces, and the relay is on a third.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import structlog.testing
import trio
from trio.socket import SocketType

from proxy.core.address import Address, Transport
from proxy.core.balance.ways import Balance
from proxy.core.condition import Condition
from proxy.core.ejection import EjectionTerms
from proxy.core.expiry import UNREPLIED_LIFE, FlowLimits
from proxy.engine.specs import UpstreamSpec
from tests.engine.lab import (
    Lab,
    change,
    connect,
    is_reset,
    listening,
    pair,
    receive_exactly,
    relaying,
    send_all,
    upstream_spec,
)
from tests.engine.test_datagram import client_of, exchange
from tests.engine.test_ejection import conditions
from tests.engine.udp_network import Network, require_namespaces

HOSTS = {"one": "10.0.2.2", "two": "10.0.2.3"}
TERMS = EjectionTerms(failures=2, time=3600.0, time_max=3600.0)
QUICK = FlowLimits(connect=0.4)


@pytest.fixture
def network() -> Iterator[Network]:
    """``proxy``, ``one`` and ``two`` on a bridge; the test is on ``proxy``."""
    require_namespaces()
    network = Network()
    try:
        for host in ("proxy", *HOSTS):
            network.add(host)
        network.join("far", "proxy", "eth0", "10.0.2.1/24")
        for host, address in HOSTS.items():
            network.join("far", host, "eth0", f"{address}/24")
        with network.inside("proxy"):
            yield network
    finally:
        network.close()


def black_hole(network: Network, host: str) -> None:
    """Have a host answer nothing any more, in whatever protocol."""
    network.run(host, "nft", "add table ip hole")
    network.run(host, "nft", "add chain ip hole in { type filter hook input priority 0; }")
    network.run(host, "nft", "add rule ip hole in drop")


def listening_on(network: Network, host: str) -> SocketType:
    with network.inside(host):
        return listening(HOSTS[host])


def judged(*addresses: Address, closes: bool = False) -> UpstreamSpec:
    """An upstream that asks the first as long as it may."""
    spec = upstream_spec("lab", addresses)
    return replace(spec, ejection=TERMS, closes_fallen=closes, balance=Balance.FIRST)


async def served(lab: Lab, endpoint: SocketType) -> SocketType:
    """A flow through which something was said both ways; the client's end."""
    client, accepted = await pair(lab, endpoint)
    for speaker, hearer in ((client, accepted), (accepted, client)):
        await send_all(speaker, b"hello")
        assert await receive_exactly(hearer, 5) == b"hello"
    return client


async def test_who_would_go_there_is_served_by_the_next_endpoint(network: Network) -> None:
    one, two = (listening_on(network, host) for host in HOSTS)
    addresses = [one.getsockname(), two.getsockname()]
    async with relaying(addresses, limits=QUICK) as lab:
        await lab.worker.apply(change(judged(*addresses)))
        await served(lab, one)
        black_hole(network, "one")
        with structlog.testing.capture_logs() as logs:
            for _ in range(5):
                await served(lab, two)
        dead, alive = (await lab.counters())["endpoints"]
        assert dead["failures"] == {"connect_refused": 0, "connect_timeout": 2, "unreachable": 0}
        assert (dead["attempts"], dead["ejections"], alive["attempts"]) == (3, 1, 5)
        assert conditions(lab) == [Condition.EJECTED, Condition.UNKNOWN]
        (event,) = [each for each in logs if each["event"] == "endpoint_ejected"]
        assert event["reason"] == "2 failures to reach it in a row"


@pytest.mark.parametrize("closes", [False, True])
async def test_flows_that_are_open_are_kept_or_closed_when_it_is_ejected(
    network: Network, closes: bool
) -> None:
    one, two = (listening_on(network, host) for host in HOSTS)
    addresses = [one.getsockname(), two.getsockname()]
    async with relaying(addresses, limits=QUICK) as lab:
        await lab.worker.apply(change(judged(*addresses, closes=closes)))
        open_before = [await served(lab, one) for _ in range(3)]
        black_hole(network, "one")
        others = [await served(lab, two) for _ in range(3)]
        assert conditions(lab)[0] is Condition.EJECTED
        if closes:
            assert all([await is_reset(client) for client in open_before])
            rows = await lab.ended()
            ends = {(row["close_reason"], row["close_side"]) for row in rows}
            assert (len(rows), ends) == (3, {("endpoint_down", "endpoint")})
            assert len(await lab.live()) == len(others)
        else:
            for _ in range(20):  # rounds in which they would be seen to
                await trio.lowlevel.checkpoint()
            assert len(await lab.live()) == len(open_before) + len(others)


async def test_when_nobody_is_left_the_client_is_told_in_time(network: Network) -> None:
    one, two = (listening_on(network, host) for host in HOSTS)
    addresses = [one.getsockname(), two.getsockname()]
    for host in HOSTS:
        black_hole(network, host)
    async with relaying(addresses, limits=QUICK) as lab:
        await lab.worker.apply(change(judged(*addresses)))
        assert await is_reset(await connect(lab.address))
        (row,) = await lab.wait_ended()
        assert (row["close_reason"], row["close_side"]) == ("connect_timeout", "endpoint")
        assert [each["attempts"] for each in (await lab.counters())["endpoints"]] == [1, 1]


async def answer(socket: SocketType) -> None:
    """Answer every datagram with itself, until cancelled."""
    while True:
        data, sender = await socket.recvfrom(2000)
        await socket.sendto(data, sender)


async def asks_until_answered(client: SocketType, word: bytes) -> int:
    """Send a word again and again, as clients of UDP do; how often it took."""
    sent = 0
    while True:
        await client.send(word)
        sent += 1
        with trio.move_on_after(0.05):
            assert await client.recv(2000) == word
            return sent


async def test_datagrams_move_to_a_live_endpoint_as_flows_go_unanswered(network: Network) -> None:
    one, two = (network.socket(host, address) for host, address in HOSTS.items())
    addresses = [one.getsockname(), two.getsockname()]
    limits = FlowLimits(unreplied=0.1)
    async with relaying(addresses, Transport.UDP, limits=limits) as lab:
        await lab.worker.apply(change(judged(*addresses)))
        lasting = await client_of(lab)
        await exchange(lasting, one, b"hello")
        black_hole(network, "one")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, two)
            for _ in range(TERMS.failures):
                await (await client_of(lab)).send(b"anybody?")
            while conditions(lab) != [Condition.EJECTED, Condition.UNKNOWN]:
                await trio.sleep(0.002)
            ended = await lab.ended()
            assert {row["close_reason"] for row in ended} == {"idle_timeout"}
            assert await asks_until_answered(lasting, b"still there?") <= 2
            nursery.cancel_scope.cancel()


async def test_a_sender_who_hears_nothing_and_never_stops_is_moved_too(network: Network) -> None:
    """It keeps its flow alive by itself, for ``UNREPLIED_LIFE`` times the clock."""
    one, two = (network.socket(host, address) for host, address in HOSTS.items())
    addresses = [one.getsockname(), two.getsockname()]
    limits = FlowLimits(unreplied=0.05)
    async with relaying(addresses, Transport.UDP, limits=limits) as lab:
        await lab.worker.apply(change(judged(*addresses)))
        await exchange(await client_of(lab), one, b"hello")
        black_hole(network, "one")
        sender = await client_of(lab)
        with trio.CancelScope() as arrived:
            async with trio.open_nursery() as nursery:

                async def see() -> None:
                    assert (await two.recvfrom(100))[0] == b"log line"
                    arrived.cancel()

                nursery.start_soon(see)
                while True:
                    await sender.send(b"log line")
                    await trio.sleep(0.01)
        ended = [row for row in await lab.ended() if row["close_reason"] == "max_duration"]
        assert len(ended) == TERMS.failures
        assert UNREPLIED_LIFE * limits.unreplied < 1, "the test would be slow"
