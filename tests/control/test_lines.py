"""An heir with a standby, both of them real: who serves a flow, whichever of them is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog.testing
import trio

from proxy.config.load import parse
from proxy.control.crew import Crew
from proxy.control.departure import Heir
from proxy.control.opening import open_house
from tests.control.test_crew import listener, settings
from tests.engine.heirs import TO_ONE
from tests.engine.lab import Lab, listening, pair, relaying
from tests.engine.test_handover_faults import talk


@asynccontextmanager
async def left_to_line(lab: Lab, endpoint: tuple[str, int], folder: Path) -> AsyncIterator[Crew]:
    """A crew of one worker and its standby, which has got the flows; its supervisor then dies."""
    table = listener("lab", "tcp://127.0.0.1:0", endpoint)
    table = table.replace("listen =", 'survive = "crash"\nlisten =')
    house = await open_house(parse(settings(folder, table, 1), "f"))
    crew, heir = house.worker, Heir()
    assert isinstance(crew, Crew)
    crew.inherits = heir.introduce
    async with trio.open_nursery() as nursery:
        with house:
            nursery.start_soon(nursery.start, crew.run)
            await heir.present.wait()
            left = await lab.worker.leave(TO_ONE, [heir.end], patience=0.0)
            assert (left.handed, left.failure) == (1, "")
            await crew.wait_whole()
            yield crew
            (remote,) = filter(None, crew._remotes)
            await remote.part()
            nursery.cancel_scope.cancel()


async def test_a_flow_is_the_lines_until_that_is_over(tmp_path: Path) -> None:
    endpoint = listening()
    with structlog.testing.capture_logs():
        async with relaying([endpoint.getsockname()]) as lab:
            ends = await pair(lab, endpoint)
            await talk(*ends)
            async with left_to_line(lab, endpoint.getsockname(), tmp_path) as crew:
                for _ in range(2):  # the second standby was nobody's when the flow was given
                    await talk(*ends)
                    (killed,) = crew._remotes
                    assert killed is not None
                    os.kill(killed.pid, signal.SIGKILL)
                    while crew._remotes[0] in {killed, None}:
                        await trio.sleep(0.005)
                    assert not lab.worker._custody.has_all_back
                await talk(*ends)
                (row,) = (await crew.counters())["listeners"]
                assert (row["live"]["established"], row["lost"]) == (1, 0)
            while not lab.worker._custody.has_all_back:
                await trio.sleep(0.005)
            await talk(*ends)
            (row,) = (await lab.counters())["listeners"]
            assert (row["opened"], row["live"]["established"], row["lost"]) == (1, 1, 0)
            assert sum(row["closed"].values()) == 0
            assert row["original"]["received"] == row["original"]["sent"] == 5 * 12
