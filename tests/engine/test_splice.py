"""Bulk goes through pipes: the same bytes, the same counters, and no pipe is lost."""

from __future__ import annotations

import os
from socket import SHUT_WR, SO_RCVBUF, SOL_SOCKET

import pytest
import trio
from trio.socket import SocketType

from proxy.core.flow import State
from proxy.core.query import FlowQuery
from proxy.engine import leg
from proxy.engine.splice import FILES_PER_PIPE, KEPT, Pipe, PipePool
from proxy.engine.stream import StreamFlow
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
OWED = 40_000


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


async def test_a_reset_that_the_pipe_meets_first_is_not_a_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client resets between a fill and a drain, and the endpoint is still owed bytes.

    So the flow is closing, and has no client's socket any more, when the drain returns.
    """
    monkeypatch.setattr(leg, "READS_PER_TURN", 1)
    endpoint = listening()
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)  # what it is sent stays in our queue
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, BULK[:OWED])
        await lab.wait_counter(lambda each: each["listeners"][0]["original"]["sent"], OWED)
        (flow,) = lab.worker._relay.table
        drain = Pipe.drain

        def meet_reset(pipe: Pipe, fd: int) -> int:
            if client.fileno() >= 0:
                assert isinstance(flow, StreamFlow)
                assert not flow.original.writable_watched, "else nothing is shown here"
                reset(client)
            return drain(pipe, fd)

        monkeypatch.setattr(Pipe, "drain", meet_reset)
        while client.fileno() >= 0:
            await accepted.send(BULK[:OWED])
        while flow.state is not State.CLOSING:
            await trio.sleep(0.001)
        assert await receive_exactly(accepted, OWED) == BULK[:OWED]
        assert await is_reset(accepted)
        (row,) = await lab.wait_ended()
        assert (row["close_reason"], row["close_side"]) == ("client_reset", "client")
        counters = (await lab.counters())["listeners"][0]
        assert counters["original"]["buffered"] == counters["reply"]["buffered"] == 0
