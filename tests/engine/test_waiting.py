"""Clients that wait at a full listener, with real sockets: who enters, who is refused, who goes."""

from __future__ import annotations

from socket import SHUT_WR

import pytest
import trio

from proxy.core.admission import AdmissionLimits
from proxy.core.query import FlowQuery
from proxy.core.rate import Rate
from proxy.core.waiting import WaitLimits
from proxy.engine.specs import EVERYTHING, DrainOrder, DrainTarget
from tests.engine.lab import (
    PACE,
    Lab,
    accept,
    connect,
    is_refused,
    is_reset,
    listening,
    pair,
    relaying,
    reset,
)
from tests.engine.test_admission import ONE, OTHER, SELDOM, become, counts, gate_of

ONE_FLOW = AdmissionLimits(flows=1)
LONG = WaitLimits(time=3600.0, flows=10)


async def number(lab: Lab, what: str) -> int:
    (row,) = (await lab.counters())["listeners"]
    value: int = row[what]  # type: ignore[literal-required]
    return value


async def wait_waiting(lab: Lab, count: int) -> None:
    while await number(lab, "waiting") != count:
        await trio.sleep(0.002)


def used_files(lab: Lab) -> int:
    return lab.worker._relay.files.used


async def test_who_finds_no_place_waits_and_what_it_sent_is_served_first() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        first, _ = await pair(lab, endpoint)
        second = await connect(lab.address)
        await second.send(b"early")
        await wait_waiting(lab, 1)
        assert used_files(lab) == 3
        reset(first)
        accepted = await accept(endpoint)
        assert await accepted.recv(100) == b"early"
        await accepted.send(b"answer")
        assert await second.recv(100) == b"answer"
        assert await counts(lab) == await counts(lab, "hits") == {}
        assert await number(lab, "waited") == 1
        reset(second)
        await lab.wait_ended(2)
        assert (used_files(lab), gate_of(lab).flows) == (0, 0)


async def test_who_came_first_enters_first() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        last, _ = await pair(lab, endpoint)
        clients = []
        for n in range(3):
            clients.append(await connect(lab.address))
            await clients[n].send(b"%d" % n)
            await wait_waiting(lab, n + 1)
        for n in range(3):
            reset(last)
            accepted = await accept(endpoint)
            assert await accepted.recv(100) == b"%d" % n
            last = clients[n]


async def test_a_source_at_its_ceiling_holds_up_nobody_else() -> None:
    endpoint = listening()
    limits = AdmissionLimits(source_flows=1)
    async with relaying([endpoint.getsockname()], admission=limits, waiting=LONG) as lab:
        await connect(lab.address, ONE)
        await accept(endpoint)
        await connect(lab.address, ONE)
        await wait_waiting(lab, 1)
        await connect(lab.address, OTHER)
        await accept(endpoint)
        assert await number(lab, "waiting") == 1


@pytest.mark.parametrize("rate", ["flow_rate", "source_rate"])
async def test_a_token_lets_the_next_one_in(rate: str) -> None:
    endpoint = listening()
    limits = AdmissionLimits(**{rate: Rate(20.0, 1.0)})  # type: ignore[arg-type]
    async with relaying([endpoint.getsockname()], admission=limits, waiting=LONG) as lab:
        for _ in range(4):
            await connect(lab.address)
        for _ in range(4):
            await accept(endpoint)
        assert await counts(lab) == {}


async def test_whose_time_is_over_is_refused_by_the_limit() -> None:
    endpoint = listening()
    brief = WaitLimits(time=0.01, flows=10)
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=brief) as lab:
        await pair(lab, endpoint)
        assert await is_refused(lab.address)
        assert await counts(lab) == await counts(lab, "hits") == {"listener_flows": 1}
        assert await number(lab, "waiting") == 0
        assert used_files(lab) == 2


async def test_when_as_many_wait_as_may_the_next_is_refused() -> None:
    endpoint = listening()
    two = WaitLimits(time=3600.0, flows=2)
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=two) as lab:
        await pair(lab, endpoint)
        for _ in range(2):
            await connect(lab.address)
        assert await is_refused(lab.address)
        assert await counts(lab) == {"listener_flows": 1}
        assert await number(lab, "waiting") == 2


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_who_goes_away_is_forgotten(how: str) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        client = await connect(lab.address)
        await wait_waiting(lab, 1)
        reset(client) if how == "reset" else client.close()
        await wait_waiting(lab, 0)
        assert await number(lab, "abandoned") == 1
        assert await counts(lab) == {}
        assert used_files(lab) == 2


async def test_who_has_spoken_and_ended_waits_for_its_answer() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        first, _ = await pair(lab, endpoint)
        client = await connect(lab.address)
        await client.send(b"question")
        client.shutdown(SHUT_WR)
        await wait_waiting(lab, 1)
        reset(first)
        accepted = await accept(endpoint)
        assert await accepted.recv(100) == b"question"
        assert await accepted.recv(100) == b""
        await accepted.send(b"answer")
        assert await client.recv(100) == b"answer"


async def test_a_reload_with_more_places_lets_them_in() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        for _ in range(2):
            await connect(lab.address)
        await wait_waiting(lab, 2)
        await become(lab, endpoint, admission=AdmissionLimits(flows=2), waiting=LONG)
        await accept(endpoint)
        assert await number(lab, "waiting") == 1
        await become(lab, endpoint, admission=AdmissionLimits(flows=9, source_flows=9))
        await accept(endpoint)
        assert await number(lab, "waiting") == 0
        assert await counts(lab) == {}


@pytest.mark.parametrize("limits", [None, WaitLimits(time=0.0, flows=10)])
async def test_a_reload_to_refusal_or_less_time_refuses_who_waits(
    limits: WaitLimits | None,
) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        client = await connect(lab.address)
        await wait_waiting(lab, 1)
        await become(lab, endpoint, admission=ONE_FLOW, waiting=limits)
        assert await is_reset(client)
        assert await counts(lab) == {"listener_flows": 1}
        assert await number(lab, "waiting") == 0


@pytest.mark.parametrize("target", [DrainTarget(listener="lab"), EVERYTHING])
async def test_a_drain_refuses_who_waits(target: DrainTarget) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        client = await connect(lab.address)
        await wait_waiting(lab, 1)
        await lab.worker.drain(DrainOrder(target, PACE))
        assert await is_reset(client)
        assert await counts(lab) == {"draining": 1}
        assert used_files(lab) == 2


async def test_a_stop_leaves_nobody_behind() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        client = await connect(lab.address)
        await wait_waiting(lab, 1)
        lab.worker.stop()
        assert await is_reset(client)
        assert (used_files(lab), await number(lab, "waiting")) == (0, 0)


async def test_a_place_that_a_kill_makes_is_taken() -> None:
    endpoint = listening()
    limits = AdmissionLimits(source_flows=1, flow_rate=Rate(SELDOM, 2))
    async with relaying([endpoint.getsockname()], admission=limits, waiting=LONG) as lab:
        await pair(lab, endpoint)
        for _ in range(2):
            await connect(lab.address)
        await wait_waiting(lab, 2)
        assert await lab.worker.kill(FlowQuery()) == 1
        await accept(endpoint)
        assert await number(lab, "waiting") == 1
