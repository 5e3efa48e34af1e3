"""Thousands of flows at once: all are served, questions are answered, and nothing stays behind."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import pytest
import trio

from tests.e2e import crowd
from tests.e2e.conftest import Stage
from tests.e2e.patience import LOOK_AGAIN, PATIENCE, until
from tests.e2e.program import Command, accepts, free_port, output_of, program
from tests.e2e.subject import COMMAND, Forward, Sockpair

T = TypeVar("T")
Measured = Callable[[str], None]

ROUNDS: Final = 3
FLAT: Final = 4 * 1024
"""KiB that memory may differ by between the rounds: less than half a KiB a flow of 10,000."""

LIMIT: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
NEEDED: Final = 3 * 5000 + 100
"""Descriptors: two for each stream, one for each datagram flow, and some that are no flows."""

TOO_FEW: Final = f"{NEEDED} descriptors are needed, ulimit -Hn says {LIMIT}"


class Crowd:
    """A process full of clients, and the words it obeys."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process

    async def order(self, word: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(f"{word}\n".encode())
        await self.done()

    async def done(self) -> None:
        """Wait until all flows have done what was ordered."""
        assert self.process.stdout is not None
        with trio.fail_after(6 * PATIENCE):
            answer = b""
            while not answer.endswith(b"\n"):
                answer += (piece := await self.process.stdout.receive_some(64))
                assert piece, "the crowd has gone"
        assert answer == b"done\n"


@asynccontextmanager
async def clients_of(forward: Forward, count: int) -> AsyncIterator[Crowd]:
    """So many clients, each with a flow, in a process that ends with the block."""
    command = [sys.executable, crowd.__file__, "clients", forward.transport]
    process = await trio.lowlevel.open_process(
        [*command, str(forward.port), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with process.stdin, process.stdout:
            yield Crowd(process)
    finally:
        process.kill()
        await process.wait()


async def timed(question: Callable[[], Awaitable[T]]) -> tuple[T, float]:
    """An answer, and the milliseconds it took."""
    began = trio.current_time()
    return await question(), 1000 * (trio.current_time() - began)


@pytest.mark.parametrize(
    "count", [500, pytest.param(5000, marks=pytest.mark.skipif(LIMIT < NEEDED, reason=TOO_FEW))]
)
async def test_crowd_is_served_and_leaves_nothing_behind(
    stage: Stage, count: int, measured: Measured
) -> None:
    port = free_port()
    command = [sys.executable, crowd.__file__, "endpoint", str(port)]
    async with program(command, stage.folder, accepts(port), name="endpoint"):
        web = Forward("web", "tcp", [f"127.0.0.1:{port}"])
        game = Forward("game", "udp", [f"127.0.0.1:{port}"])
        sockpair = await stage.sockpair(web, game, recent=100)
        descriptors, memory = await quiet_descriptors(sockpair), [sockpair.memory()]
        for number in range(ROUNDS):
            async with clients_of(web, count) as streams, clients_of(game, count) as players:
                await streams.done()
                await players.done()
                assert (await sockpair.status())["flows"] == 2 * count
                assert sockpair.descriptors() >= descriptors + 3 * count
                if not number:
                    measured(f"{sockpair.memory() - memory[0]} KiB for all flows")
                    await ask(sockpair, count, measured)
                await streams.order("talk")
                await players.order("talk")
                await streams.order("close")
                said = await output_of(
                    *(*COMMAND, "kill", "--transport", "udp", "--yes"),
                    *("--admin", sockpair.settings.admin),
                )
                assert said == f"killed {count} flows\n"
            await sockpair.wait_flows(0)
            await until(lambda: sockpair.descriptors() <= descriptors, "descriptors to be closed")
            memory.append(sockpair.memory())
        await until(lambda: len(sockpair.logged("game")) == ROUNDS * count, "the log")
        await check_books(sockpair, count)
    measured(f"memory in KiB, before and after each round: {memory}")
    assert memory[-1] - memory[1] < FLAT


async def quiet_descriptors(sockpair: Sockpair) -> int:
    """How many descriptors it has when nobody asks: our last question's may linger a moment."""
    seen = []
    for _ in range(10):
        seen.append(sockpair.descriptors())
        await trio.sleep(LOOK_AGAIN)
    return min(seen)


async def ask(sockpair: Sockpair, count: int, measured: Measured) -> None:
    """Ask all that an operator would ask while the house is full."""
    command: Command = [*COMMAND, "flows", "-o", "json", "--admin", sockpair.settings.admin]
    said, listing = await timed(lambda: output_of(*command))
    assert len(json.loads(said)) == 2 * count
    metrics, scrape = await timed(sockpair.metrics)
    for name in ("web", "game"):
        assert metrics.sum("sockpair_flows", listener=name) == count
    _, ready = await timed(lambda: sockpair.get("/healthz"))
    measured(
        f"with {2 * count} flows open: sockpair flows {listing:.0f} ms, "
        f"/metrics {scrape:.1f} ms, /healthz {ready:.1f} ms"
    )


async def check_books(sockpair: Sockpair, count: int) -> None:
    """Every flow of every round is in the log, with what it carried, and in the metrics."""
    total, metrics = ROUNDS * count, await sockpair.metrics()
    for name, reason in (("web", "finished"), ("game", "killed")):
        rows = sockpair.logged(name)
        assert len(rows) == total
        assert {row["close_reason"] for row in rows} == {reason}
        for direction in ("original", "reply"):
            assert {row[direction]["bytes"] for row in rows} == {2 * 8}
        assert metrics.sum("sockpair_flows_closed_total", listener=name, reason=reason) == total
        assert metrics.sum("sockpair_client_sent_bytes_total", listener=name) == total * 2 * 8
