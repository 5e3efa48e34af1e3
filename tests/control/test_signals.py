"""Which signals end the house."""

from __future__ import annotations

import os
import signal

import pytest
import structlog.testing
import trio
import trio.testing

from proxy.control.house import wait_stop_signal
from tests.e2e.patience import PATIENCE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_hangup_is_a_line_in_the_log_and_no_end(number: signal.Signals) -> None:
    ended: list[signal.Signals] = []

    async def wait() -> None:
        ended.append(await wait_stop_signal())

    with structlog.testing.capture_logs() as logs, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(os.getpid(), signal.SIGHUP)
            while not logs:
                await trio.lowlevel.checkpoint()
            assert not ended
            os.kill(os.getpid(), number)
    assert ended == [number]
    assert [record["event"] for record in logs] == ["reload_not_supported"]
