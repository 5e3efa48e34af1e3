"""`sockpair upgrade`: the successor has every flow, or everything goes on as it was."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.chatter import TALKERS, Chatter, chatting, talk
from tests.e2e.conftest import Stage
from tests.e2e.patience import PATIENCE, until
from tests.e2e.program import Program, free_port, is_running, peer, start
from tests.e2e.subject import COMMAND, Forward, Settings, Sockpair, command_of
from tests.handover.scene import GroupForward


class Lives:
    """A sockpair, and its successors."""

    def __init__(self, settings: Settings, first: Program) -> None:
        self.settings = settings
        self.first = first
        self.pids = [first.pid]

    @property
    def sockpair(self) -> Sockpair:
        """Whoever is at the admin socket."""
        return Sockpair(self.settings, self.first)

    async def wait_started(self) -> None:
        await until(
            lambda: self.sockpair.log_records("started") or self.first.process.poll() is not None,
            "the start",
            3 * PATIENCE,
        )
        assert self.first.process.poll() is None, self.first.story()

    async def upgrade(self, *options: str) -> tuple[int, str, dict[str, Any]]:
        """The command; its exit code, what it says to people, and its answer."""
        command = [*COMMAND, "upgrade", "--admin", str(self.settings.admin), "-o", "json"]
        done = await trio.run_process(
            [*command, *options], capture_stdout=True, capture_stderr=True, check=False
        )
        answer = json.loads(done.stdout or "{}")
        if answer.get("pid"):
            self.pids.append(answer["pid"])
        return done.returncode, done.stderr.decode(), answer

    async def upgraded(self) -> dict[str, Any]:
        """Upgrade, which must succeed; return the answer when the one before has ended."""
        code, errors, answer = await self.upgrade()
        assert code == 0, errors + self.first.story()
        assert (await self.sockpair.status())["pid"] == answer["pid"]
        return answer

    def end(self) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def lives(
    settings: Settings, command: Sequence[str | Path] | None = None
) -> AsyncIterator[Lives]:
    """Run sockpair, or another command that is one, and whatever successors it gets."""
    settings.write()
    first = await start(command or command_of(settings), settings.folder, name="sockpair")
    running = Lives(settings, first)
    try:
        await running.wait_started()
        yield running
    finally:
        print(first.story())
        running.end()
        await first.kill()


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 2), (2, 1)])
async def test_no_flow_notices_an_upgrade(stage: Stage, before: int, after: int) -> None:
    async with chatting() as chatter:
        web, dns = Forward("web", "tcp", [chatter.tcp]), Forward("dns", "udp", [chatter.udp])
        settings = stage.settings(web, dns, workers=before)
        async with lives(settings) as running:
            talk(chatter, web, dns, "first")
            await chatter.wait_words()
            rows = await running.sockpair.flows()
            changed = Settings(
                settings.folder, settings.forwards, {"workers": after}, settings.admin_port
            )
            changed.write()
            answer = await running.upgraded()
            further = answer["flows"] - 2 * TALKERS  # of datagrams that met another worker
            assert 0 <= further <= (TALKERS if before != after else 0)
            assert answer["stayed"] == 0
            talk(chatter, web, dns, "second")
            await chatter.wait_words()
            answer = await running.upgraded()
            await chatter.wait_words()
            found = {row["id"]: row for row in await running.sockpair.flows()}
            assert answer["flows"] == len(found) == len(chatter.ways) >= 4 * TALKERS + further
            assert before != after or len(found) == 4 * TALKERS
            assert [row["transport"] for row in found.values()].count("tcp") == 2 * TALKERS
            for row in rows:
                assert found[row["id"]]["endpoint"] == row["endpoint"]
            metrics = await running.sockpair.metrics()
            assert metrics.sum("sockpair_flows_opened_total") == len(found)
            assert metrics.sum("sockpair_flows") == len(found)
            assert metrics.sum("sockpair_flows_closed_total") == 0
            assert await running.first.process.wait() == 0
            await until(lambda: not is_running(running.pids[1]), "the end of the second life")
            chatter.nursery.cancel_scope.cancel()
    assert "Traceback" not in running.first.story()


async def test_a_flow_that_stays_drains_in_the_old_process_and_both_are_shown(
    stage: Stage,
) -> None:
    async with chatting() as chatter:
        web = Forward("web", "tcp", [chatter.tcp])
        settings = stage.settings(web, drain_timeout="60s")
        settings.write()
        async with lives(settings) as running:
            toml = settings.file.read_text()
            settings.file.write_text(toml.replace("upstream =", 'survive = "off"\nupstream =', 1))
            chatter.begin("one", "tcp", web.address, "127.0.0.2")
            await chatter.wait_words()
            answer = await running.upgraded()
            assert (answer["flows"], answer["stayed"]) == (0, 1)
            await chatter.wait_words()
            status = await running.sockpair.status()
            assert status["predecessors"] == [
                {"pid": running.first.pid, "flows": 1, "draining": True}
            ]
            metrics = await running.sockpair.metrics()
            assert metrics.sum("sockpair_flows_opened_total") == 1
            chatter.end("one")
            assert await running.first.process.wait() == 0

            async def none_is_left() -> bool:
                return (await running.sockpair.status())["predecessors"] == []

            await until(none_is_left, "the end of the predecessor to be known")
            metrics = await running.sockpair.metrics()
            assert metrics.sum("sockpair_flows_closed_total") == 1
            chatter.nursery.cancel_scope.cancel()


async def test_a_flow_that_stays_outlives_the_next_upgrade_too(stage: Stage) -> None:
    async with chatting() as chatter:
        web = Forward("web", "tcp", [chatter.tcp])
        settings = stage.settings(web, drain_timeout="60s")
        async with lives(settings) as running:
            chatter.begin("one", "tcp", web.address, "127.0.0.2")
            await chatter.wait_words()
            toml = settings.file.read_text()
            settings.file.write_text(toml.replace("[listener.web", "[listener.site"))
            answer = await running.upgraded()
            assert (answer["flows"], answer["stayed"]) == (0, 1)
            chatter.begin("two", "tcp", web.address, "127.0.0.3")
            await chatter.wait_words()
            answer = await running.upgraded()
            assert (answer["flows"], answer["stayed"]) == (1, 0)
            await until(lambda: not is_running(running.pids[1]), "the end of the second life")
            await chatter.wait_words()
            status = await running.sockpair.status()
            assert status["predecessors"] == [
                {"pid": running.first.pid, "flows": 1, "draining": True}
            ]
            chatter.nursery.cancel_scope.cancel()


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_is_ordered_and_counted_meanwhile_is_known_afterwards(
    stage: Stage, workers: int
) -> None:
    """Either an order is refused, or it is in force; and what was told once is never taken back."""
    async with chatting() as chatter:
        web, dns = Forward("web", "tcp", [chatter.tcp]), Forward("dns", "udp", [chatter.udp])
        async with lives(stage.settings(web, dns, workers=workers)) as running:
            talk(chatter, web, dns, "first")
            await chatter.wait_words()
            over, ordered = trio.Event(), set[str]()

            async def order() -> None:
                for number in range(1, 250):
                    client = f"192.0.2.{number}"
                    status, _ = await running.sockpair.ask(
                        "POST", f"/api/v1/limits?client={client}&bytes=1000000"
                    )
                    ordered.update({f"{client}/32"} if status == 200 else ())
                    if over.is_set():
                        return
                    await trio.sleep(0.05)

            async def scrape() -> None:
                before = dict[str, float]()
                while not over.is_set():
                    now = totals((await running.sockpair.metrics()).text)
                    assert not {name for name in before if now.get(name, 0.0) < before[name]}
                    before = now

            async with trio.open_nursery() as nursery:
                nursery.start_soon(order)
                nursery.start_soon(scrape)
                await running.upgraded()
                over.set()
            limits = json.loads(await running.sockpair.get("/api/v1/limits"))
            assert ordered <= {row["client"] for row in limits["orders"]}
            assert ordered
            chatter.nursery.cancel_scope.cancel()


def totals(text: str) -> dict[str, float]:
    """What a scrape says of flows and bytes, by series: counters only."""
    found = dict[str, float]()
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.startswith("sockpair_") and series.partition("{")[0].endswith("_total"):
            found[series] = float(value)
    return found


async def test_flows_of_a_datagram_socket_that_the_next_life_has_not_go_on_in_the_old_one(
    stage: Stage,
) -> None:
    async with chatting() as chatter:
        dns = Forward("dns", "udp", [chatter.udp])
        settings = stage.settings(dns, drain_timeout="60s")
        async with lives(settings) as running:
            chatter.begin("one", "udp", dns.address, "127.0.0.2")
            await chatter.wait_words()
            toml = settings.file.read_text()
            settings.file.write_text(toml.replace(f":{dns.port}", f":{free_port()}"))
            answer = await running.upgraded()
            assert (answer["flows"], answer["stayed"]) == (0, 1)
            await chatter.wait_words()
            settings.file.write_text(toml)  # back to the port, which that flow has yet
            code, errors, _ = await running.upgrade()
            assert code == 1
            assert f"process {running.first.pid}, of an earlier life" in errors
            await chatter.wait_words()
            chatter.nursery.cancel_scope.cancel()


async def test_a_file_with_a_problem_is_told_and_nothing_changes(stage: Stage) -> None:
    async with chatting() as chatter:
        web = Forward("web", "tcp", [chatter.tcp])
        settings = stage.settings(web)
        async with lives(settings) as running:
            chatter.begin("one", "tcp", web.address, "127.0.0.2")
            code, _, answer = await running.upgrade("--dry-run")
            assert (code, answer["upgraded"]) == (0, False)
            settings.file.write_text(
                settings.file.read_text().replace("upstream =", "upstram =", 1)
            )
            for options in ((), ("--dry-run",)):
                code, errors, _ = await running.upgrade(*options)
                assert code == 1
                assert "upstram: unknown key" in errors
            await chatter.wait_words()
            assert (await running.sockpair.status())["pid"] == running.first.pid
            chatter.nursery.cancel_scope.cancel()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_successor_that_cannot_bind_says_why_and_nothing_changes(
    stage: Stage, workers: int
) -> None:
    async with chatting() as chatter:
        web, dns = Forward("web", "tcp", [chatter.tcp]), Forward("dns", "udp", [chatter.udp])
        async with lives(stage.settings(web, dns, workers=workers)) as running:
            talk(chatter, web, dns, "first")
            other = Forward("other", "tcp", [chatter.tcp], host="192.0.2.1")
            settings = running.settings
            text = settings.file.read_text()
            settings.file.write_text(text + other.toml)
            code, errors, _ = await running.upgrade()
            assert code == 1
            assert "listener.other: cannot listen on tcp://192.0.2.1" in errors
            await chatter.wait_words()
            settings.file.write_text(text)
            answer = await running.upgraded()
            assert answer["flows"] == 2 * TALKERS
            await chatter.wait_words()
            chatter.nursery.cancel_scope.cancel()


FEW = 100
"""Descriptors that a process may have: enough to begin."""

PROGRAM = """
import json, os, resource, runpy, sys, time
import trio
from proxy.control import newcomer
from proxy.control.crew import Crew
from proxy.control.heritage import Heritage

