"""Whoever shares a bandwidth is let go of once, however the flow ends: no source keeps a member.

A leak would show nowhere else: a source that seems to have a flow is kept for ever.
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.ceiling import ShapeRates, shaping_rate
from proxy.core.kept import Owner
from proxy.core.query import FlowQuery
from proxy.engine.limited import LimitedFlow
from proxy.engine.specs import BandwidthLimits
from proxy.engine.stream import StreamFlow
from tests.engine.lab import Lab, datagram_socket, listening, pair, relaying
from tests.engine.test_admission import _ways, become
from tests.engine.test_datagram import client_of, exchange

FLOWS = 3

MOVED = 1 << 16
"""Bytes; more than what a flow may move before it has a share, at ``SLOWER``."""

FAST, SLOWER = 1e9, 1e6


def limited(per_second: float) -> BandwidthLimits:
    rate = shaping_rate(per_second)
    rates = ShapeRates(listener=rate, source=rate, flow=rate)
    return BandwidthLimits(rates, rates)


def sources_of(lab: Lab) -> list[Owner]:
    """Of each direction of each flow, the source that it is a member of."""
    sources: list[Owner] = []
    for flow in lab.worker._relay.table:
        if isinstance(flow, LimitedFlow):
            assert flow.allowance is not None
            sources += [flow.allowance.original.source, flow.allowance.reply.source]
        else:
            assert isinstance(flow, StreamFlow)
            for leg in (flow.original, flow.reply):
                sources.append(leg.source if leg.throttle is not None else share_of(leg.meter))
    return sources


def share_of(meter: Any) -> Owner:
    source: Owner = meter.share.source
    return source


@pytest.mark.parametrize("way", ["kill", "drain", "client", "endpoint", "both"])
@pytest.mark.parametrize("per_second", [FAST, SLOWER])
async def test_of_a_stream_that_ends(way: str, per_second: float) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], bandwidth=limited(per_second)) as lab:
        ends = [await pair(lab, endpoint) for _ in range(FLOWS)]
        client, accepted = ends[0]
        if per_second == SLOWER:
            await client.send(bytes(MOVED))
            taken = 0
            while taken < MOVED:
                taken += len(await accepted.recv(MOVED))
            flows = list(lab.worker._relay.table)
            assert any(isinstance(flow, StreamFlow) and flow.original.meter for flow in flows)
        sources = sources_of(lab)
        assert [source.members for source in sources] == 2 * FLOWS * [FLOWS]
        for client, accepted in ends:
            await _ways(lab)[way](client, accepted)
        await lab.wait_ended(FLOWS)
        assert [source.members for source in sources] == 2 * FLOWS * [0]


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.UDP])
async def test_of_a_flow_whose_ceilings_a_reload_changes(transport: Transport) -> None:
    is_stream = transport is Transport.TCP
    endpoint = listening() if is_stream else datagram_socket()
    address = [endpoint.getsockname()]
    async with relaying(address, transport, bandwidth=limited(FAST)) as lab:
        if is_stream:
            ends: list[Any] = [await pair(lab, endpoint) for _ in range(FLOWS)]
        else:
            ends = [await client_of(lab) for _ in range(FLOWS)]
            for client in ends:
                await exchange(client, endpoint, b"x")
        before = sources_of(lab)
        await become(lab, endpoint, bandwidth=limited(SLOWER))
        between = sources_of(lab)
        assert [source.members for source in between] == 2 * FLOWS * [FLOWS]
        await lab.worker.kill(FlowQuery())
        await lab.wait_ended(FLOWS)
        assert [source.members for source in before + between] == 4 * FLOWS * [0]


async def test_of_a_stream_that_is_only_watched_from_a_reload_on() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], bandwidth=limited(FAST)) as lab:
        ends = [await pair(lab, endpoint) for _ in range(FLOWS)]
        sources = sources_of(lab)
        dry = AdmissionLimits(dry_run=True)
        await become(lab, endpoint, admission=dry, bandwidth=limited(FAST))
        assert len(ends) == FLOWS
        assert [source.members for source in sources] == 2 * FLOWS * [0]


async def test_of_a_stream_that_is_limited_no_more() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], bandwidth=limited(FAST)) as lab:
        ends = [await pair(lab, endpoint) for _ in range(FLOWS)]
        sources = sources_of(lab)
        await become(lab, endpoint)
        assert len(ends) == FLOWS
        for client, accepted in ends:
            client.close()
            accepted.close()
        await lab.wait_ended(FLOWS)
        assert [source.members for source in sources] == 2 * FLOWS * [0]


async def test_of_datagrams_that_are_killed() -> None:
    endpoint = datagram_socket()
    address = [endpoint.getsockname()]
    async with relaying(address, Transport.UDP, bandwidth=limited(FAST)) as lab:
        for _ in range(FLOWS):
            await exchange(await client_of(lab), endpoint, b"x")
        sources = sources_of(lab)
        assert [source.members for source in sources] == 2 * FLOWS * [FLOWS]
        await lab.worker.kill(FlowQuery())
        await lab.wait_ended(FLOWS)
        assert [source.members for source in sources] == 2 * FLOWS * [0]
