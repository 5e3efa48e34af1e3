"""Endpoints that fail flows, and what becomes of the flows of those that are down."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import structlog.testing
import trio
from trio.socket import SocketType

from proxy.core.address import Address, Transport
from proxy.core.balance.ways import Balance
from proxy.core.condition import Condition, Health
from proxy.core.ejection import EjectionTerms
from proxy.core.expiry import FlowLimits
from proxy.engine.specs import HealthReport, UpstreamSpec
from tests.engine.lab import (
    PATIENCE,
    Lab,
    accept,
    change,
    closed_port,
    connect,
    datagram_socket,
    is_reset,
    listening,
    pair,
    relaying,
    reset,
    send_all,
    upstream_spec,
)
from tests.engine.test_datagram import client_of, exchange

UDP = Transport.UDP
TERMS = EjectionTerms(failures=2, time=3600.0, time_max=3600.0)


def judged(*addresses: Address, terms: EjectionTerms = TERMS, closes: bool = False) -> UpstreamSpec:
    return replace(upstream_spec("lab", addresses), ejection=terms, closes_fallen=closes)


def conditions(lab: Lab) -> list[Condition]:
    (upstream,) = lab.worker._roster.upstreams
    return [each.condition for each in upstream.endpoints]


async def down(lab: Lab, name: str, address: Address) -> None:
    await lab.worker.set_health([HealthReport("lab", name, address, Health.DOWN, "")])


async def test_an_endpoint_that_refuses_is_asked_no_more_for_a_while() -> None:
    dead, endpoint = closed_port(), listening()
    async with relaying([dead, endpoint.getsockname()]) as lab:
        await lab.worker.apply(change(judged(dead, endpoint.getsockname())))
        with structlog.testing.capture_logs() as logs:
            for _ in range(8):
                await pair(lab, endpoint)
            await lab.wait_counter(lambda each: each["endpoints"][1]["flows"], 8)
        row = (await lab.counters())["endpoints"][0]
        assert (row["attempts"], row["ejections"]) == (2, 1)
        assert conditions(lab)[0] is Condition.EJECTED
        (event,) = [each for each in logs if each["event"] == "endpoint_ejected"]
        assert event["reason"] == "2 failures to reach it in a row"


async def test_an_endpoint_is_asked_again_after_its_time_and_takes_flows_if_it_is_well() -> None:
    dead, endpoint = closed_port(), listening()
    terms = EjectionTerms(failures=2, time=0.2, time_max=0.2)
    async with relaying([dead, endpoint.getsockname()]) as lab:
        await lab.worker.apply(change(judged(dead, endpoint.getsockname(), terms=terms)))
        for _ in range(6):
            await pair(lab, endpoint)
        assert conditions(lab)[0] is Condition.EJECTED
        back = trio.socket.socket()
        await back.bind(dead)
        back.listen(8)
        with back:
            while True:
                await connect(lab.address)
                with trio.move_on_after(0.05):
                    await accept(back)
                    break


async def test_that_an_ejection_is_over_is_told_though_no_flow_asks() -> None:
    dead, endpoint = closed_port(), listening()
    terms = EjectionTerms(failures=2, time=0.2, time_max=0.2)
    async with relaying([dead, endpoint.getsockname()]) as lab:
        await lab.worker.apply(change(judged(dead, endpoint.getsockname(), terms=terms)))
        with structlog.testing.capture_logs() as logs:
            for _ in range(4):
                await pair(lab, endpoint)
            assert conditions(lab)[0] is Condition.EJECTED
            while conditions(lab)[0] is Condition.EJECTED:  # nobody is asked for it
                await trio.sleep(0.002)
        (event,) = [each for each in logs if each["event"] == "endpoint_returned"]
        assert (event["upstream"], event["endpoint"], event["condition"]) == (
            "lab",
            "e0",
            "unknown",
        )


async def test_an_ejection_that_a_reload_no_longer_wants_is_over() -> None:
    dead, endpoint = closed_port(), listening()
    spec = judged(dead, endpoint.getsockname())
    async with relaying([dead, endpoint.getsockname()]) as lab:
        await lab.worker.apply(change(spec))
        for _ in range(4):
            await pair(lab, endpoint)
        assert conditions(lab)[0] is Condition.EJECTED
        with structlog.testing.capture_logs() as logs:
            never = EjectionTerms(failures=0, failure_percent=0)
            await lab.worker.apply(change(replace(spec, ejection=never)))
        assert conditions(lab)[0] is Condition.UNKNOWN
        assert [each["event"] for each in logs] == ["endpoint_returned"]


async def test_of_several_ejections_each_ends_in_its_time() -> None:
    dead = [closed_port() for _ in range(3)]
    endpoint = listening()
    addresses = [*dead, endpoint.getsockname()]
    terms = EjectionTerms(failures=1, time=0.1, time_max=0.1, most_percent=100)
    async with relaying(addresses) as lab:
        await lab.worker.apply(change(judged(*addresses, terms=terms)))
        with structlog.testing.capture_logs() as logs:
            await pair(lab, endpoint)
            while len([each for each in logs if each["event"] == "endpoint_returned"]) < 3:
                await trio.sleep(0.002)
        assert conditions(lab) == [Condition.UNKNOWN] * 4


async def test_an_endpoint_that_resets_before_a_byte_is_ejected_though_it_accepts() -> None:
    bad, good = listening(), listening()
    async with relaying([bad.getsockname(), good.getsockname()]) as lab:
        await lab.worker.apply(change(judged(bad.getsockname(), good.getsockname())))

        async def misbehave() -> None:
            while True:
                reset(await accept(bad))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(misbehave)
            for _ in range(10):
                with suppress(ConnectionResetError):
                    await connect(lab.address)
            while conditions(lab)[0] is not Condition.EJECTED:
                await trio.sleep(0.002)
            nursery.cancel_scope.cancel()
        await pair(lab, good)


async def test_all_are_never_ejected() -> None:
    addresses = [closed_port(), closed_port()]
    async with relaying(addresses) as lab:
        await lab.worker.apply(change(judged(*addresses)))
        for _ in range(8):
            with suppress(ConnectionResetError):
                await is_reset(await connect(lab.address))
        await lab.wait_ended(8)
        assert conditions(lab).count(Condition.EJECTED) == 1


@pytest.mark.parametrize("closes", [False, True])
async def test_streams_of_an_endpoint_that_is_down_are_kept_or_closed(closes: bool) -> None:
    one, two = listening(), listening()
    addresses = [one.getsockname(), two.getsockname()]
    async with relaying(addresses) as lab:
        await lab.worker.apply(change(judged(*addresses, closes=closes)))
        first, accepted = await pair(lab, one)
        second, other = await pair(lab, two)
        await lab.wait_counter(lambda each: each["endpoints"][1]["flows"], 1)
        await down(lab, "e0", addresses[0])
        if closes:
            assert await is_reset(first)
            assert await is_reset(accepted)
            (row,) = await lab.ended()
            assert (row["close_reason"], row["close_side"]) == ("endpoint_down", "endpoint")
        else:
            await send_all(first, b"still here")
            assert await accepted.recv(100) == b"still here"
        await send_all(second, b"hello")
        assert await other.recv(100) == b"hello"


@pytest.mark.parametrize("closes", [False, True])
async def test_flows_are_gone_through_once_though_some_are_left(closes: bool) -> None:
    one, two = listening(), listening()
    addresses = [one.getsockname(), two.getsockname()]
    async with relaying(addresses) as lab:
        await lab.worker.apply(change(judged(*addresses, closes=closes)))
        for endpoint in (one, two):
            await pair(lab, endpoint)
        await lab.wait_counter(lambda each: each["endpoints"][1]["flows"], 1)
        await down(lab, "e0", addresses[0])
        pump = lab.worker._relay.pump
        with trio.fail_after(PATIENCE):
            while pump._again:
                await trio.sleep(0.002)


@pytest.mark.parametrize("closes", [False, True])
async def test_the_next_datagram_goes_to_an_endpoint_that_is_up(closes: bool) -> None:
    one, two = datagram_socket(), datagram_socket()
    addresses = [one.getsockname(), two.getsockname()]
    async with relaying(addresses, UDP) as lab:
        await lab.worker.apply(change(judged(*addresses, closes=closes)))
        client = await client_of(lab)
        source = await exchange(client, one, b"hello")
        await down(lab, "e0", addresses[0])
        data = b""
        while data != b"again":
            await client.send(b"again")
            with trio.move_on_after(0.05):
                data, _ = await two.recvfrom(100)
        rows = await lab.live()
        if closes:
            assert len(rows) == 1
            assert (await lab.ended())[0]["close_reason"] == "endpoint_down"
        else:
            assert len(rows) == 2  # late answers of the first still come back
            await one.sendto(b"late", source)
            assert await client.recv(100) == b"late"


async def test_a_sender_who_never_hears_anything_is_not_left_to_a_dead_endpoint() -> None:
    """Refused by ICMP, the endpoint is ejected; the sender's next datagram goes elsewhere."""
    with datagram_socket() as gone:
        dead = gone.getsockname()
    alive = datagram_socket()
    async with relaying([dead, alive.getsockname()], UDP) as lab:
        await lab.worker.apply(change(judged(dead, alive.getsockname())))
        client = await client_of(lab)
        data = b""
        while data != b"log":
            await client.send(b"log")
            with trio.move_on_after(0.05):
                data, _ = await alive.recvfrom(100)
        assert conditions(lab)[0] is Condition.EJECTED


