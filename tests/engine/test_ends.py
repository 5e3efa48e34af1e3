"""The cause of an end: who moved first, by what, and what was lost; with real sockets."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from trio.socket import SocketType

from proxy.core.expiry import FlowLimits
from proxy.core.query import FlowQuery, FlowRow
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
