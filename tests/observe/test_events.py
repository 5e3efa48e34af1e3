"""What readers of the event stream are told: a snapshot, every change, and every gap."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio

from proxy.core.events import EventKind
from proxy.core.flow import State
from proxy.engine import watch
from proxy.observe import events, reader
from proxy.observe.http import Bounds
from tests.e2e.patience import PATIENCE
from tests.observe.admin import Admin, admin_server, read_answer
from tests.observe.fake_relay import FakeRelay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

OPENED, CLOSED, LIMITED = EventKind.OPENED, EventKind.CLOSED, EventKind.LIMITED


class Listener:
    """A client of the stream: the least that can read it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._client = h11.Connection(h11.CLIENT)
        self._text = ""

    async def ask(self, target: str, **headers: str) -> None:
        fields = {"Host": "localhost", **{k.replace("_", "-"): v for k, v in headers.items()}}
        request = h11.Request(method="GET", target=target, headers=list(fields.items()))
        await self.stream.send_all(self._client.send(request))
        self._client.send(h11.EndOfMessage())

    async def part(self, end: str) -> str:
        """Everything up to an end; it is left out."""
        while end not in self._text:
            event = self._client.next_event()
            if event is h11.NEED_DATA:
                self._client.receive_data(await self.stream.receive_some())
            elif isinstance(event, h11.Data):
                self._text += event.data.decode()
            else:
                assert isinstance(event, h11.Response), event
                assert event.status_code == 200, event
        part, _, self._text = self._text.partition(end)
        return part

    async def message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self.part("\n"))
        return message

    async def messages(self, count: int) -> list[dict[str, Any]]:
        return [await self.message() for _ in range(count)]

    async def until(self, event: str) -> list[dict[str, Any]]:
        """All messages up to one of this kind."""
        found = [await self.message()]
        while found[-1]["event"] != event:
            found.append(await self.message())
        return found


@asynccontextmanager
async def listening(admin: Admin, query: str = "", **headers: str) -> AsyncIterator[Listener]:
    with trio.fail_after(PATIENCE):
        async with await admin.by_unix() as stream:
            listener = Listener(stream)
            await listener.ask(f"/api/v1/events?format=ndjson{query}", **headers)
            yield listener


def names(messages: list[dict[str, Any]]) -> list[str]:
    return [each["event"] for each in messages]


async def test_a_snapshot_comes_first_and_then_what_happens(tmp_path: Path) -> None:
    relay = FakeRelay()
    relay.open_tcp()
    async with admin_server(relay, tmp_path) as admin, listening(admin) as listener:
        snapshot = await listener.until("live")
        assert names(snapshot) == ["snapshot", "flow", "live"]
        assert snapshot[0]["matched"] == 1
        assert snapshot[0]["silent"] == []
        page = (await admin.get("/api/v1/flows")).json
        assert snapshot[1]["flow"] == page["flows"][0]
        flow = relay.open_udp()
        relay.happens(OPENED, flow)
        flow.enter(State.ASSURED)
        relay.happens(EventKind.ASSURED, flow)
        relay.happens(LIMITED, flow, "source_bandwidth")
        relay.end(flow)
        relay.happens(CLOSED, flow)
        told = await listener.messages(4)
        assert names(told) == ["opened", "assured", "limited", "closed"]
        first = snapshot[-1]["seq"]
        assert [each["seq"] for each in told] == [first + 1, first + 2, first + 3, first + 4]
        assert [each["flow"]["state"] for each in told] == ["unreplied", *3 * ["assured"]]
        assert told[2]["limit"] == "source_bandwidth"
        assert told[3]["flow"] == (await admin.get(f"/api/v1/flows/{flow.id}")).json


async def test_browsers_get_server_sent_events(tmp_path: Path) -> None:
    relay = FakeRelay()
    async with admin_server(relay, tmp_path) as admin, await admin.by_tcp() as stream:
        listener = Listener(stream)
        await listener.ask("/api/v1/events", Accept="text/event-stream")
        lines = (await listener.part("\n\n")).splitlines()
        assert lines[0] == "event: snapshot"
        assert json.loads(lines[1].removeprefix("data: "))["matched"] == 0
        event, number, data = (await listener.part("\n\n")).splitlines()
        assert event == "event: live"
        assert int(number.removeprefix("id: ")) == json.loads(data.removeprefix("data: "))["seq"]


