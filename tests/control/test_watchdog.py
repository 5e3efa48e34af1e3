"""The watchdog is fed by the pump's own turns, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from proxy.control.notify import Notifier
from proxy.control.watchdog import keep_telling, status_line
from proxy.engine.worker import Worker
from tests.control.manager import Manager
from tests.e2e.patience import PATIENCE
from tests.observe.fake_relay import FakeRelay


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(tmp_path) as listening:
        yield listening


async def test_an_idle_pump_proves_that_it_turns(nursery: trio.Nursery) -> None:
    worker = Worker(10, 10)
    nursery.start_soon(worker.run)
    with trio.fail_after(PATIENCE):
        for _ in range(3):
            before = worker._relay.pump.rounds
            await worker.alive()
            assert worker._relay.pump.rounds > before


async def test_all_who_ask_are_answered(nursery: trio.Nursery) -> None:
    worker = Worker(10, 10)
    nursery.start_soon(worker.run)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as asking:
            for _ in range(5):
                asking.start_soon(worker.alive)


async def test_a_pump_that_stands_still_feeds_nothing(
    manager: Manager, nursery: trio.Nursery
) -> None:
    worker = Worker(10, 10)  # Trio runs, and the pump does not
    with Notifier(manager.address, 3) as line:
        nursery.start_soon(keep_telling, worker, line)
        await trio.testing.wait_all_tasks_blocked(0.1)
        manager.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.socket.recv(4096)
        nursery.start_soon(worker.run)
        said = [await trio.to_thread.run_sync(manager.hear) for _ in range(2)]
        nursery.cancel_scope.cancel()
    assert said[0] == {"READY": "1"}
    assert said[1]["WATCHDOG"] == "1"


async def test_it_is_fed_again_and_again(manager: Manager, nursery: trio.Nursery) -> None:
    worker = Worker(10, 10)
    with Notifier(manager.address, 0.03) as line:
        nursery.start_soon(worker.run)
        nursery.start_soon(keep_telling, worker, line)
        assert (await trio.to_thread.run_sync(manager.hear)) == {"READY": "1"}
        for _ in range(3):
            said = await trio.to_thread.run_sync(manager.hear)
            assert said["STATUS"] == "0 of 10 flows; 0 opened, 0 refused so far; 0 listeners"
        nursery.cancel_scope.cancel()


async def test_nobody_listens_and_nothing_is_asked() -> None:
    await keep_telling(FakeRelay(), Notifier())


async def test_the_status_counts_what_is_there() -> None:
    counters = await FakeRelay().counters()
    line = status_line(counters)
    assert line.startswith(f"{counters['table_entries']} of {counters['table_limit']} flows; ")
    assert "listeners" in line
