"""A soak: mixed traffic for as long as one likes, while sockpair is reloaded and things are killed.

At the end nothing may be left, memory and descriptors must be what they were, and the books of
clients, of endpoints, of sockpair's metrics and of its log must agree to the byte.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from proxy.engine.splice import FILES_PER_PIPE, KEPT
from tests.e2e import subject
from tests.e2e.subject import Settings
from tests.soak.books import Books
from tests.soak.clients import start_clients
from tests.soak.deeds import Deeds
from tests.soak.scene import KINDS, Scene
from tests.soak.watch import FLAT, Sample, Watch, look


@dataclass
class Outcome:
    """What a soak has shown.

    Attributes:
        faults: what is not as it must be, one line each.
        report: the table, for people.

    """

    faults: list[str]
    report: str


async def soak(folder: Path, seconds: float, workers: int, seed: int) -> Outcome:
    """Soak sockpair.

    Args:
        folder: an empty one, for files and logs.
        seconds: how long there is traffic.
        workers: of sockpair.
        seed: of all chance.

    """
    scene = Scene(folder, seed)
    began = trio.current_time()
    async with AsyncExitStack() as stack, AsyncExitStack() as mortal:
        await stack.enter_async_context(scene.steady.running())
        await stack.enter_async_context(scene.second.running())
        await mortal.enter_async_context(scene.mortal.running())
        engine: dict[str, int | str] = {"workers": workers, "drain_timeout": "200ms"}
        settings = Settings(folder, scene.usual(), engine)
        scene.sockpair = await stack.enter_async_context(subject.sockpair(settings))
        first = await look(scene.sockpair)
        deeds = Deeds(scene, mortal, pause=min(3.0, seconds / 20))
        watch = Watch()
        async with trio.open_nursery() as watching:
            watching.start_soon(watch.run, scene.sockpair, min(2.0, seconds / 20))
            async with trio.open_nursery() as clients:
                start_clients(clients, scene)
                await deeds.run(began + seconds)
                scene.stopping = True
            watching.cancel_scope.cancel()
        await deeds.reload(*scene.everything(idle="300ms", unreplied="300ms"))
        await scene.sockpair.wait_flows(0)
        last = await look(scene.sockpair)
        metrics = await scene.sockpair.metrics()
        at_endpoints = _added(await scene.steady.books(), await scene.second.books())
        assert await scene.sockpair.stop() == 0
    books = Books(scene, metrics, at_endpoints, scene.sockpair.log_records())
    books.check()
    faults = [*books.faults, *_leaks(watch, first, last)]
    minutes = (trio.current_time() - began) / 60
    return Outcome(faults, _report(scene, books, watch, first, last, minutes))


def _added(*books: dict[str, dict[str, int]]) -> dict[str, Counter[str]]:
    """The books of several processes of endpoints as one."""
    added: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    for name, book in (item for each in books for item in each.items()):
        added[name].update(book)
    return added


def _leaks(watch: Watch, first: dict[str, Sample], last: dict[str, Sample]) -> list[str]:
    """What a process holds at the end that it did not at the beginning."""
    faults = []
    for name, before in first.items():
        early, late = watch.memory(name)
        if late - early > FLAT:
            faults.append(f"{name}: memory grew from {early:.0f} to {late:.0f} KiB")
        more = last[name].descriptors - before.descriptors
        if not 0 <= more <= FILES_PER_PIPE * KEPT:  # pipes are kept for the next who needs one
            faults.append(f"{name}: {more} descriptors more than at the start")
    return faults


def _report(
    scene: Scene,
    books: Books,
    watch: Watch,
    first: dict[str, Sample],
    last: dict[str, Sample],
    minutes: float,
) -> str:
    lines = [f"{'listener':<8} {'flows':>7} {'bytes in':>14} {'bytes out':>14}  ends"]
    flows = carried = 0
    for name in KINDS:
        closed = books.closed(name)
        sent, received = (
            books.metrics.sum(f"sockpair_{leg}_received_bytes_total", listener=name)
            for leg in ("client", "endpoint")
        )
        flows, carried = flows + closed.total(), carried + sent + received
        ends = ", ".join(f"{reason} {count}" for reason, count in sorted((+closed).items()))
        lines.append(f"{name:<8} {closed.total():>7} {sent:>14} {received:>14}  {ends}")
    lines.append(
        f"{minutes:.1f} minutes, seed {scene.seed}: {flows} flows, {carried} bytes; done to it: "
    )
    lines[-1] += ", ".join(f"{count} {deed}" for deed, count in sorted(scene.deeds.items()))
    for name, before in first.items():
        early, late = watch.memory(name)
        after = last[name]
        lines.append(
            f"{name}: resident KiB {before.memory} at the start, {early:.0f} early, {late:.0f} late"
            f", {after.memory} at the end; descriptors {before.descriptors} at the start, "
            f"{watch.most_descriptors(name)} at most, {after.descriptors} at the end; "
            f"{after.cpu:.1f} s of CPU"
        )
    return "\n".join(lines)