async def test_lines_are_what_the_accept_header_may_ask_for(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin, await admin.by_tcp() as stream:
        listener = Listener(stream)
        await listener.ask("/api/v1/events", Accept="application/x-ndjson")
        assert (await listener.message())["event"] == "snapshot"


async def test_filters_are_those_of_the_table(tmp_path: Path) -> None:
    relay = FakeRelay()
    one, other = relay.open_tcp(("192.0.2.7", 1)), relay.open_tcp(("192.0.2.8", 2))
    query = "&client=192.0.2.8&event=closed,opened"
    async with admin_server(relay, tmp_path) as admin, listening(admin, query) as listener:
        snapshot = await listener.until("live")
        assert [each["flow"]["id"] for each in snapshot[1:-1]] == [other.id]
        for flow in (one, other):
            relay.happens(LIMITED, flow, "source_bandwidth")
            relay.end(flow)
            relay.happens(CLOSED, flow)
        told = await listener.message()
        assert (told["event"], told["flow"]["id"]) == ("closed", other.id)


async def test_readers_are_told_their_own_and_nothing_twice(tmp_path: Path) -> None:
    relay = FakeRelay()
    web, dns = relay.open_tcp(), relay.open_udp()
    async with (
        admin_server(relay, tmp_path) as admin,
        listening(admin, "&listener=web") as one,
        listening(admin, "&listener=dns") as other,
    ):
        await one.until("live")
        first = (await other.until("live"))[-1]["seq"]
        for _ in range(60):
            relay.happens(LIMITED, dns, "source_bandwidth")
        relay.happens(LIMITED, web, "flow_bandwidth")
        for _ in range(60):
            relay.happens(LIMITED, dns, "source_bandwidth")
        assert (await one.message())["seq"] == first + 61
        told = await other.messages(120)
        numbers = [*range(first + 1, first + 61), *range(first + 62, first + 122)]
        assert [each["seq"] for each in told] == numbers
        assert {each["flow"]["listener"] for each in told} == {"dns"}


async def test_who_wants_no_snapshot_gets_none(tmp_path: Path) -> None:
    relay = FakeRelay()
    flow = relay.open_tcp()
    query = "&snapshot=false"
    async with admin_server(relay, tmp_path) as admin, listening(admin, query) as listener:
        await watched(relay)
        relay.happens(OPENED, flow)
        assert (await listener.message())["event"] == "opened"
        relay.happened.lose()
        assert (await listener.message())["event"] == "gap"
        relay.happens(LIMITED, flow, "source_bandwidth")
        assert (await listener.message())["event"] == "limited"


async def watched(relay: FakeRelay) -> None:
    while not relay.watched:
        await trio.sleep(0.001)


async def test_what_the_relay_could_not_tell_is_a_gap_and_a_new_snapshot(tmp_path: Path) -> None:
    relay = FakeRelay()
    async with admin_server(relay, tmp_path) as admin, listening(admin) as listener:
        await listener.until("live")
        relay.open_tcp()
        relay.happened.lose()
        told = await listener.until("live")
        assert names(told) == ["gap", "snapshot", "flow", "live"]
        assert told[0]["reason"] == "lost"


async def test_a_slow_reader_gets_a_gap_and_a_new_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HELD", 100)
    relay = FakeRelay()
    flow = relay.open_tcp()
    async with admin_server(relay, tmp_path) as admin, listening(admin) as listener:
        first = (await listener.until("live"))[-1]["seq"]
        sent = 0
        while sent < 20_000:  # until the kernel holds no more for who does not read
            relay.happens(LIMITED, flow, "source_bandwidth")
            sent += 1
            if sent % 50 == 0:
                await trio.testing.wait_all_tasks_blocked()
        numbers, told = [first], await listener.message()
        while told["event"] != "gap":
            numbers.append(told["seq"])
            told = await listener.message()
        assert numbers == [*range(first, first + len(numbers))]
        assert (told["reason"], told["seq"]) == ("slow", first + sent)
        assert names(await listener.until("live")) == ["snapshot", "flow", "live"]
        relay.happens(LIMITED, flow, "flow_bandwidth")
        assert (await listener.message())["seq"] == first + sent + 1


async def test_who_comes_back_goes_on_where_it_was(tmp_path: Path) -> None:
    relay = FakeRelay()
    flow = relay.open_tcp()
    async with admin_server(relay, tmp_path) as admin:
        async with listening(admin) as listener:
            number = (await listener.until("live"))[-1]["seq"]
        for _ in range(3):
            relay.happens(LIMITED, flow, "source_bandwidth")
        async with listening(admin, Last_Event_ID=str(number + 1)) as listener:
            assert [each["seq"] for each in await listener.messages(2)] == [number + 2, number + 3]
        async with listening(admin, f"&after={number}") as listener:
            assert (await listener.message())["seq"] == number + 1


@pytest.mark.parametrize("last", ["0", "1", "nonsense", "9" * 17, "9" * 30])
async def test_who_comes_from_where_nobody_knows_gets_a_gap(tmp_path: Path, last: str) -> None:
    async with (
        admin_server(FakeRelay(), tmp_path) as admin,
        listening(admin, Last_Event_ID=last) as listener,
    ):
        told = await listener.until("live")
        assert names(told) == ["gap", "snapshot", "live"]
        assert told[0]["reason"] == "unknown"


async def test_another_filter_is_no_place_to_go_on(tmp_path: Path) -> None:
    """Events that were for nobody have not been kept."""
    async with admin_server(FakeRelay(), tmp_path) as admin:
        async with listening(admin, "&listener=dns") as listener:
            number = (await listener.until("live"))[-1]["seq"]
        async with listening(admin, f"&listener=web&after={number}") as listener:
            assert (await listener.message())["reason"] == "unknown"


async def test_what_flows_move_is_told_to_those_who_want_to_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LOOK", 0.01)
    relay = FakeRelay()
    flow, quiet = relay.open_tcp(("192.0.2.7", 1)), relay.open_tcp(("192.0.2.8", 2))
    relay.moved = [quiet]  # before anybody wanted to know, so that the snapshot has it
    async with (
        admin_server(relay, tmp_path) as admin,
        listening(admin, "&counters=true") as listener,
        listening(admin) as other,
    ):
        await listener.until("live")
        flow.original.bytes = 100
        relay.moved.append(flow)
        told = await listener.message()
        assert told["event"] == "counters"
        (row,) = told["flows"]
        assert row["original"] == {"bytes": 100, "packets": None}
        assert row.keys() == {"id", "last_active", "original", "reply"}
        await other.until("live")
        relay.happens(LIMITED, quiet, "source_bandwidth")
        assert (await other.message())["event"] == "limited"


async def test_silence_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "HEARTBEAT", 0.01)
    async with admin_server(FakeRelay(), tmp_path) as admin, listening(admin) as listener:
        number = (await listener.until("live"))[-1]["seq"]
        told = await listener.message()
        assert (told["event"], told["seq"]) == ("heartbeat", number)


