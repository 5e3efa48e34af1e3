"""What the kernel tells of flows, and who makes them slow: real sockets, real culprits."""

from __future__ import annotations

import ctypes
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.core.query import FlowQuery, FlowRow
from proxy.core.sample import PATIENCE, Culprit, TcpInfo, unpack
from proxy.core.unix import UnixAddress
from proxy.engine.sampler import INFO, ROUND, TICK, Sampler
from proxy.engine.stream import StreamFlow
from tests.engine.lab import (
    Lab,
    accept,
    connect,
    listening,
    pair,
    receive_exactly,
    relaying,
    send_all,
)
from tests.engine.test_throttle import Sink, both, pour


@asynccontextmanager
async def flow_of(**parts: Any) -> AsyncIterator[tuple[Lab, SocketType, SocketType]]:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], **parts) as lab:
        client, server = await pair(lab, endpoint)
        yield lab, client, server


JIFFY = 0.01
"""Seconds; the tick of the kernel's clock is nowhere longer."""


async def look(lab: Lab, id: int = 1) -> FlowRow:
    """The row of a flow, of which whoever asks for one gets the latest."""
    return (await lab.worker.flows(FlowQuery(id=id)))["rows"][0]


async def converse(client: SocketType, server: SocketType, think: float) -> None:
    """A question and an answer, again and again; the client thinks for some ticks of the kernel."""
    while True:
        await trio.sleep(3 * JIFFY)
        await send_all(client, b"question")
        await receive_exactly(server, 8)
        await trio.sleep(think)
        await send_all(server, b"answer")
        await receive_exactly(client, 6)


async def test_both_legs_are_told() -> None:
    async with flow_of() as (lab, client, server):
        await send_all(client, b"question")
        await receive_exactly(server, 8)
        await send_all(server, b"answer")
        await receive_exactly(client, 6)
        legs = (await look(lab))["legs"]
        assert legs is not None
        for leg in (legs["client"], legs["endpoint"]):
            assert leg is not None
            assert 0 < leg["rtt"] < 1
            assert leg["min_rtt"] is not None
            assert 0 < leg["min_rtt"] <= leg["rtt"] * 1.5
            assert leg["retransmits"] == 0
            assert leg["delivery_rate"] > 0
        (row,) = (await lab.counters())["listeners"]
        for side in ("client", "endpoint"):
            assert sum(row["samples"]["rtt"][side]["counts"]) == row["samples"]["taken"] > 0


FIELDS = [
    *(
        (name, ctypes.c_uint8)
        for name in ("state", "ca_state", "retransmits", "probes", "backoff", "options", "x", "y")
    ),
    *(
        (name, ctypes.c_uint32)
        for name in (
            *("rto", "ato", "snd_mss", "rcv_mss", "unacked", "sacked", "lost", "retrans"),
            *("fackets", "last_data_sent", "last_ack_sent", "last_data_recv", "last_ack_recv"),
            *("pmtu", "rcv_ssthresh", "rtt", "rttvar", "snd_ssthresh", "snd_cwnd", "advmss"),
            *("reordering", "rcv_rtt", "rcv_space", "total_retrans"),
        )
    ),
    *(
        (name, ctypes.c_uint64)
        for name in ("pacing_rate", "max_pacing_rate", "bytes_acked", "bytes_received")
    ),
    *(
        (name, ctypes.c_uint32)
        for name in (
            *("segs_out", "segs_in", "notsent_bytes", "min_rtt", "data_segs_in", "data_segs_out"),
        )
    ),
    *(
        (name, ctypes.c_uint64)
        for name in ("delivery_rate", "busy_time", "rwnd_limited", "sndbuf_limited")
    ),
]


class KernelInfo(ctypes.Structure):
    """struct tcp_info of linux/tcp.h, by its fields."""

    _fields_ = FIELDS


async def test_every_field_is_read_from_its_place() -> None:
    raw = bytes(random.Random(7).randrange(256) for _ in range(ctypes.sizeof(KernelInfo)))
    named, read = KernelInfo.from_buffer_copy(raw), TcpInfo._make(INFO.unpack(raw))
    assert read == TcpInfo(
        named.unacked,
        named.last_data_sent,
        named.last_data_recv,
        named.rtt,
        named.total_retrans,
        named.min_rtt,
        named.delivery_rate,
        named.busy_time,
        named.rwnd_limited,
        named.sndbuf_limited,
    )


async def slow_endpoint(client: SocketType, server: SocketType) -> None:
    await pour(client)  # and nobody reads


async def slow_client(client: SocketType, server: SocketType) -> None:
    await pour(server)


async def thinking_endpoint(client: SocketType, server: SocketType) -> None:
    await converse(client, server, think=0.2)


