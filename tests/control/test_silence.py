"""A worker that says nothing: nobody waits for it, and nobody takes a part for the whole."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from proxy.control import crew as crew_module
from proxy.control.crew import Crew
from proxy.control.house import House
from proxy.control.silence import SILENT, Silence
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
    rows_by_worker,
    settings,
    until,
)
from tests.engine.lab import PATIENCE, listening


async def test_who_asks_leaves_when_it_falls_silent_and_waits_again_after(
    autojump_clock: MockClock,
) -> None:
    silence, answers = Silence(), trio.Event()
    left: list[str] = []

    async def ask(name: str) -> None:
        with silence.asking():
            await answers.wait()
            return
        left.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "before")
        await trio.testing.wait_all_tasks_blocked()
        assert silence.seconds is None
        with silence.lasting():
            assert silence.seconds == SILENT
            await trio.sleep(2)
            assert silence.seconds == SILENT + 2
            assert left == ["before"]
            await ask("meanwhile")
            assert left == ["before", "meanwhile"]
        assert silence.seconds is None
        nursery.start_soon(ask, "after")
        await trio.testing.wait_all_tasks_blocked()
        answers.set()
    assert left == ["before", "meanwhile"]


async def test_it_is_silent_no_more_when_it_has_ended() -> None:
    silence = Silence()
    with pytest.raises(OSError, match="gone"), silence.lasting():
        raise OSError("gone")
    assert silence.seconds is None


@asynccontextmanager
async def stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, hung: float = 10.0
) -> AsyncIterator[tuple[House, list[int]]]:
    """A house, one of whose two workers is stopped when both have flows; and who has how many."""
    monkeypatch.setattr(crew_module, "SILENT", 0.2)
    monkeypatch.setattr(crew_module, "HUNG", hung)
    endpoint = listening()
    text = settings(folder) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port, crew = await port_of(house, "web"), crew_of(house)
        clients = [await client_from(host, port) for host in CLIENTS]
        for client in clients:
            assert await asks(client)
        owners = await rows_by_worker(house)
        await house.worker.counters()
        os.kill(pid_of(crew, 1), signal.SIGSTOP)
        try:
            await silent(crew)
            yield house, [len(owners[index]) for index in range(2)]
        finally:
            for client in clients:
                client.close()
            nursery.cancel_scope.cancel()
            for remote in crew._remotes:
                if remote is not None:
                    os.kill(remote.pid, signal.SIGCONT)


def pid_of(crew: Crew, index: int) -> int:
    remote = crew._remotes[index]
    assert remote is not None
    return remote.pid


async def silent(crew: Crew, *, are: bool = True) -> None:
    """Wait until worker 1 is silent, or is no more."""
    while any("does not answer" in text for text in (await crew.status())["not_ready"]) is not are:
        await trio.sleep(0.02)


async def test_what_was_last_known_of_it_stands_in_for_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(PATIENCE):
        async with stopped(tmp_path, monkeypatch) as (house, flows):
            counters = await house.worker.counters()
            (web,) = counters["listeners"]
            assert (web["opened"], sum(web["live"].values())) == (20, 20)
            assert web["original"]["received"] == 100
            assert (counters["table_entries"], counters["table_limit"]) == (20, 100_000)
            status = await house.worker.status()
            assert (status["flows"], status["table_limit"]) == (20, 100_000)
            assert status["not_ready"] == ["worker 1: does not answer"]
            assert [row["flows"] for row in status["workers"]] == flows
            first, second = (row["silent"] for row in status["workers"])
            assert first is None
            assert second is not None
            assert len(status["listening"]) == 1


async def test_a_listing_is_the_others_and_says_whose_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(PATIENCE):
        async with stopped(tmp_path, monkeypatch) as (house, flows):
            found = await house.worker.flow_ids(FlowQuery())
            assert (found["matched"], found["silent"]) == (flows[0], [1])
            page = await house.worker.flows(FlowQuery())
            assert (page["matched"], page["silent"]) == (flows[0], [1])
            rows = await house.worker.flow_rows([*found["ids"], 2], recent=False)
            assert [row is None for row in rows] == [False] * flows[0] + [True]


async def test_no_counter_goes_back_while_it_is_silent_ended_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(PATIENCE):
        async with stopped(tmp_path, monkeypatch, hung=1.0) as (house, flows):
            crew = crew_of(house)
            while crew.restarts == 0 or crew._remotes[1] is None:
                counters = await house.worker.counters()
                (web,) = counters["listeners"]
                ended = web["closed"]["internal"]
                assert ended in (0, flows[1])
                assert (web["opened"], sum(web["live"].values())) == (20, 20 - ended)
                assert web["original"]["received"] == 100
                await trio.sleep(0.02)
            await until(house, lambda read: read["listeners"][0]["closed"]["internal"] == flows[1])


async def test_one_that_goes_on_is_whole_again_and_readers_know_that_they_missed_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(PATIENCE):
        async with stopped(tmp_path, monkeypatch) as (house, _):
            await house.worker.watch({7: FlowQuery()})  # which it has not been told
            with structlog.testing.capture_logs() as logs:
                os.kill(pid_of(crew_of(house), 1), signal.SIGCONT)
                while not (await house.worker.wait_flow_events()).lost:
                    pass
                await silent(crew_of(house), are=False)
            assert [(each["event"], each["worker"]) for each in logs] == [("worker_answers", 1)]
            assert (await house.worker.flow_ids(FlowQuery()))["silent"] == []
            assert await house.worker.kill(FlowQuery()) == 20
            watched = 0
            while watched < 20:
                watched += len((await house.worker.wait_flow_events()).events)


async def test_an_order_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(PATIENCE):
        async with stopped(tmp_path, monkeypatch) as (house, _), trio.open_nursery() as nursery:
            killed: list[int] = []

            async def kill() -> None:
                killed.append(await house.worker.kill(FlowQuery()))

            nursery.start_soon(kill)
            await trio.sleep(0.3)
            assert killed == []
            os.kill(pid_of(crew_of(house), 1), signal.SIGCONT)
            while not killed:
                await trio.sleep(0.02)
            assert killed == [20]