async def test_nobody_is_watched_for_whom_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEPT", 0.02)
    relay = FakeRelay()
    async with admin_server(relay, tmp_path) as admin:
        assert relay.watched == {}
        async with listening(admin) as listener:
            number = (await listener.until("live"))[-1]["seq"]
            assert len(relay.watched) == 1
        with trio.fail_after(PATIENCE):
            while relay.watched:
                await trio.sleep(0.001)
        async with listening(admin, f"&after={number}") as listener:
            told = await listener.until("live")
            assert told[0]["reason"] == "unknown"
            assert told[-1]["seq"] > number  # what was kept is not kept any more


async def test_there_are_only_so_many_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "READERS_MAX", 1)
    async with admin_server(FakeRelay(), tmp_path) as admin:
        async with listening(admin) as listener:
            await listener.until("live")
            assert (await admin.get("/api/v1/events")).status == 503
        with trio.fail_after(PATIENCE):
            while True:
                async with await admin.by_tcp() as stream:
                    again = Listener(stream)
                    await again.ask("/api/v1/events?format=ndjson")
                    try:
                        await again.message()
                        break
                    except AssertionError:  # the first one has left, but that is not known yet
                        await trio.sleep(0.001)


async def test_who_takes_nothing_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 0.02)
    relay = FakeRelay()
    flow = relay.open_tcp()
    bounds = Bounds(response_seconds=0.05, linger_seconds=0.01)
    async with admin_server(relay, tmp_path, bounds) as admin, await admin.by_unix() as stream:
        listener = Listener(stream)
        await listener.ask("/api/v1/events?format=ndjson")
        await listener.until("live")
        while relay.watched:
            for _ in range(1000):
                relay.happens(LIMITED, flow, "source_bandwidth")
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("state=assured", "unknown parameter"),
        ("event=opened,shut", '"event"'),
        ("format=xml", '"format"'),
        ("listener=nobody", "no listener"),
        ("after=-1", '"after"'),
    ],
)
async def test_wrong_questions_are_refused(tmp_path: Path, query: str, word: str) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin:
        answer = await admin.get(f"/api/v1/events?{query}")
        assert answer.status == 400
        assert word in answer.json["error"]


async def test_head_is_answered_and_nobody_watches(tmp_path: Path) -> None:
    relay = FakeRelay()
    async with admin_server(relay, tmp_path) as admin, await admin.by_tcp() as stream:
        client = h11.Connection(h11.CLIENT)
        request = h11.Request(
            method="HEAD", target="/api/v1/events", headers=[("Host", "localhost")]
        )
        await stream.send_all(client.send(request))
        client.send(h11.EndOfMessage())
        answer = await read_answer(stream, client)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert relay.watched == {}


def test_events_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "EVENTS_HELD", 3)
    pending: watch.Pending[int] = watch.Pending()
    for number in range(3):
        pending.put(number)
    assert pending.take() == ([0, 1, 2], False)
    for number in range(5):
        pending.put(number)
    assert pending.take() == ([4], True)
    assert pending.take() == ([], False)