@pytest.mark.parametrize(
    ("peers", "culprit"),
    [
        (slow_endpoint, Culprit.ENDPOINT),
        (slow_client, Culprit.CLIENT),
        (thinking_endpoint, Culprit.ENDPOINT),
    ],
)
async def test_a_slow_peer_is_named(
    peers: Callable[[SocketType, SocketType], Awaitable[None]], culprit: Culprit
) -> None:
    async with flow_of() as (lab, client, server), trio.open_nursery() as nursery:
        nursery.start_soon(peers, client, server)
        await wait_slowed(lab, culprit)
        (row,) = (await lab.counters())["listeners"]
        waits = row["samples"]["waits"]
        assert max(waits, key=lambda who: waits[who]) in (culprit, "nobody")
        nursery.cancel_scope.cancel()


async def test_a_limit_is_named() -> None:
    limits = both(flow=200_000)
    async with flow_of(bandwidth=limits) as (lab, client, server), trio.open_nursery() as nursery:
        nursery.start_soon(pour, client)
        nursery.start_soon(Sink(server).run)
        await wait_slowed(lab, Culprit.LIMIT)
        stalled = (await look(lab))["stalled"]
        assert stalled is not None
        assert stalled["original"]["held"] > stalled["original"]["blocked"]
        nursery.cancel_scope.cancel()


async def wait_slowed(lab: Lab, culprit: Culprit) -> None:
    """Wait until a flow, which is looked at ever again, has this verdict for a while."""
    for _ in range(5):
        while (await look(lab))["slowed_by"] != culprit:
            await trio.sleep(0.05)
        await trio.sleep(0.05)


async def test_a_stall_is_told_after_the_end_as_well() -> None:
    async with flow_of() as (lab, client, _server), trio.open_nursery() as nursery:
        nursery.start_soon(pour, client)
        while not (row := await look(lab))["stalled"] or not row["stalled"]["original"]["blocked"]:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
        await lab.worker.kill(FlowQuery())
        (row,) = await lab.ended()
        assert row["stalled"] is not None
        assert row["stalled"]["original"]["blocked"] > 0
        assert row["stalled"]["reply"] == {"blocked": 0.0, "held": 0.0}
        assert row["legs"] is not None


async def test_a_flow_that_has_long_been_still_is_passed_over() -> None:
    async with flow_of() as (lab, client, server):
        await send_all(client, b"question")
        await receive_exactly(server, 8)
        sampler, flow = lab.worker._sampler, lab.worker._relay.table.get(1)
        assert isinstance(flow, StreamFlow)
        while sampler.look(flow, flow.active + PATIENCE):  # until the endpoint has acknowledged
            await trio.sleep(0.01)
        assert flow.sample is not None
        assert unpack(flow.sample).when == flow.active + PATIENCE
        assert not sampler.look(flow, flow.active + 2 * PATIENCE)
        await send_all(client, b"question")
        await receive_exactly(server, 8)
        assert sampler.look(flow, monotonic())


def look_around(sampler: Sampler, now: float) -> None:
    """Do what a tick allows."""
    sampler.earn()
    while sampler.look_on(now):
        pass


async def test_each_is_sampled_in_turn_and_no_more_than_allowed() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        peers = [await pair(lab, endpoint) for _ in range(10)]
        sampler = Sampler(lab.worker._relay)
        sampler.rate = 4 / TICK
        seen: list[int] = []
        sampler.look = lambda flow, _: not seen.append(flow.id)  # type: ignore[method-assign]
        now = 1000.0
        for tick in range(3):
            look_around(sampler, now + tick * TICK)
            assert len(seen) == min(10, 4 * (tick + 1))
            if len(seen) < 10:
                assert sampler.pause(now + tick * TICK) == TICK
        look_around(sampler, now + 3 * TICK)
        assert sampler.pause(now + 3 * TICK) == pytest.approx(ROUND - 3 * TICK)
        assert seen == sorted(row["id"] for row in await lab.live()), "a round begins once a second"
        peers.append(await pair(lab, endpoint))
        for tick in range(4):
            look_around(sampler, now + ROUND + tick * TICK)
        assert seen[10:] == [*seen[:10], 11]
        assert all(one < other for one, other in pairwise(seen[10:]))
        assert len(peers) == 11


async def test_flows_of_a_unix_socket_have_no_tcp_info(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with trio.socket.socket(trio.socket.AF_UNIX) as server:
        await server.bind(path)
        server.listen()
        async with relaying([UnixAddress(path)]) as lab:
            client = await connect(lab.address)
            peer = await accept(server)
            await send_all(client, b"question")
            await receive_exactly(peer, 8)
            legs = (await look(lab))["legs"]
            assert legs is not None
            assert legs["client"] is not None
            assert legs["endpoint"] is None
