"""The cause of an end: who moved first, by what, and what was lost; with real sockets."""

from __future__ import annotations

from contextlib import suppress
from socket import IPPROTO_TCP, TCP_USER_TIMEOUT

import pytest
import trio
from trio.socket import SocketType

from proxy.core.expiry import FlowLimits
from proxy.core.query import FlowQuery, FlowRow
from proxy.engine.leg import StreamLeg
from proxy.engine.stream import StreamFlow
from proxy.engine.tcp import unsent
from tests.engine.lab import (
    Lab,
    listening,
    pair,
    receive_all,
    relaying,
    reset,
    send_all,
)
from tests.engine.test_throttle import pour


async def sums(lab: Lab) -> dict[str, float]:
    (row,) = (await lab.counters())["listeners"]
    return {
        **row["first"],
        "half_closed": row["half_closed"],
        "original": row["original"]["unsent"],
        "reply": row["reply"]["unsent"],
    }


def end_of(row: FlowRow) -> tuple[str | None, str | None, str | None]:
    return row["close_reason"], row["close_side"], row["close_kind"]


@pytest.mark.parametrize("first", ["client", "endpoint"])
async def test_an_ordinary_end_loses_nothing(first: str) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        sides = await pair(lab, endpoint)
        one, other = sides if first == "client" else sides[::-1]
        await send_all(one, b"question")
        one.shutdown(trio.socket.SHUT_WR)
        assert await receive_all(other) == b"question"
        row = await lab.wait_live(f"{first}_closed")
        assert row["half_closed"] is not None
        assert row["unsent"] is row["close_kind"] is None
        await send_all(other, b"answer")
        other.shutdown(trio.socket.SHUT_WR)
        (row,) = await lab.wait_ended()
        assert end_of(row) == ("finished", first, "fin")
        assert row["unsent"] == {"original": 0, "reply": 0}
        assert row["closed"] is not None
        assert row["half_closed"] is not None
        assert row["opened"] <= row["half_closed"] <= row["closed"]
        found = await sums(lab)
        assert found["half_closed"] == pytest.approx(row["closed"] - row["half_closed"], abs=1e-5)
        assert (found[first], found["proxy"], found["original"]) == (1, 0, 0)


async def stalled(lab: Lab, client: SocketType) -> int:
    """Pour until nothing more goes; return what lies with us and in the kernel, on the way."""
    with trio.move_on_after(0.2):
        await pour(client)
    flow = lab.worker._relay.table.get(1)
    assert isinstance(flow, StreamFlow)
    (row,) = (await lab.counters())["listeners"]
    ours, the_kernels = row["original"]["buffered"], unsent(flow.reply.socket)
    assert ours > 0
    assert the_kernels > 0
    return ours + the_kernels


async def test_what_a_kill_throws_away_is_told() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, server = await pair(lab, endpoint)
        on_the_way = await stalled(lab, client)
        await lab.worker.kill(FlowQuery())
        (row,) = await lab.wait_ended()
        assert end_of(row) == ("killed", "proxy", "order")
        assert row["half_closed"] is None
        assert row["unsent"] == {"original": on_the_way, "reply": 0}
        arrived = 0
        with suppress(ConnectionResetError):
            while part := await server.recv(1 << 20):
                arrived += len(part)
        assert arrived == row["original"]["bytes"] - on_the_way
        found = await sums(lab)
        assert (found["proxy"], found["original"]) == (1, on_the_way)


async def test_what_a_reset_throws_away_is_told() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, server = await pair(lab, endpoint)
        on_the_way = await stalled(lab, client)
        reset(server)
        (row,) = await lab.wait_ended()
        assert end_of(row) == ("endpoint_reset", "endpoint", "rst")
        assert row["unsent"] == {"original": on_the_way, "reply": 0}
        assert (await sums(lab))["original"] == on_the_way


async def test_a_clock_is_a_timeout_of_ours() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], limits=FlowLimits(half_closed=0.1)) as lab:
        client, server = await pair(lab, endpoint)
        client.shutdown(trio.socket.SHUT_WR)
        assert await receive_all(server) == b""
        (row,) = await lab.wait_ended()
        assert end_of(row) == ("half_closed_timeout", "proxy", "timeout")
        assert row["closed"] is not None
        assert row["half_closed"] is not None
        assert row["closed"] - row["half_closed"] >= 0.1


async def pour_until_cut(socket: SocketType) -> None:
    with suppress(OSError):
        await pour(socket)


async def legs_of(lab: Lab, side: str) -> tuple[StreamLeg, StreamLeg]:
    """Of the only flow: that of this side, and the other one."""
    await lab.wait_live("established")
    (flow,) = lab.worker._relay.table
    assert isinstance(flow, StreamFlow)
    both = flow.original, flow.reply
    return both if side == "client" else both[::-1]


@pytest.mark.parametrize("silent", ["client", "endpoint"])
async def test_a_peer_that_falls_silent_in_the_middle_of_bulk_has_not_reset(silent: str) -> None:
    """The kernel tells ETIMEDOUT once, to whichever call comes first."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:
        client, accepted = await pair(lab, endpoint)
        nursery.start_soon(pour_until_cut, accepted if silent == "client" else client)
        leg, other = await legs_of(lab, silent)
        leg.socket.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, 300)
        while not other.pending:
            await trio.sleep(0.002)
        (row,) = await lab.wait_ended()
        assert end_of(row) == ("unreachable", silent, "failure")
        nursery.cancel_scope.cancel()


async def pour_and_reset(
    lab: Lab, endpoint: SocketType, first: str
) -> tuple[SocketType, StreamLeg]:
    """Have one side send past the other, which does not read, and reset; the other, and its leg."""
    client, accepted = await pair(lab, endpoint)
    resets, reads = (client, accepted) if first == "client" else (accepted, client)
    leg, other = await legs_of(lab, first)
    with trio.move_on_after(0.3):
        await pour(resets)
    while not leg.pending:
        await trio.sleep(0.002)
    reset(resets)
    while leg.flow.broken is None:
        await trio.sleep(0.002)
    return reads, other


@pytest.mark.parametrize("first", ["client", "endpoint"])
async def test_a_reset_past_a_peer_that_never_reads_is_bounded_by_linger(first: str) -> None:
    endpoint = listening()
    limits = FlowLimits(linger=0.2)
    async with relaying([endpoint.getsockname()], limits=limits) as lab:
        never_reads, other = await pour_and_reset(lab, endpoint, first)
        before = other.bytes
        with suppress(OSError):
            await send_all(never_reads, b"nobody will have this")
        (row,) = await lab.wait_ended()
        assert end_of(row) == (f"{first}_reset", first, "rst")
        assert other.bytes == before
        with pytest.raises(OSError, match=r"reset|pipe"):
            await pour(never_reads)


@pytest.mark.parametrize("first", ["client", "endpoint"])
async def test_what_was_sent_before_a_reset_arrives_while_it_moves(first: str) -> None:
    """All of it, more than the kernel holds by itself; ``linger`` begins anew each time."""
    endpoint = listening()
    limits = FlowLimits(linger=2.0)
    async with relaying([endpoint.getsockname()], limits=limits) as lab:
        reads, _leg = await pour_and_reset(lab, endpoint, first)
        received = 0
        with suppress(ConnectionResetError):
            while part := await reads.recv(1 << 17):
                received += len(part)
                await trio.sleep(0.08)
        (row,) = await lab.wait_ended()
        assert end_of(row) == (f"{first}_reset", first, "rst")
        assert row["original" if first == "client" else "reply"]["bytes"] == received > 1 << 20
