"""UDP flows: every datagram whole, both sizes of extreme, and stages that time out."""

from __future__ import annotations

import socket

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.program import free_port
from tests.e2e.sockets import datagram_client, exchange, listen_datagrams, text_of
from tests.e2e.subject import Forward, agree_nothing_lost

LARGEST = 65_507
"""Bytes of payload: 65,535 less the headers of IPv4 (20) and UDP (8)."""

QUICK = {"idle": "300ms", "unreplied": "300ms"}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_datagrams_of_every_size_pass_both_ways(stage: Stage, host: str) -> None:
    endpoint = await listen_datagrams(stage.nursery, host)
    sockpair = await stage.sockpair(game := Forward("game", "udp", [endpoint], host, QUICK))
    sizes = [1, 0, 1200, LARGEST, 0, LARGEST]
    async with datagram_client(game.address) as client:
        for number, size in enumerate(sizes):
            data = bytes([number]) * size
            assert await exchange(client, data) == data
        (row,) = await sockpair.wait_flows(1, state="assured")
        assert row["client"] == {
            "local": game.text,
            "remote": text_of(client.getsockname()),
            "via": None,
        }
        assert row["endpoint"]["remote"] == endpoint
    books = await sockpair.books("game", flows=1)
    assert books.datagrams == (len(sizes), len(sizes))
    assert books.original == books.reply == sum(sizes)
    assert (books.reasons, books.rows[0]["close_side"]) == ({"idle_timeout": 1}, "proxy")
    metrics = await sockpair.metrics()
    agree_nothing_lost("game", metrics)
    sent = metrics.sum("sockpair_client_sent_datagrams_total", listener="game")
    assert sent == len(sizes)


async def test_empty_datagram_opens_a_flow(stage: Stage) -> None:
    endpoint = await listen_datagrams(stage.nursery)
    sockpair = await stage.sockpair(game := Forward("game", "udp", [endpoint], limits=QUICK))
    async with datagram_client(game.address) as client:
        assert await exchange(client, b"") == b""
    books = await sockpair.books("game", flows=1)
    assert (books.datagrams, books.original, books.reply) == ((1, 1), 0, 0)


async def test_order_and_boundaries_are_kept(stage: Stage) -> None:
    endpoint = await listen_datagrams(stage.nursery)
    await stage.sockpair(game := Forward("game", "udp", [endpoint]))
    sent = [f"{number:03}".encode() * (number + 1) for number in range(60)]
    async with datagram_client(game.address) as client:
        for data in sent:
            await client.send(data)
        with trio.fail_after(10):
            assert [await client.recv(65536) for _ in sent] == sent


async def test_endpoint_that_stays_silent_leaves_the_flow_unreplied(stage: Stage) -> None:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        await silent.bind(("127.0.0.1", free_port()))
        endpoint = text_of(silent.getsockname())
        forward = Forward("game", "udp", [endpoint], limits={"unreplied": "300ms", "idle": "1h"})
        sockpair = await stage.sockpair(forward)
        async with datagram_client(forward.address) as client:
            await client.send(b"anybody there?")
            await sockpair.wait_flows(1, state="unreplied")
            assert await silent.recv(100) == b"anybody there?"
        books = await sockpair.books("game", flows=1)
        assert books.reasons == {"idle_timeout": 1}
        assert books.rows[0]["state"] == "unreplied"


async def test_endpoint_that_refuses_is_counted_and_ends_nothing(stage: Stage) -> None:
    """ICMP port unreachable is a hint, not an end: the endpoint may be starting."""
    port = free_port()
    forward = Forward("game", "udp", [f"127.0.0.1:{port}"])
    sockpair = await stage.sockpair(forward)

    async def refused() -> int:
        await client.send(b"knock")
        return (await sockpair.metrics()).sum(
            "sockpair_datagrams_dropped_total", listener="game", reason="refused"
        )

    async with datagram_client(forward.address) as client:
        await until(refused, "a refusal to be counted")
        (row,) = await sockpair.flows()
        assert row["state"] == "unreplied"
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
            await late.bind(("127.0.0.1", port))
            await client.send(b"hello")
            with trio.fail_after(10):
                data, sender = await late.recvfrom(100)
                await late.sendto(data, sender)
                assert await client.recv(100) == data
        (after,) = await sockpair.flows()
        assert (after["id"], after["state"]) == (row["id"], "assured")


async def test_one_client_socket_at_two_listeners_is_two_flows(stage: Stage) -> None:
    endpoint = await listen_datagrams(stage.nursery)
    one, two = Forward("one", "udp", [endpoint]), Forward("two", "udp", [endpoint])
    sockpair = await stage.sockpair(one, two)
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        await client.bind(("127.0.0.1", 0))
        for forward in (one, two):
            await client.sendto(forward.name.encode(), forward.address)
            with trio.fail_after(10):
                assert await client.recvfrom(100) == (forward.name.encode(), forward.address)
        rows = await sockpair.wait_flows(2)
    assert {row["client"]["remote"] for row in rows} == {rows[0]["client"]["remote"]}
    assert {row["listener"] for row in rows} == {"one", "two"}


async def test_address_that_answers_is_the_one_that_was_asked(stage: Stage) -> None:
    """On a wildcard address a reply leaves from where its client sent to."""
    endpoint = await listen_datagrams(stage.nursery)
    sockpair = await stage.sockpair(game := Forward("game", "udp", [endpoint], "0.0.0.0"))
    for host in ("127.0.0.1", "127.0.0.2", "127.1.2.3"):
        async with datagram_client((host, game.port)) as client:
            assert await exchange(client, b"where are you?") == b"where are you?"
    rows = await sockpair.wait_flows(3)
    local = [row["client"]["local"] for row in rows]
    assert local == [f"{host}:{game.port}" for host in ("127.0.0.1", "127.0.0.2", "127.1.2.3")]


async def test_client_that_went_away_disturbs_nobody(stage: Stage) -> None:
    """A reply to a closed client port comes back as ICMP at the listener's socket."""
    endpoint = await listen_datagrams(stage.nursery)
    sockpair = await stage.sockpair(game := Forward("game", "udp", [endpoint]))
    async with datagram_client(game.address) as client:
        async with datagram_client(game.address) as leaving:
            await exchange(leaving, b"hello")
            await leaving.send(b"bye")
        for number in range(20):
            data = b"%d" % number
            assert await exchange(client, data) == data
        with trio.move_on_after(0.05) as nothing_more:
            await client.recv(100)
        assert nothing_more.cancelled_caught
    assert len(await sockpair.flows()) == 2
