"""What ps shows: the service, each worker and its standby by their names, whoever has become what.

``python -m proxy`` is called python by the kernel, as is every worker, until it names itself.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.sockets import connect, echo, listen, say
from tests.e2e.subject import Forward, Sockpair
from tests.handover.scene import GroupForward


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")


def children(parent: int) -> dict[str, int]:
    """Processes of a process that live, by name; each name is there once."""
    found: list[tuple[str, int]] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(ppid) == parent and state != "Z":
                    found.append((name_of(int(folder.name)), int(folder.name)))
            except (FileNotFoundError, ProcessLookupError):
                continue
    names = dict(found)
    assert len(names) == len(found), found
    return names


async def are(sockpair: Sockpair, *names: str) -> dict[str, int]:
    """Wait until the service's processes have these names; return whose they are."""
    await until(lambda: children_now(sockpair) == {*names}, f"processes called {names}")
    return children(sockpair.program.pid)


def children_now(sockpair: Sockpair) -> set[str]:
    try:
        return {*children(sockpair.program.pid)}
    except AssertionError:  # one has just become the next
        return set()


async def kill(pid: int) -> None:
    """End a process of the service, and wait until it is seen off."""
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not Path(f"/proc/{pid}").exists(), "the end of a process")


async def test_service_and_workers_have_names(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web, workers=2)
    assert name_of(sockpair.program.pid) == "sockpair"
    before = await are(sockpair, "sockpair:0", "sockpair:1")
    rows = (await sockpair.status())["workers"]
    assert [row["pid"] for row in rows] == [before["sockpair:0"], before["sockpair:1"]]
    await kill(before["sockpair:1"])
    after = await are(sockpair, "sockpair:0", "sockpair:1")
    assert after["sockpair:0"] == before["sockpair:0"]


async def test_a_standby_has_a_name_and_another_when_its_turn_has_come(stage: Stage) -> None:
    origin = await listen(stage.nursery, echo)
    sockpair = await stage.sockpair(GroupForward("web", "tcp", [origin], keys={"survive": "crash"}))
    first = await are(sockpair, "sockpair:0", "sockpair:0+")
    await kill(first["sockpair:0"])
    second = await are(sockpair, "sockpair:0", "sockpair:0+")
    assert second["sockpair:0"] == first["sockpair:0+"]
    await kill(second["sockpair:0+"])  # the next one lives in a thread of its own
    await until(lambda: sockpair.log_records("standby_renewed"), "another standby")
    third = await are(sockpair, "sockpair:0", "sockpair:0+")
    assert third["sockpair:0"] == second["sockpair:0"]
    await kill(third["sockpair:0"])
    fourth = await are(sockpair, "sockpair:0", "sockpair:0+")
    assert fourth["sockpair:0"] == third["sockpair:0+"]


async def test_who_signals_all_by_name_means_the_service(stage: Stage) -> None:
    """As ``pkill -HUP sockpair`` does, and ``pkill -USR2 sockpair``, which is refused here."""
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web, workers=2)
    for pid in (await are(sockpair, "sockpair:0", "sockpair:1")).values():
        await kill(pid)  # the first ones are started by who hears no signals yet, and inherit that
    workers = await are(sockpair, "sockpair:0", "sockpair:1")
    await until(lambda: len(sockpair.log_records("worker_started")) == 4, "workers to begin")
    async with await connect(web.address) as client:
        await say(client, b"hello")
        for number, event in ((signal.SIGHUP, "reloaded"), (signal.SIGUSR2, "leave_refused")):
            for pid in (sockpair.program.pid, *workers.values()):
                os.kill(pid, number)
            await until(lambda event=event: sockpair.log_records(event), event)
        await say(client, b"still here")
    assert await are(sockpair, "sockpair:0", "sockpair:1") == workers