async def test_datagram_flows_stay_where_nobody_else_is_up() -> None:
    one = datagram_socket()
    async with relaying([one.getsockname()], UDP) as lab:
        await lab.worker.apply(change(judged(one.getsockname())))
        client = await client_of(lab)
        await exchange(client, one, b"hello")
        await down(lab, "e0", one.getsockname())
        for _ in range(3):  # the flows are seen to in a round of their own
            await exchange(client, one, b"again")
        assert len(await lab.live()) == 1


async def test_flows_without_an_answer_eject_one_that_has_answered_before() -> None:
    one, two = datagram_socket(), datagram_socket()
    addresses = [one.getsockname(), two.getsockname()]
    limits = FlowLimits(unreplied=0.1)
    async with relaying(addresses, UDP, limits=limits) as lab:
        await lab.worker.apply(change(judged(*addresses)))
        await exchange(await client_of(lab), one, b"hello")
        for _ in range(5):
            await (await client_of(lab)).send(b"hello?")
        while conditions(lab) != [Condition.EJECTED, Condition.UNKNOWN]:
            await trio.sleep(0.005)


async def test_live_flows_are_closed_in_slices_all_of_them() -> None:
    one = listening()
    address = one.getsockname()
    async with relaying([address]) as lab:
        await lab.worker.apply(change(judged(address, closes=True)))
        for _ in range(250):
            await pair(lab, one)
        await lab.wait_counter(lambda each: each["endpoints"][0]["flows"], 250)
        await down(lab, "e0", address)
        rows = await lab.wait_ended(250)
        assert {row["close_reason"] for row in rows} == {"endpoint_down"}


async def test_datagrams_are_not_left_to_an_endpoint_that_may_not_be_ejected() -> None:
    """Of three no more than one may be, and two are dead; the third serves all."""
    endpoint = datagram_socket()
    addresses = [closed_port(), closed_port(), endpoint.getsockname()]
    async with relaying(addresses, transport=UDP) as lab:
        spec = replace(judged(*addresses), balance=Balance.FIRST)
        await lab.worker.apply(change(spec))
        client = await client_of(lab)
        with trio.move_on_after(PATIENCE):
            while not await heard(endpoint):
                await client.send(b"is anybody there?")
        for _ in range(4):
            await exchange(await client_of(lab), endpoint, b"here")
        assert conditions(lab) == [Condition.EJECTED, Condition.UNKNOWN, Condition.UNKNOWN]


async def heard(endpoint: SocketType) -> bool:
    """Whether a datagram comes within a moment."""
    with trio.move_on_after(0.02):
        return bool(await endpoint.recv(100))
    return False