crews = []

def known(run):
    return lambda self, **options: crews.append(self) or run(self, **options)

def die(*_):
    os.kill(os.getpid(), 9)

async def lose_and_die(*_):
    (crew,) = crews
    before = crew._remotes[0]
    os.kill(before.pid, 9)
    while crew._remotes[0] in (before, None):
        await trio.sleep(0.01)
    die()

async def hang(*_):
    await trio.sleep_forever()

async def lose_predecessor(self, reports, tell=newcomer.Newcomer.tell_done):
    os.kill(int(open({victim!r}).read()), 9)
    await trio.sleep(1)  # and its standby is at work
    await tell(self, reports)

if "run" in sys.argv and newcomer.PREDECESSOR in os.environ:
    match open({mode!r}).read():
        case "hangs":
            newcomer.Newcomer.announce = hang
        case "dies":
            newcomer.Newcomer.announce = die
        case "dies half-way":
            Heritage.take_over = die
        case "dies with all":
            newcomer.Newcomer.tell_done = die
        case "dies after its worker":
            newcomer.Newcomer.tell_done = lose_and_die
            Crew.run = known(Crew.run)
        case "loses its predecessor":
            newcomer.Newcomer.tell_done = lose_predecessor
        case "dies unsettled":
            Heritage.settle = die
        case "few files":
            from proxy.control import opening
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            few = ({few}, hard)  # the next life can have more
            opening.raise_file_limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few)
        case "stranger":
            from proxy.control import predecessor
            predecessor.VERSION = 99
