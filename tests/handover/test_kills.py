"""Worker processes are killed at random moments under a crowd, and no flow notices."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio

from tests.e2e import subject
from tests.e2e.patience import PATIENCE, SLOWNESS
from tests.e2e.subject import Settings, Sockpair
from tests.handover.crowds import crowds, places
from tests.handover.kinds import DATAGRAMS, STREAMS
from tests.handover.scene import forwards

KILLS: Final = int(os.environ.get("SOCKPAIR_KILLS", "3"))
FLOWS: Final = int(os.environ.get("SOCKPAIR_KILL_FLOWS", "6"))
"""Of each kind."""


async def pids(proxy: Sockpair) -> list[int]:
    return [row["pid"] for row in (await proxy.status())["workers"]]


async def wait_replaced(proxy: Sockpair, pid: int, count: int) -> None:
    with trio.fail_after(PATIENCE):
        while True:
            left = await pids(proxy)
            if len(left) == count and pid not in left:
                return
            await trio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_no_flow_notices_that_its_worker_was_killed(
    tmp_path: Path, workers: int, measured: Callable[[str], None]
) -> None:
    random = Random(os.environ.get("SOCKPAIR_SEED", "1"))
    names = os.environ.get("SOCKPAIR_KINDS", " ".join([*STREAMS, *DATAGRAMS])).split()
    groups = places(dict.fromkeys(names, FLOWS))
    settings = Settings(tmp_path, forwards(groups, "crash"), {"workers": workers})
    async with crowds(groups) as both, subject.sockpair(settings) as proxy:
        await both.open()
        for number in range(KILLS):
            await trio.sleep(random.uniform(0.2, 1.2))
            victim = random.choice(await pids(proxy))
            os.kill(victim, random.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL]))
            await wait_replaced(proxy, victim, workers)
            kinds = Counter(f"{each.group} {each.what}" for each in both.hard_faults())
            assert not kinds, f"kill {number}"
        await trio.sleep(SLOWNESS)
        metrics = await proxy.metrics()
        lost = metrics.sum("sockpair_flows_lost_total")
        taken = metrics.sum("sockpair_flows_taken_over_total")
        await both.stop()
    measured(f"{KILLS} kills, {workers} workers: {taken} flows taken over, {lost} lost")
    measured(f"datagrams that did not come: {dict(both.lost())}")
    measured(both.pauses())
    assert both.hard_faults() == []
    assert lost == 0
    assert taken > 0
    assert both.lost().total() <= KILLS * 64 * len(groups)
