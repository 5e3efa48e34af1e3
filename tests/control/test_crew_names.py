"""Addresses that change while several workers are at work: all of them know, and those to come."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import trio

from proxy.core.query import FlowQuery
from tests.control.test_crew import (
    CLIENTS,
    asks,
    client_from,
    crew_of,
    crewed,
    echo,
    listener,
    port_of,
    settings,
)
from tests.engine.lab import listening


async def test_a_worker_that_begins_later_knows_the_new_address(tmp_path: Path) -> None:
    one, two = listening(), listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", one.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, one)
        nursery.start_soon(echo, two)
        crew, port = crew_of(house), await port_of(house, "web")
        spec = house._upstreams["web"]
        (endpoint,) = spec.endpoints
        moved = replace(spec, endpoints=(endpoint._replace(address=two.getsockname()),))
        await house.worker.readdress([moved])
        victim = crew._remotes[0]
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        with trio.fail_after(10):
            while crew.restarts == 0 or crew._remotes[0] is None:
                await trio.sleep(0.01)
        for host in CLIENTS:
            assert await asks(await client_from(host, port))
        rows = (await house.worker.flows(FlowQuery()))["rows"]
        assert {row["id"] % 2 for row in rows} == {0, 1}, "both workers have some"
        expected = "{}:{}".format(*two.getsockname())
        assert {row["endpoint"]["remote"] for row in rows} == {expected}
        nursery.cancel_scope.cancel()
