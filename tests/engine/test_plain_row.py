"""Which flows have the plain row, and that it is their row."""

from __future__ import annotations

import json

import pytest
from trio.socket import SHUT_WR

from proxy.core.query import flow_row
from proxy.core.row_json import row_json
from proxy.core.stalls import Stalls
from proxy.core.survive import Stay
from proxy.engine.identified import IdentifiedFlow
from proxy.engine.routed import RoutedFlow
from proxy.engine.stream import StreamFlow
from proxy.engine.survival.surviving import Surviving, SurvivingIdentified
from proxy.engine.unix_flow import UnixFlow
from tests.engine.lab import connect, listening, relaying


async def ended_flow() -> StreamFlow:
    """A flow that has moved bytes both ways and ended in order."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client = await connect(lab.address)
        accepted, _ = await endpoint.accept()
        await client.send(b"question")
        assert await accepted.recv(99) == b"question"
        await accepted.send(b"it")
        accepted.shutdown(SHUT_WR)
        assert await client.recv(99) == b"it"
        client.close()
        accepted.close()
        await lab.wait_ended()
        (flow,) = lab.worker._relay.table.recent
    assert isinstance(flow, StreamFlow)
    flow.sample = None
    return flow


async def test_most_flows_are_plain() -> None:
    flow = await ended_flow()

    row = json.loads(row_json(flow, 0.0, "{}"))

    assert flow.is_plain
    assert row == flow_row(flow, 0.0, {})
    assert (row["original"]["bytes"], row["reply"]["bytes"]) == (8, 2)


async def test_a_flow_that_leaves_a_will_is_as_plain() -> None:
    flow = await ended_flow()
    flow.__class__ = Surviving

    row = json.loads(row_json(flow, 0.0, "{}"))

    assert flow.is_plain
    assert row == flow_row(flow, 0.0, {})


@pytest.mark.parametrize("kind", [IdentifiedFlow, RoutedFlow, UnixFlow, SurvivingIdentified])
async def test_of_whom_more_is_told_is_not_plain(kind: type[StreamFlow]) -> None:
    assert kind.tells_more


@pytest.mark.parametrize("way", ["original", "reply"])
async def test_what_was_unsent_is_told(way: str) -> None:
    flow = await ended_flow()
    getattr(flow, way).unsent = 7

    row = json.loads(row_json(flow, 0.0, "{}"))

    assert not flow.is_plain
    assert row["unsent"][way] == 7


@pytest.mark.parametrize("way", ["original", "reply"])
async def test_who_stood_still_is_told(way: str) -> None:
    flow = await ended_flow()
    stalls = Stalls()
    stalls.begin(flow.opened, by_limit=True)
    getattr(flow, way).stalls = stalls

    assert flow.insight
    assert json.loads(row_json(flow, 0.0, "{}")) == flow_row(flow, 0.0, {})


async def test_who_lives_is_as_plain_and_what_the_kernel_told_is_in_it() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client = await connect(lab.address)
        accepted, _ = await endpoint.accept()
        await client.send(b"question")
        assert await accepted.recv(99) == b"question"
        (flow,) = lab.worker._relay.table
        assert isinstance(flow, StreamFlow)
        lab.worker._sampler.look(flow, flow.active)

        row = json.loads(row_json(flow, 0.0, "{}", Stay.LEFT))

        assert flow.is_plain
        assert row == flow_row(flow, 0.0, {}, Stay.LEFT)
        assert row["unsent"] is row["closed"] is None
        assert row["legs"]["client"]["rtt"] > 0
        client.close()
        accepted.close()


async def test_who_is_known_better_is_not_plain() -> None:
    class KnownFlow(StreamFlow):
        """A flow of which more is known."""

        __slots__ = ()
        tells_more = True

    flow = await ended_flow()
    flow.__class__ = KnownFlow
    assert not flow.is_plain