sys.argv[0] = "sockpair"
runpy.run_module("proxy", run_name="__main__", alter_sys=True)
"""
"""A sockpair whose successors have the fault that a file names."""


@asynccontextmanager
async def faulty(settings: Settings) -> AsyncIterator[tuple[Lives, Path]]:
    mode = settings.folder / "mode"
    mode.write_text("")
    script = settings.folder / "faulty.py"
    victim = settings.folder / "victim"
    script.write_text(PROGRAM.format(mode=str(mode), few=FEW, victim=str(victim)))
    async with lives(settings, [sys.executable, script, "run", "-c", settings.file]) as running:
        yield running, mode


@asynccontextmanager
async def talking(
    stage: Stage, workers: int, survive: str, **engine: Any
) -> AsyncIterator[tuple[Chatter, tuple[Forward, Forward], Lives, Path]]:
    """A crowd that talks through one, by TCP and UDP: it, both listeners, the lives, the fault."""
    async with chatting() as chatter:
        keys = {"survive": survive}
        web = GroupForward("web", "tcp", [chatter.tcp], keys=keys)
        dns = GroupForward("dns", "udp", [chatter.udp], keys=keys)
        async with faulty(stage.settings(web, dns, workers=workers, **engine)) as (running, fault):
            talk(chatter, web, dns, "first")
            await chatter.wait_words()
            yield chatter, (web, dns), running, fault
            chatter.nursery.cancel_scope.cancel()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("mode", "survive"),
    [
        ("dies", "restart"),
        ("dies half-way", "restart"),
        ("dies with all", "restart"),
        ("dies half-way", "crash"),
        ("dies with all", "crash"),
        ("dies after its worker", "crash"),
    ],
)
async def test_a_successor_that_dies_takes_nothing_along(
    stage: Stage, mode: str, workers: int, survive: str
) -> None:
    async with talking(stage, workers, survive) as (chatter, both, running, fault):
        fault.write_text(mode)
        code, errors, _ = await running.upgrade()
        assert code == 1
        assert "the new process ended" in errors
        talk(chatter, *both, "second")
        await chatter.wait_words()
        assert '"close_reason"' not in running.first.story(), "nobody tells of an end"
        metrics = await running.sockpair.metrics()
        assert metrics.sum("sockpair_flows_opened_total") == 4 * TALKERS
        assert metrics.sum("sockpair_flows") == 4 * TALKERS
        fault.write_text("")
        assert (await running.upgraded())["flows"] == 4 * TALKERS
        await chatter.wait_words()


@pytest.mark.parametrize(("workers", "survive"), [(1, "crash"), (2, "crash"), (2, "restart")])
async def test_a_predecessor_that_is_killed_when_it_has_given_all_takes_nothing_along(
    stage: Stage, workers: int, survive: str
) -> None:
    """Who follows it leaves alone what it kept for safety: the successor serves that."""
    async with talking(stage, workers, survive) as (chatter, _, running, fault):
        victim = (await running.sockpair.status())["workers"][0]["pid"]
        (running.settings.folder / "victim").write_text(str(victim))
        fault.write_text("loses its predecessor")
        assert (await running.upgraded())["flows"] == 2 * TALKERS
        assert not is_running(victim)
        await chatter.wait_words()
        metrics = await running.sockpair.metrics()
        assert metrics.sum("sockpair_flows_lost_total") == 0
        assert metrics.sum("sockpair_flows") == 2 * TALKERS
        begun = {each["pid"] for each in running.sockpair.log_records("worker_started")}
        there = {each["pid"] for each in (await running.sockpair.status())["workers"]}
        await until(lambda: not any(map(is_running, begun - there)), "the end of the others")


@pytest.mark.parametrize("survive", ["restart", "crash"])
@pytest.mark.parametrize("workers", [1, 2])
async def test_flows_of_a_successor_that_dies_with_the_last_word_drain_in_the_old_process(
    stage: Stage, workers: int, survive: str
) -> None:
    going = talking(stage, workers, survive, drain_timeout="60s")
    async with going as (chatter, _, running, fault):
        fault.write_text("dies unsettled")
        await running.upgrade()
        await chatter.wait_words()
        await until(lambda: '"successor_died"' in running.first.story(), "the end to be seen")
        await chatter.wait_words()
        assert len(chatter.ways) == 2 * TALKERS, "the same flows"


@pytest.mark.parametrize("workers", [1, 2])
async def test_flows_that_a_successor_has_no_descriptors_for_stay_until_one_has(
    stage: Stage, workers: int
) -> None:
    async with chatting() as chatter, AsyncExitStack() as idle:
        web, dns = Forward("web", "tcp", [chatter.tcp]), Forward("dns", "udp", [chatter.udp])
        settings = stage.settings(web, dns, workers=workers)
        async with faulty(settings) as (running, fault):
            talk(chatter, web, dns, "first")
            streams = [
                await idle.enter_async_context(await trio.open_tcp_stream(*web.address))
                for _ in range(FEW)
            ]
            await chatter.wait_words()
            fault.write_text("few files")
            answer = await running.upgraded()
            assert answer["stayed"] >= FEW
            assert answer["flows"] >= TALKERS, "datagrams"
            assert '"hand_over_failed"' in running.first.story()
            await chatter.wait_words()
            for stream in streams:
                await stream.send_all(b"?")
                assert await stream.receive_some(1) == b"?"
            fault.write_text("")
            assert (await running.upgraded())["stayed"] == 0
            await chatter.wait_words()
            for stream in streams:
                await stream.send_all(b"!")
                assert await stream.receive_some(1) == b"!"
            chatter.nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_successor_that_hangs_is_ended(stage: Stage) -> None:
    async with chatting() as chatter:
        web = Forward("web", "tcp", [chatter.tcp])
        async with faulty(stage.settings(web)) as (running, fault):
            chatter.begin("one", "tcp", web.address, "127.0.0.2")
            fault.write_text("hangs")
            code, errors, _ = await running.upgrade()
            assert code == 1
            assert "not ready within" in errors
            await chatter.wait_words()
            chatter.nursery.cancel_scope.cancel()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_predecessor_of_another_version_drains(stage: Stage, workers: int) -> None:
    async with chatting() as chatter:
        web, dns = Forward("web", "tcp", [chatter.tcp]), Forward("dns", "udp", [chatter.udp])
        settings = stage.settings(web, dns, workers=workers, drain_timeout="60s")
        async with faulty(settings) as (running, fault):
            chatter.begin("one", "tcp", web.address, "127.0.0.2")
            await chatter.wait_words()
            fault.write_text("stranger")
            answer = await running.upgraded()
            assert answer["flows"] == 0
            await chatter.wait_words()
            assert "it drains" in running.first.story()
            chatter.begin("two", "tcp", web.address, "127.0.0.2")
            await chatter.wait_words()
            assert len(await running.sockpair.flows()) == 1, "the new one has it"
            chatter.nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.peers("iperf3", "redis-server", "redis-benchmark")
@pytest.mark.parametrize("workers", [1, 2])
async def test_real_programs_do_not_notice_an_upgrade(stage: Stage, workers: int) -> None:
    """Both go on until the upgrade is over, and tell of any error by their exit codes."""
    iperf3, redis = await stage.iperf3(), await stage.redis()
    bulk, cache = Forward("bulk", "tcp", [iperf3.text]), Forward("cache", "tcp", [redis.text])
    async with lives(stage.settings(bulk, cache, workers=workers)) as running:
        measure = ["--client", bulk.host, "--port", str(bulk.port), "--bidir", "--json"]
        load = ["-h", cache.host, "-p", str(cache.port), "-t", "set,get", "-c", "20", "-l", "-q"]
        async with trio.open_nursery() as nursery:
            tell = partial(trio.run_process, capture_stdout=True, check=True)
            client = await nursery.start(tell, [peer("redis-benchmark"), *load])
            result = await nursery.start(tell, [peer("iperf3"), *measure, "--time", "20"])
            await until(lambda: _moves(running), "flows that move", 3 * PATIENCE)
            answer = await running.upgraded()
            assert answer["flows"] >= 23
            assert client.poll() is None
            await result.wait()
            client.terminate()
            nursery.cancel_scope.cancel()
        metrics = await running.sockpair.metrics()
        internal = metrics.sum("sockpair_flows_closed_total", reason="internal")
        assert (result.returncode, internal) == (0, 0)


async def _moves(running: Lives) -> bool:
    rows = await running.sockpair.flows()
    return len(rows) >= 23 and all(row["original"]["bytes"] for row in rows)
