"""The pump sleeps for the whole process: everything that Trio waits for must wake it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from select import EPOLLIN

import pytest
import structlog.testing
import trio
from trio.lowlevel import checkpoint

from proxy.engine import pump as pump_module
from proxy.engine import scheduler
from proxy.engine.pump import FEW_EVENTS, Pump
from proxy.engine.scheduler import Scheduler
from tests.engine.lab import PATIENCE


@asynccontextmanager
async def pumping(pump: Pump) -> AsyncIterator[None]:
    """A pump that has had its first turns, and sleeps whenever nobody else runs."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.run)
            while not pump.rounds:
                await checkpoint()
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _sleeps_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "LONGEST_SLEEP", 2 * PATIENCE)


class Reader:
    """Counts what comes through a pipe."""

    def __init__(self, fd: int, then: Callable[[], None] = lambda: None) -> None:
        self.fd = fd
        self.then = then
        self.got = 0

    def ready(self, mask: int, now: float) -> None:
        self.got += len(os.read(self.fd, 100))
        self.then()

    def crashed(self, error: Exception, now: float) -> None:
        raise error


async def test_a_deadline_wakes_it() -> None:
    async with pumping(Pump()):
        for _ in range(20):
            await trio.sleep(0.001)


async def test_a_socket_of_trio_wakes_it() -> None:
    async with pumping(Pump()):
        ours, theirs = trio.socket.socketpair()
        with ours, theirs:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(theirs.recv, 1)
                    await checkpoint()
                    await ours.send(b"x")


async def test_a_thread_wakes_it() -> None:
    async with pumping(Pump()):
        for _ in range(20):
            await trio.to_thread.run_sync(lambda: None)


async def test_a_signal_wakes_it() -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async with pumping(Pump()):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert await anext(signals) == signal.SIGUSR1


async def test_tasks_that_take_turns_are_not_kept_waiting() -> None:
    async def turns(count: int) -> None:
        for _ in range(count):
            await checkpoint()

    async with pumping(Pump()), trio.open_nursery() as nursery:
        for count in range(50):
            nursery.start_soon(turns, count)


async def test_a_task_that_a_handler_makes_ready_runs_next() -> None:
    pump, woken = Pump(), trio.Event()
    source, sink = os.pipe()
    pump.register(source, Reader(source, woken.set), EPOLLIN)
    async with pumping(pump):
        os.write(sink, b"x")
        await woken.wait()
    os.close(source)
    os.close(sink)


async def test_an_idle_pump_sleeps() -> None:
    pump = Pump()
    async with pumping(pump):
        before = pump.rounds
        await trio.sleep(0.2)
        assert pump.rounds - before < 5


async def test_a_busy_pump_leaves_nobody_waiting() -> None:
    pump = Pump()
    source, sink = os.pipe()
    reader = Reader(source, lambda: os.write(sink, b"x") and None)
    pump.register(source, reader, EPOLLIN)
    async with pumping(pump):
        os.write(sink, b"x")
        for _ in range(10):
            await trio.sleep(0.001)
            await trio.to_thread.run_sync(lambda: None)
    assert reader.got > 10
    os.close(source)
    os.close(sink)


async def test_in_short_rounds_a_task_hears_its_news_before_all_that_is_ready_is_served() -> None:
    pump, served, news = Pump(), 0, os.eventfd(0)
    busy = [os.eventfd(1) for _ in range(16 * FEW_EVENTS)]  # each always has something to read
    told_at = 4 * len(busy) + 1

    class Busy(Reader):
        def ready(self, mask: int, now: float) -> None:
            nonlocal served
            served += 1
            if served == told_at:
                os.eventfd_write(news, 1)

    for fd in busy:
        pump.register(fd, Busy(fd), EPOLLIN)
    async with pumping(pump):
        with pump.short_rounds():
            await trio.lowlevel.wait_readable(news)
            assert served - told_at < 2 * FEW_EVENTS
    for fd in (news, *busy):
        os.close(fd)


async def test_rounds_are_short_until_the_last_who_wanted_it_has_gone() -> None:
    pump = Pump()
    with pump.short_rounds():
        with suppress(ValueError), pump.short_rounds():
            raise ValueError
        pump._stay(set(), 0.0)
        assert pump.giving_way
    pump._stay(set(), 0.0)
    assert not pump.giving_way


async def test_the_instance_that_trio_waits_on_is_found_among_others() -> None:
    pump = Pump()
    found = await Scheduler().find_epoll()
    assert found not in {None, pump._epoll.fileno()}
    assert os.readlink(f"/proc/self/fd/{found}") == "anon_inode:[eventpoll]"  # noqa: PTH115


async def test_without_proc_it_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "FILES", Path("/nonexistent"))
    with structlog.testing.capture_logs() as logs:
        async with pumping(Pump()):
            await trio.to_thread.run_sync(lambda: None)
    assert [record["event"] for record in logs] == ["trio_epoll_not_found"]


async def test_a_handler_has_one_turn_a_round_however_often_it_asks() -> None:
    """Or else a bulk flow, which asks and has news too, would have several."""
    pump = Pump()
    source, sink = os.pipe()
    turns: list[int] = []

    class Greedy(Reader):
        def ready(self, mask: int, now: float) -> None:
            turns.append(pump.rounds)
            if len(turns) < 30:
                os.write(sink, b"x")
                pump.again(self, mask)
                pump.again(self, mask)

    pump.register(source, Greedy(source), EPOLLIN)
    async with pumping(pump):
        os.write(sink, b"x")
        while len(turns) < 30:
            await trio.sleep(0.001)
    assert len(set(turns)) == len(turns)
    os.close(source)
    os.close(sink)
