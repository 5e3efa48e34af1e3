"""Real programs go on when the worker that relays them fails, in whatever way a program can.

A fault of ours is injected from outside: Python imports ``sitecustomize`` when it starts, and that
of these tests breaks a worker's pump when a signal comes. See ``handover/test_kills`` for kills of
workers with many flows, each byte of which is known, and ``systemd/test_real_clients`` for those
under the real unit.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Final

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import SLOWNESS, until
from tests.e2e.program import output_of, peer
from tests.e2e.subject import Sockpair
from tests.handover.scene import GroupForward

SECONDS: Final = str(int(2 * SLOWNESS))
REQUESTS: Final = "60000"

SITE: Final = """
import signal, sys

def fail(*_):
    raise {error}("injected")

def break_pump(number, frame):
    from proxy.engine.pump import Pump
    Pump._round = fail

if "proxy.engine.survival.standby" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, break_pump)
"""

FAULTS: Final = {
    "killed": (signal.SIGKILL, ""),
    "a library's fault": (signal.SIGSEGV, ""),
    "our fault": (signal.SIGUSR1, "RuntimeError"),
    "no memory": (signal.SIGUSR1, "MemoryError"),
}
"""A signal, and the exception that it raises in the worker's pump."""


async def worker_of(sockpair: Sockpair) -> int:
    (row,) = (await sockpair.status())["workers"]
    pid: int = row["pid"]
    return pid


@pytest.mark.peers("iperf3", "redis-server", "redis-benchmark")
@pytest.mark.parametrize(("number", "error"), FAULTS.values(), ids=FAULTS)
async def test_no_client_notices_that_a_worker_fails(
    stage: Stage, number: int, error: str, measured: Callable[[str], None]
) -> None:
    (stage.folder / "sitecustomize.py").write_text(SITE.format(error=error or "RuntimeError"))
    origins = await stage.iperf3(), await stage.redis()
    keys = {"survive": "crash"}
    bulk, cache = (
        GroupForward(name, "tcp", [origin.text], keys=keys)
        for name, origin in zip(("bulk", "cache"), origins, strict=True)
    )
    sockpair = await stage.sockpair(bulk, cache, wrapper=("env", f"PYTHONPATH={stage.folder}"))
    said: dict[str, str] = {}

    async def run(name: str, *command: str) -> None:
        said[name] = await output_of(peer(command[0]), *command[1:])

    async with trio.open_nursery() as nursery:
        place = ("--client", bulk.host, "--port", str(bulk.port), "--time", SECONDS)
        nursery.start_soon(run, "bulk", "iperf3", *place, "--bidir", "--json")
        place = ("-h", cache.host, "-p", str(cache.port), "-c", "5", "-P", "4", "-n", REQUESTS)
        nursery.start_soon(run, "cache", "redis-benchmark", *place, "ECHO", "x" * 100)
        ids = {row["id"] for row in await sockpair.wait_flows(3 + 5)}
        before = await worker_of(sockpair)
        os.kill(before, number)
        await until(lambda: '"survived"' in sockpair.program.story(), "the next worker")
        assert await worker_of(sockpair) != before
        assert {row["id"] for row in await sockpair.flows()} <= ids, "somebody connected again"
    report = json.loads(said["bulk"])
    assert "error" not in report
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_flows_lost_total") == 0
    assert metrics.sum("sockpair_flows_closed_total", reason="internal") == 0
    assert metrics.sum("sockpair_worker_restarts_total") == 1
    ends = (report["end"][f"sum_received{way}"]["bytes"] for way in ("", "_bidir_reverse"))
    measured(f"{' and '.join(f'{end:,}' for end in ends)} bytes, {REQUESTS} requests")
