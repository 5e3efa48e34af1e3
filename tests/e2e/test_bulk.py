"""Much data both ways at once, past slow receivers: it arrives whole, and memory stays flat."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random
from typing import Final

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.sockets import connect, listen
from tests.e2e.subject import Forward, Sockpair, agree_nothing_lost

MIB: Final = 2**20
PIECE: Final = MIB // 4
BREATH: Final = 0.001
"""Seconds a slow receiver rests after each piece: half the pace of an eager one, or less."""

FLAT: Final = 8 * 1024
"""KiB that memory may rise by: a few buffers of ours, and noise of the allocator's."""


class End:
    """One end of the transfer: sends random data, receives slowly, knows both digests."""

    def __init__(self, stream: trio.SocketStream, seed: int, size: int, go: trio.Event) -> None:
        self.stream = stream
        self.random = Random(seed)
        self.size = size
        self.go = go
        self.sent = hashlib.sha256()
        self.received = hashlib.sha256()
        self.done = trio.Event()

    async def run(self) -> None:
        """Send all and receive all; then it is done."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            nursery.start_soon(self._receive)
        self.done.set()

    async def _send(self) -> None:
        for _ in range(self.size // PIECE):
            piece = self.random.randbytes(PIECE)
            self.sent.update(piece)
            await self.stream.send_all(piece)
        await self.stream.send_eof()

    async def _receive(self) -> None:
        await self.go.wait()
        while piece := await self.stream.receive_some(PIECE):
            self.received.update(piece)
            await trio.sleep(BREATH)


async def stalled(sockpair: Sockpair) -> None:
    """Wait until back-pressure has stopped both senders."""
    seen = [0, 0]

    async def stands_still() -> bool:
        await trio.sleep(0.1)
        (row,) = await sockpair.flows()
        was, seen[:] = list(seen), [row["original"]["bytes"], row["reply"]["bytes"]]
        return min(seen) > 0 and seen == was

    await until(stands_still, "both senders to be held up")


async def watch_memory(sockpair: Sockpair, samples: list[int]) -> None:
    while True:
        samples.append(sockpair.memory())
        await trio.sleep(0.05)


@pytest.mark.parametrize(
    "size", [64 * MIB, pytest.param(1024 * MIB, marks=pytest.mark.slow)], ids=["64MiB", "1GiB"]
)
async def test_random_data_both_ways_past_slow_receivers(
    stage: Stage, size: int, measured: Callable[[str], None]
) -> None:
    go, ends = trio.Event(), []

    async def serve(stream: trio.SocketStream) -> None:
        ends.append(End(stream, 1, size, go))
        async with stream:
            await ends[-1].run()

    endpoint = await listen(stage.nursery, serve)
    sockpair = await stage.sockpair(bulk := Forward("bulk", "tcp", [endpoint]))
    async with await connect(bulk.address) as client, trio.open_nursery() as nursery:
        await until(lambda: ends, "the endpoint to be reached")
        before = sockpair.memory()
        samples: list[int] = []
        nursery.start_soon(watch_memory, sockpair, samples)
        near, far = End(client, 2, size, go), ends[0]
        began = trio.current_time()
        async with trio.open_nursery() as sending:
            sending.start_soon(near.run)
            await stalled(sockpair)
            held = (await sockpair.metrics()).sum("sockpair_buffered_bytes", listener="bulk")
            assert 0 < held < 2 * MIB
            go.set()
        await far.done.wait()
        nursery.cancel_scope.cancel()
    took = trio.current_time() - began

    assert near.received.digest() == far.sent.digest()
    assert far.received.digest() == near.sent.digest()
    books = await sockpair.books("bulk", flows=1)
    assert (books.original, books.reply) == (size, size)
    assert books.reasons == {"finished": 1}
    agree_nothing_lost("bulk", await sockpair.metrics())
    assert max(samples) - before < FLAT
    measured(
        f"{took:.1f} s; buffered while stalled {held / 1024:.0f} KiB; "
        f"memory {before} KiB before, {max(samples)} KiB at most"
    )
