"""Ten thousand reloads in one life, under traffic: nothing fails, nothing grows, all is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.e2e import subject
from tests.e2e.reloading import Load, rewrite
from tests.e2e.sockets import echo, listen, listen_datagrams
from tests.e2e.subject import Forward, Settings, agree_nothing_lost
from tests.soak.watch import FLAT, look

RELOADS: Final = 10_000
ROUNDS: Final = 10
CLIENTS: Final = 2
"""Of each kind: on a connection that lives all the time, on new ones, and of datagrams."""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_ten_thousand_reloads(
    tmp_path: Path, workers: int, measured: Callable[[str], None]
) -> None:
    async with trio.open_nursery() as nursery:
        origins = [await listen(nursery, echo) for _ in range(2)]
        web = Forward("web", "tcp", origins)
        game = Forward("game", "udp", [await listen_datagrams(nursery)])
        spare = Forward("spare", "tcp", origins)
        settings = Settings(tmp_path, [web, game], {"workers": workers})
        async with subject.sockpair(settings) as sockpair:
            samples = [await look(sockpair)]
            async with trio.open_nursery() as clients:
                load = Load(clients, pause=0.02)
                load.start(web, game, CLIENTS)
                for number in range(RELOADS):
                    odd = number % 2
                    now = replace(
                        web, endpoints=origins[: 1 + odd], limits={"idle": f"{60 + number}s"}
                    )
                    rewrite(sockpair, now, game, *([spare] if odd else []))
                    status, body = await sockpair.ask("POST", "/api/v1/reload")
                    assert status == 200, body
                    if (number + 1) % (RELOADS // ROUNDS) == 0:
                        samples.append(await look(sockpair))
                load.stop()
            await sockpair.wait_flows(0, listener="web")
            metrics = await sockpair.metrics()
        nursery.cancel_scope.cancel()
    flows = CLIENTS + load.flows
    assert metrics.sum("sockpair_flows_opened_total", listener="web") == flows
    finished = metrics.sum("sockpair_flows_closed_total", listener="web", reason="finished")
    assert finished == flows
    assert metrics.sum("sockpair_flows_opened_total", listener="game") == CLIENTS
    for name in ("web", "game"):
        agree_nothing_lost(name, metrics)
    assert len(sockpair.log_records("reloaded")) == RELOADS
    for name in samples[0]:
        memory = [each[name].memory for each in samples]
        descriptors = [each[name].descriptors for each in samples]
        measured(f"{name}: resident KiB {memory}, descriptors {descriptors}")
        assert memory[-1] - memory[2] < FLAT
        assert descriptors[-1] - descriptors[1] <= 2 * CLIENTS  # of flows that just come or go
    measured(f"{load.requests} requests on {flows} flows, and datagrams; none failed")
