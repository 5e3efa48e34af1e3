"""Flows that would stay in their process say so before it leaves for another."""

from __future__ import annotations

import json

import pytest
from trio.socket import SocketType

from proxy.core.address import Transport
from proxy.core.query import FlowQuery
from proxy.core.survive import Survive
from proxy.engine.datagram_options import DatagramOptions
from proxy.engine.specs import DrainOrder, DrainTarget
from tests.engine.lab import PACE, Lab, change, datagram_socket, listening, pair, relaying


async def stays(lab: Lab, *, recent: bool = False) -> list[str | None]:
    """What the rows say, which are asked for in two ways."""
    query = FlowQuery(recent=recent)
    rows = [row["stays"] for row in (await lab.worker.flows(query))["rows"]]
    ids = (await lab.worker.flow_ids(query))["ids"]
    written = await lab.worker.flow_rows(ids, recent=recent)
    assert [None if text is None else json.loads(text)["stays"] for text in written] == rows
    return rows


async def open_datagrams(lab: Lab, endpoint: SocketType) -> None:
    client = datagram_socket()
    await client.sendto(b"1", lab.address)
    await endpoint.recvfrom(10)


@pytest.mark.parametrize(
    ("survive", "said"),
    [(Survive.RESTART, None), (Survive.CRASH, None), (Survive.OFF, "survive")],
)
async def test_a_stream_goes_unless_its_listener_says_off(
    survive: Survive, said: str | None
) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], survive=survive) as lab:
        await pair(lab, endpoint)
        assert await stays(lab) == [said]


async def test_flows_of_a_listener_with_groups_stay() -> None:
    endpoint = datagram_socket()
    options = DatagramOptions(multicast=True)
    async with relaying([endpoint.getsockname()], Transport.UDP, datagrams=options) as lab:
        await open_datagrams(lab, endpoint)
        assert await stays(lab) == ["multicast"]


async def test_datagrams_of_a_drained_listener_stay_and_its_streams_go() -> None:
    one, other = datagram_socket(), listening()
    order = DrainOrder(DrainTarget(listener="lab"), PACE)
    async with relaying([one.getsockname()], Transport.UDP) as lab:
        await open_datagrams(lab, one)
        assert await stays(lab) == [None]
        await lab.worker.drain(order)
        assert await stays(lab) == ["left"]
    async with relaying([other.getsockname()]) as lab:
        await pair(lab, other)
        await lab.worker.drain(order)
        assert await stays(lab) == [None]


async def test_flows_of_a_listener_that_is_no_more_stay_until_they_end() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, _ = await pair(lab, endpoint)
        upstreams = [route.spec for route in lab.worker._roster.upstreams._routes.values()]
        await lab.worker.apply(change(*upstreams, closed=("lab",)))
        assert await stays(lab) == ["left"]
        await lab.worker.kill(FlowQuery())
        assert await stays(lab, recent=True) == [None]
        client.close()
