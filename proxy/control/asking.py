"""Asking workers, all at once: with patience, for orders, or without those that are silent.

A worker that ends meanwhile is left out: what becomes of what it had, and was told, is for the crew
to see to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import trio

from proxy.control.remote import RemoteWorker, WorkerLostError

if TYPE_CHECKING:
    from proxy.control.readings import Readings
    from proxy.engine.port import RelayStatus, WorkerRow

Answer = TypeVar("Answer")

Ask: TypeAlias = Callable[[RemoteWorker], Awaitable[Answer]]


async def ask_all(remotes: Iterable[RemoteWorker], ask: Ask[Answer]) -> list[Answer]:
    """Ask every worker, and wait for each, however long it is silent."""
    answers: dict[int, Answer] = {}

    async def ask_one(remote: RemoteWorker) -> None:
        with suppress(WorkerLostError):
            answers[remote.index] = await ask(remote)

    async with trio.open_nursery() as nursery:
        for remote in remotes:
            nursery.start_soon(ask_one, remote)
    return [answers[index] for index in sorted(answers)]


async def hear_all(
    remotes: Iterable[RemoteWorker], ask: Ask[Answer]
) -> tuple[list[Answer], list[int]]:
    """Ask every worker, but do not wait for silent ones; say which these are."""
    silent: list[int] = []

    async def ask_one(remote: RemoteWorker) -> list[Answer]:
        answer: list[Answer] = []
        with remote.silence.asking():
            answer.append(await ask(remote))
        if not answer:
            silent.append(remote.index)
        return answer

    answers = await ask_all(remotes, ask_one)
    return [each for part in answers for each in part], sorted(silent)


def known_status(remotes: Iterable[RemoteWorker], readings: Readings) -> Iterator[RelayStatus]:
    """How each worker is, as it has told last; its flows, if it is silent, as they were read."""
    for remote in remotes:
        status, reading = remote.last_status, readings.shown(remote.index)
        silent = remote.silence.seconds
        if status is not None and silent is not None and reading is not None:
            flows = reading["table_entries"]
            row: WorkerRow = {"pid": remote.pid, "flows": flows, "silent": silent}
            yield {**status, "flows": flows, "workers": [row]}
        elif status is not None:
            yield status
