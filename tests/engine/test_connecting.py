"""Connecting: several endpoints within one time, two IP versions in a race, clients who leave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from socket import AF_INET, AF_INET6, SHUT_WR, SOCK_NONBLOCK, SOCK_STREAM
from socket import socket as Socket
from time import monotonic

import pytest
import structlog.testing
import trio

from proxy.core.address import Address
from proxy.core.balance.ways import Balance
from proxy.core.expiry import FlowLimits
from proxy.core.queue_counters import QueueSnapshot
from proxy.core.waiting import WaitLimits
from proxy.engine.queue import ENTRIES_PER_TURN
from proxy.engine.specs import UpstreamSpec
from tests.engine.lab import (
    Lab,
    accept,
    change,
    closed_port,
    connect,
    is_refused,
    is_reset,
    listening,
    receive_exactly,
    relaying,
    reset,
    send_all,
    upstream_spec,
)


@contextmanager
def silent(host: str = "127.0.0.1") -> Iterator[Address]:
    """An endpoint that answers no SYN: its accept queue is full."""
    endpoint = listening(host, backlog=0)
    family = AF_INET6 if ":" in host else AF_INET
    fillers = [Socket(family, SOCK_STREAM | SOCK_NONBLOCK) for _ in range(4)]
    for filler in fillers:
        filler.connect_ex(endpoint.getsockname())
    try:
        yield endpoint.getsockname()[:2] if family == AF_INET else endpoint.getsockname()
    finally:
        for filler in fillers:
            filler.close()


def named(*addresses: Address, balance: Balance = Balance.FIRST) -> UpstreamSpec:
    """An upstream of one name."""
    spec = upstream_spec("lab", addresses)
    endpoints = tuple(each._replace(name="web:80") for each in spec.endpoints)
    return replace(spec, endpoints=endpoints, balance=balance)


async def queue_row(lab: Lab) -> QueueSnapshot:
    """What the only upstream tells of its queue."""
    (row,) = (await lab.counters())["queues"]
    return row


async def test_all_attempts_together_have_the_time_to_connect() -> None:
    with silent() as one, silent() as two, silent() as three:
        limits = FlowLimits(connect=0.6)
        async with relaying([one, two, three], limits=limits) as lab:
            began = monotonic()
            assert await is_refused(lab.address)
            assert monotonic() - began >= 0.6
            (ended,) = await lab.wait_ended()
            assert ended["close_reason"] == "connect_timeout"
            failures = [each["failures"] for each in (await lab.counters())["endpoints"]]
            assert [failed["connect_timeout"] for failed in failures] == [1, 1, 1]


async def test_an_endpoint_without_others_has_all_the_time() -> None:
    with silent() as one:
        async with relaying([one], limits=FlowLimits(connect=0.4)) as lab:
            began = monotonic()
            assert await is_refused(lab.address)
            assert monotonic() - began >= 0.4


@pytest.mark.parametrize(("dead", "alive"), [("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
async def test_the_other_ip_version_of_a_name_is_tried_beside_one_that_is_silent(
    dead: str, alive: str
) -> None:
    endpoint = listening(alive)
    with silent(dead) as one:
        async with relaying([one], limits=FlowLimits(connect=3600.0)) as lab:
            await lab.worker.apply(change(named(one, endpoint.getsockname())))
            client = await connect(lab.address)
            accepted = await accept(endpoint)
            await send_all(client, b"hello")
            assert await receive_exactly(accepted, 5) == b"hello"
            row = await lab.wait_live("established")
            assert f":{endpoint.getsockname()[1]}" in str(row["endpoint"]["remote"])
            (upstream,) = lab.worker._roster.upstreams
            assert [each.flows for each in upstream.endpoints] == [0, 1]
            (counters,) = (await lab.counters())["endpoints"]
            assert counters["attempts"] == 2
            assert sum(counters["failures"].values()) == 0
            used = lab.worker._relay.files.used
            client.close()
            accepted.close()
            await lab.wait_ended()
            assert used - lab.worker._relay.files.used == 2


async def test_no_other_name_is_tried_beside_a_silent_one() -> None:
    endpoint = listening("::1")
    with silent() as one:
        spec = replace(upstream_spec("lab", [one, endpoint.getsockname()]), balance=Balance.FIRST)
        async with relaying([one], limits=FlowLimits(connect=1.2)) as lab:
            await lab.worker.apply(change(spec))
            began = monotonic()
            await connect(lab.address)
            await accept(endpoint)
            assert monotonic() - began >= 0.6


async def test_when_both_versions_are_silent_the_flow_ends_once() -> None:
    with silent() as one, silent("::1") as two:
        async with relaying([one], limits=FlowLimits(connect=0.8)) as lab:
            await lab.worker.apply(change(named(one, two)))
            assert await is_refused(lab.address)
            (ended,) = await lab.wait_ended()
            assert ended["close_reason"] == "connect_timeout"
            (upstream,) = lab.worker._roster.upstreams
            assert [each.flows for each in upstream.endpoints] == [0, 0]
            assert lab.worker._relay.files.used == 0


async def test_a_client_that_resets_ends_the_race() -> None:
    with silent() as one, silent("::1") as two:
        async with relaying([one]) as lab:
            await lab.worker.apply(change(named(one, two)))
            client = await connect(lab.address)
            (upstream,) = lab.worker._roster.upstreams
            while [each.flows for each in upstream.endpoints] != [1, 1]:
                await lab.wait_live("connecting")
            reset(client)
            (ended,) = await lab.wait_ended()
            assert (ended["close_reason"], ended["close_side"]) == ("client_reset", "client")
            assert [each.flows for each in upstream.endpoints] == [0, 0]
            assert lab.worker._relay.files.used == 0


async def test_a_client_that_leaves_without_a_word_is_not_connected_for_long() -> None:
    with silent() as one, silent() as two:
        async with relaying([one, two], limits=FlowLimits(connect=3600.0)) as lab:
            client = await connect(lab.address)
            client.close()
            (ended,) = await lab.wait_ended()
            assert (ended["close_reason"], ended["close_side"]) == ("client_reset", "client")
            rows = (await lab.counters())["endpoints"]
            assert sum(row["attempts"] for row in rows) == 1
            assert sum(sum(row["failures"].values()) for row in rows) == 0


async def test_a_client_that_has_asked_and_ended_its_side_is_connected() -> None:
    endpoint = listening()
    with silent() as one:
        limits = FlowLimits(connect=3.0)
        async with relaying([one, endpoint.getsockname()], limits=limits) as lab:
            client = await connect(lab.address)
            await send_all(client, b"hello")
            client.shutdown(SHUT_WR)
            accepted = await accept(endpoint)  # after half of the time, more than who left has
            assert await receive_exactly(accepted, 5) == b"hello"


async def test_a_client_that_ends_its_side_at_once_still_hears_a_service_that_speaks_first() -> (
    None
):
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client = Socket()
        client.connect(lab.address)  # before the worker has a turn
        client.shutdown(SHUT_WR)
        accepted = await accept(endpoint)
        await send_all(accepted, b"the time")
        client.setblocking(False)
        with trio.socket.from_stdlib_socket(client) as hearing:
            assert await receive_exactly(hearing, 8) == b"the time"


def with_ceiling(ceiling: int, *addresses: Address, waiting: WaitLimits | None) -> UpstreamSpec:
    spec = upstream_spec("lab", addresses)
    endpoints = tuple(each._replace(ceiling=ceiling) for each in spec.endpoints)
    return replace(spec, endpoints=endpoints, waiting=waiting)


async def test_an_endpoint_has_no_more_flows_than_it_may() -> None:
    one, two = listening(), listening()
    addresses = [one.getsockname(), two.getsockname()]
    async with relaying(addresses) as lab:
        await lab.worker.apply(change(with_ceiling(2, *addresses, waiting=None)))
        clients = [await connect(lab.address) for _ in range(4)]
        for endpoint in (one, two, one, two):
            await accept(endpoint)
        assert await is_refused(lab.address)
        (ended,) = await lab.ended()
        assert (ended["close_reason"], ended["close_side"]) == ("no_endpoint", "proxy")
        reset(clients[1])
        await lab.wait_counter(
            lambda counters: counters["listeners"][0]["closed"]["client_reset"], 1
        )
        await connect(lab.address)
        await accept(two)


async def test_flows_wait_for_a_place_first_come_first_served() -> None:
    endpoint = listening()
    address = endpoint.getsockname()
    async with relaying([address]) as lab:
        await lab.worker.apply(change(with_ceiling(1, address, waiting=WaitLimits(3600.0, 2))))
        first = await connect(lab.address)
        accepted = await accept(endpoint)
        waiting = []
        for word in (b"one", b"two"):
            waiting.append(await connect(lab.address))
            await send_all(waiting[-1], word)
            while len(await lab.live()) < 1 + len(waiting):
                await lab.wait_live("connecting")
        assert await is_refused(lab.address)  # a third may not wait
        for word in (b"one", b"two"):
            accepted.close()
            first.close()
            accepted, first = await accept(endpoint), waiting.pop(0)
            assert await receive_exactly(accepted, 3) == word
        row = await queue_row(lab)
        assert (row["waiting"], row["ceiling"]) == (0, 2)
        assert (row["waited"], row["turned_away"], row["expired"]) == (2, 1, 0)


async def test_who_waits_is_refused_when_the_time_is_over_and_the_clock_of_connect_stands() -> None:
    endpoint = listening()
    address = endpoint.getsockname()
    async with relaying([address], limits=FlowLimits(connect=0.05)) as lab:
        await lab.worker.apply(change(with_ceiling(1, address, waiting=WaitLimits(0.4, 10))))
        await connect(lab.address)
        await accept(endpoint)
        began = monotonic()
        assert await is_refused(lab.address)
        assert monotonic() - began >= 0.4
        (ended,) = await lab.ended()
        assert ended["close_reason"] == "no_endpoint"
        row = await queue_row(lab)
        assert (row["waiting"], row["waited"], row["expired"]) == (0, 1, 1)


async def test_who_leaves_while_waiting_is_forgotten() -> None:
    endpoint = listening()
    address = endpoint.getsockname()
    async with relaying([address]) as lab:
        await lab.worker.apply(change(with_ceiling(1, address, waiting=WaitLimits(3600.0, 10))))
        await connect(lab.address)
        await accept(endpoint)
        (upstream,) = lab.worker._roster.upstreams
        for leave in (reset, lambda client: client.close()):
            client = await connect(lab.address)
            while not upstream.queue:
                await lab.wait_live("connecting")
            leave(client)
            while upstream.queue:
                await lab.wait_live("established")
        rows = await lab.ended()
        assert {row["close_reason"] for row in rows} == {"client_reset"}


async def test_those_who_wait_go_on_when_a_reload_raises_the_ceiling_or_end_without_a_queue() -> (
    None
):
    endpoint = listening()
    address = endpoint.getsockname()
    waits = WaitLimits(3600.0, 10)
    async with relaying([address]) as lab:
        await lab.worker.apply(change(with_ceiling(1, address, waiting=waits)))
        (upstream,) = lab.worker._roster.upstreams
        clients = [await connect(lab.address) for _ in range(3)]
        while len(upstream.queue or ()) < 2:
            await lab.wait_live("connecting")
        await lab.worker.apply(change(with_ceiling(2, address, waiting=waits)))
        await accept(endpoint)
        await accept(endpoint)
        await lab.worker.apply(change(with_ceiling(2, address, waiting=None)))
        ended = await lab.ended()
        assert [row["close_reason"] for row in ended] == ["no_endpoint"]
        assert await is_reset(clients[2])
        assert (await lab.counters())["queues"] == []
        await lab.worker.apply(change(with_ceiling(2, address, waiting=waits)))
        row = await queue_row(lab)
        assert (row["waiting"], row["ceiling"], row["waited"]) == (0, 10, 2), "it goes on counting"


async def test_who_waited_in_a_queue_that_is_no_more_never_connects() -> None:
    """There was room for it in the same round, which nobody had seen yet."""
    endpoint = listening()
    address = endpoint.getsockname()
    waits = WaitLimits(3600.0, 10)
    async with relaying([address]) as lab:
        await lab.worker.apply(change(with_ceiling(1, address, waiting=waits)))
        (upstream,) = lab.worker._roster.upstreams
        clients = [await connect(lab.address) for _ in range(2)]
        while not upstream.queue:
            await lab.wait_live("connecting")
        assert (await queue_row(lab))["waiting"] == 1
        upstream.queue.room()
        await lab.worker.apply(change(with_ceiling(2, address, waiting=None)))
        assert await is_reset(clients[1])
        await lab.wait_live("established")
        counters = await lab.counters()
        assert counters["endpoints"][0]["attempts"] == 1
        assert upstream.endpoints[0].flows == 1


async def test_who_waited_waits_again_when_whoever_had_room_cannot_be_reached() -> None:
    """The kernel says so at once, and then there is nobody left but one that is full."""
    endpoint = listening()
    full, unreachable = endpoint.getsockname(), ("255.255.255.255", 9)
    waits = WaitLimits(3600.0, 10)
    async with relaying([full]) as lab:
        await lab.worker.apply(change(with_ceiling(1, full, waiting=waits)))
        (upstream,) = lab.worker._roster.upstreams
        first = await connect(lab.address)
        accepted = await accept(endpoint)
        second = await connect(lab.address)
        while not upstream.queue:
            await lab.wait_live("connecting")
        with structlog.testing.capture_logs() as logs:
            await lab.worker.apply(change(with_ceiling(1, full, unreachable, waiting=waits)))
            while (await queue_row(lab))["waited"] < 2:
                await lab.wait_live("connecting")
            reset(first)
            accepted.close()
            await send_all(second, b"hello")
            assert await receive_exactly(await accept(endpoint), 5) == b"hello"
        assert not [each for each in logs if each["event"].endswith("crashed")]


async def test_many_who_wait_for_another_endpoint_are_asked_once() -> None:
    """Each has tried the one that is dead, and waits for the one that is full."""
    endpoint = listening()
    full = endpoint.getsockname()
    many = 3 * ENTRIES_PER_TURN
    waits = WaitLimits(3600.0, many)
    one_place = with_ceiling(1, full, closed_port(), waiting=waits)
    one_place = replace(
        one_place, endpoints=(one_place.endpoints[0], one_place.endpoints[1]._replace(ceiling=inf))
    )
    async with relaying([full]) as lab:
        await lab.worker.apply(change(one_place))
        await connect(lab.address)
        await accept(endpoint)
        for _ in range(many):
            await connect(lab.address)
        (upstream,) = lab.worker._roster.upstreams
        pump = lab.worker._relay.pump
        while upstream.endpoints[1].counters.attempts < many or pump._again:
            await trio.sleep(0.002)
        assert len(upstream.queue or ()) == many
        await lab.worker.apply(change(with_ceiling(many + 1, full, waiting=waits)))
        for _ in range(many):
            await accept(endpoint)
