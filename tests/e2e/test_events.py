"""The event stream of a real sockpair, as curl reads it: replayed, it is the table.

A reader who knows nothing but the messages must know, whenever all is told, which flows are live
and how each of the others ended: with one worker and with two, and when a worker dies.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.program import Program, output_of, peer, program
from tests.e2e.sockets import (
    connect,
    datagram_client,
    echo,
    exchange,
    listen,
    listen_datagrams,
    say,
)
from tests.e2e.subject import COMMAND, Forward, Sockpair

Message = dict[str, Any]


class Replay:
    """What somebody knows who has only read the messages.

    Attributes:
        live: the rows of live flows.
        closed: the last rows of those that ended.
        kinds: every message's event.

    """

    def __init__(self, text: str) -> None:
        self.live: dict[int, Message] = {}
        self.closed: dict[int, Message] = {}
        self.kinds: list[str] = []
        numbers = []
        for message in _messages(text):
            self.kinds.append(message["event"])
            self._hear(message)
            if message["event"] not in {"flow", "counters"}:
                numbers.append(message["seq"])
        assert numbers == sorted(numbers)

    def _hear(self, message: Message) -> None:
        match message["event"]:
            case "snapshot":
                self.live = {}
            case "closed":
                self.live.pop(message["flow"]["id"], None)
                self.closed[message["flow"]["id"]] = message["flow"]
            case "counters":
                for counts in message["flows"]:
                    if counts["id"] in self.live:
                        self.live[counts["id"]] |= counts
            case "live" | "gap" | "heartbeat":
                pass
            case _:
                self.live[message["flow"]["id"]] = message["flow"]


def _messages(text: str) -> list[Message]:
    """Server-sent events, the last of which may not be whole yet."""
    whole = text.rpartition("\n\n")[0]
    found = []
    for block in filter(None, whole.split("\n\n")):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        message: Message = json.loads(fields["data"])
        assert fields["event"] == message["event"]
        assert "id" not in fields or int(fields["id"]) == message["seq"]
        found.append(message)
    return found


@asynccontextmanager
async def curl(stage: Stage, sockpair: Sockpair, query: str) -> AsyncIterator[Program]:
    """Follow the stream with curl, from the end of the snapshot on."""
    url = f"http://127.0.0.1:{sockpair.settings.admin_port}/api/v1/events?{query}"
    command = [peer("curl"), "-sN", "--noproxy", "*", "-H", "Accept: text/event-stream", url]
    output = stage.folder / "curl.out"
    async with program(
        command, stage.folder, lambda: "event: live" in output.read_text(), name="curl"
    ) as following:
        yield following
        await following.stop(signal.SIGKILL)


def replay(following: Program) -> Replay:
    return Replay(following.output.read_text())


def unsampled(row: Message) -> Message:
    """A row without what is looked at now and then, and is no event."""
    return {key: value for key, value in row.items() if key not in {"legs", "stalled"}}


@pytest.mark.peers("curl")
@pytest.mark.parametrize("workers", [1, 2])
async def test_the_stream_replayed_is_the_table(stage: Stage, workers: int) -> None:
    tcp, udp = await listen(stage.nursery, echo), await listen_datagrams(stage.nursery)
    web, dns = Forward("web", "tcp", [tcp]), Forward("dns", "udp", [udp])
    dead = Forward("dead", "tcp", ["127.0.0.1:9"])
    sockpair = await stage.sockpair(web, dns, dead, workers=workers)
    async with await connect(web.address) as before:
        await say(before, b"before")
        async with curl(stage, sockpair, "counters=true") as following:
            for _ in range(5):
                async with await connect(web.address) as client:
                    await say(client, bytes(1000))
            async with datagram_client(dns.address) as client:
                assert await exchange(client, b"ask") == b"ask"
            await output_of(peer("curl"), "-s", f"http://{dead.text}/", status=None)
            await say(before, bytes(5000))

            async def is_known() -> bool:
                known = replay(following)
                rows = await sockpair.flows()
                told = [unsampled(row) for row in known.live.values()]
                return len(known.closed) == 6 and told == [unsampled(row) for row in rows]

            await until(is_known, "the replay is the table")
            known = replay(following)
            recent = {row["id"]: row for row in await sockpair.flows(recent="true")}
            assert known.closed == recent
            assert {row["state"] for row in known.live.values()} == {"established", "assured"}
            assert known.kinds.count("opened") == 7
            assert known.kinds.count("established") == 5
            assert known.kinds.count("assured") == 1
            assert known.kinds.count("half_closed") == 5
            assert "gap" not in known.kinds


@pytest.mark.peers("curl")
async def test_a_worker_that_dies_is_a_gap_and_then_all_is_known_again(stage: Stage) -> None:
    web = Forward("web", "tcp", [await listen(stage.nursery, echo)])
    sockpair = await stage.sockpair(web, workers=2)
    async with await connect(web.address) as client:
        await say(client, b"hello")
        (row,) = await sockpair.wait_flows(1, state="established")
        async with curl(stage, sockpair, "listener=web") as following:
            assert [*replay(following).live] == [row["id"]]
            status = json.loads(await sockpair.get("/api/v1/status"))
            (pid,) = [each["pid"] for each in status["workers"] if each["flows"]]
            os.kill(pid, signal.SIGKILL)

            async def is_known() -> bool:
                known = replay(following)
                return "gap" in known.kinds and not known.live and known.kinds[-1] == "live"

            await until(is_known, "a gap, and a snapshot without the flow")

            async def is_served() -> bool:
                try:
                    async with await connect(web.address) as another:
                        await say(another, b"again")
                except (OSError, trio.BrokenResourceError, AssertionError):
                    return False
                return bool(replay(following).closed)

            await until(is_served, "the next worker's flows are told, too")


async def test_find_answers_for_every_worker_and_family_live_and_closed(stage: Stage) -> None:
    tcp, udp = await listen(stage.nursery, echo), await listen_datagrams(stage.nursery, "::1")
    web = Forward("web", "tcp", [tcp], host="::1")
    dns = Forward("dns", "udp", [udp], host="::1")
    sockpair = await stage.sockpair(web, dns, workers=2)

    async def found(address: str) -> list[int]:
        words = ("find", address, "-o", "json", "--admin", sockpair.settings.admin)
        return [row["id"] for row in json.loads(await output_of(*COMMAND, *words))]

    async with await connect(web.address) as client, datagram_client(dns.address) as other:
        await say(client, b"hello")
        await exchange(other, b"ask")
        rows = await sockpair.wait_flows(2)
        for row in rows:
            for address in (row["client"]["remote"], row["endpoint"]["local"]):
                assert await found(address) == [row["id"]]
        await sockpair.ask("DELETE", "/api/v1/flows?all=true")
    await sockpair.wait_flows(0)
    for row in rows:
        for address in (row["client"]["remote"], row["endpoint"]["local"]):
            assert await found(address) == [row["id"]]
