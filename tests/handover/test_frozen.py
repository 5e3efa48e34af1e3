"""A worker stands still when sockpair is to change its process: its flows wait, and none is cut."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.e2e.patience import until
from tests.e2e.subject import Settings
from tests.handover.crowds import crowds, places
from tests.handover.house import house
from tests.handover.kinds import DATAGRAMS, STREAMS
from tests.handover.scene import forwards

FLOWS = 2
"""Of each kind."""


@pytest.mark.slow
@pytest.mark.parametrize("thaws", [True, False])
async def test_an_upgrade_meets_a_worker_that_is_frozen(tmp_path: Path, thaws: bool) -> None:
    """It waits for one that goes on; one that does not is ended, and its standby goes on."""
    groups = places(dict.fromkeys([*STREAMS, *DATAGRAMS], FLOWS))
    settings = Settings(tmp_path, forwards(groups, "crash"), {"workers": 2})
    async with crowds(groups) as both, house(settings) as running:
        await both.open()
        frozen, _ = await running.workers()
        log = running.program.errors

        async def thaw() -> None:
            await until(lambda: "upgrade_begun" in log.read_text(), "the upgrade")
            os.kill(frozen, signal.SIGCONT)

        os.kill(frozen, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            if thaws:
                nursery.start_soon(thaw)
            done = await running.upgrade()
        metrics = await running.metrics()
        await both.stop()
        with suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGCONT)
    assert both.hard_faults() == []
    assert metrics.sum("sockpair_flows_lost_total") == 0
    assert done or not thaws
    assert ("worker_hung" in log.read_text()) is not thaws
