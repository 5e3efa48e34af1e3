"""Bulk goes through pipes: the same bytes, the same counters, and no pipe is lost."""

from __future__ import annotations

import os
from socket import SHUT_WR

import pytest
import trio
from trio.socket import SocketType

from proxy.core.query import FlowQuery
from proxy.engine import leg
from proxy.engine.splice import FILES_PER_PIPE, KEPT, PipePool
from tests.engine.lab import (
    Lab,
    is_reset,
    listening,
    pair,
    receive_all,
    receive_exactly,
    relaying,
    reset,
    send_all,
)

BULK = os.urandom(32 << 20)


@pytest.fixture(autouse=True)
def any_full_turn_is_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe after one turn of full receives, however the kernel cuts the stream."""
    monkeypatch.setattr(leg, "LARGEST_CHUNK", leg.SMALLEST_CHUNK)


def pipes_out(lab: Lab) -> int:
    """Pipes on loan now."""
    relay = lab.worker._relay
    ends = [end for flow in relay.table for end in (flow.original, flow.reply)]
    return sum(getattr(end, "pipe", None) is not None for end in ends)


async def start_bulk(
    nursery: trio.Nursery, lab: Lab, sender: SocketType, receiver: SocketType
) -> bytes:
    """Send; read until a pipe is used, and no more until it is full; returns what was read."""

    async def send() -> None:
        try:
            await send_all(sender, BULK)
        except (OSError, trio.ClosedResourceError):
            return

    nursery.start_soon(send)
    read = b""
    while not pipes_out(lab):
        read += await receiver.recv(1 << 16)
    while not await buffered(lab):
        await trio.sleep(0.002)
    return read


async def buffered(lab: Lab) -> int:
    return (await lab.counters())["listeners"][0]["original"]["buffered"]


async def test_bulk_goes_through_a_pipe_and_arrives_whole() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:
        client, accepted = await pair(lab, endpoint)
        read = await start_bulk(nursery, lab, client, accepted)
        assert read + await receive_exactly(accepted, len(BULK) - len(read)) == BULK
        client.shutdown(SHUT_WR)
        assert await receive_all(accepted) == b""
        counters = (await lab.counters())["listeners"][0]["original"]
        assert counters["received"] == counters["sent"] == len(BULK)


async def test_bulk_gets_a_pipe_after_several_turns_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leg, "LARGEST_CHUNK", leg.SMALLEST_CHUNK << (leg.READS_PER_TURN + 1))
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:
        client, accepted = await pair(lab, endpoint)
        read = await start_bulk(nursery, lab, client, accepted)
        assert read + await receive_exactly(accepted, len(BULK) - len(read)) == BULK


async def test_without_a_free_pipe_bulk_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PipePool, "take", lambda _: None)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:
        client, accepted = await pair(lab, endpoint)
        nursery.start_soon(send_all, client, BULK)
        assert await receive_exactly(accepted, len(BULK)) == BULK
        assert pipes_out(lab) == 0


@pytest.mark.parametrize("who", ["client", "endpoint", "proxy"])
async def test_an_end_with_a_full_pipe_keeps_the_books(who: str) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:
        client, accepted = await pair(lab, endpoint)
        await start_bulk(nursery, lab, client, accepted)
        if who == "proxy":
            await lab.worker.kill(FlowQuery())
        else:
            reset(client if who == "client" else accepted)
        if who != "endpoint":
            nursery.start_soon(is_reset, accepted)
        await lab.wait_ended()
        counters = (await lab.counters())["listeners"][0]["original"]
        assert counters["buffered"] == 0
        assert counters["sent"] <= counters["received"]
        relay = lab.worker._relay
        assert relay.files.used <= FILES_PER_PIPE * KEPT
        nursery.cancel_scope.cancel()


async def test_pipes_come_back_when_the_flows_are_quiet() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:
        client, accepted = await pair(lab, endpoint)
        read = await start_bulk(nursery, lab, client, accepted)
        await receive_exactly(accepted, len(BULK) - len(read))
        await send_all(client, b"small talk")
        assert await receive_exactly(accepted, 10) == b"small talk"
        assert pipes_out(lab) == 0
