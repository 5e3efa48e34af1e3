"""Answers of workers as one: the sums are true, and never fall, whoever dies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import __version__
from proxy.core.address import Transport
from proxy.core.counters import CONNECT_FAILURES, EndpointCounters, ListenerCounters
from proxy.core.flow import (
    TRANSITIONS,
    CloseReason,
    CloseSide,
    Direction,
    Drop,
    Flow,
    Refusal,
    State,
)
from proxy.core.queue_counters import QueueCounters
from proxy.core.route_counters import RouteCounters
from proxy.core.sample import Waits
from proxy.engine.merge import (
    beside_counters,
    merge_counters,
    merge_ids,
    merge_status,
    retire_counters,
)
from proxy.engine.port import FlowIds, ListenRow, RelayCounters, RelayStatus

WORKERS = 3
LISTENERS = [("web", Transport.TCP, "origin"), ("dns", Transport.UDP, "resolvers")]
QUEUES = ["origin"]
ROUTES = ["www.example.org", "*"]
ENDPOINTS = [("origin", "10.0.0.1:80"), ("origin", "10.0.0.2:80"), ("resolvers", "10.0.0.3:53")]


@pytest.fixture(autouse=True)
def close_sockets() -> None:
    """There are none here; and the folder's own fixture is for tests that are async."""


class Books:
    """The books of one worker, and the life that fills them."""

    def __init__(self) -> None:
        self.listeners = [ListenerCounters(*listener) for listener in LISTENERS]
        self.endpoints = [EndpointCounters(*endpoint) for endpoint in ENDPOINTS]
        self.routes = [RouteCounters("web", each) for each in ROUTES]
        self.queues = [QueueCounters(upstream) for upstream in QUEUES]
        self.flows: list[list[Flow]] = [[] for _ in LISTENERS]
        self.log_dropped = 0
        self.closed = 0

    def live(self, event: Event, now: float) -> None:
        """Have something happen, where it can."""
        line_up(self.queues[0], event)
        self.routes[event.size % 2].flows += event.what == "open"
        listener = self.listeners[event.listener]
        direction = listener.reply if event.size % 2 else listener.original
        endpoint = self.endpoints[event.size % len(ENDPOINTS)]
        here = self.flows[event.listener]
        match event.what:
            case "open":
                here.append(flow_of(listener, event.size, now))
                endpoint.flows += 1
                endpoint.attempts += 1
                endpoint.ejections += 1
            case "move" if here and (after := TRANSITIONS.get(here[0].state)):
                here[0].enter(min(after))
                listener.connect_duration.observe(event.size / 8, here[0].id, now)
            case "close" if here:
                reasons = list(CloseReason)
                reason = reasons[event.size % len(reasons)]
                here.pop().end(reason, CloseSide.PROXY, now + event.size / 4)
                self.closed += 1
            case "sample":
                listener.samples.taken += 1
                listener.samples.client.observe(event.size / 64, event.size, now)
                listener.samples.client_retransmits += event.size
                listener.samples.add(Waits(*(event.size / weight for weight in (1, 2, 4, 8, 16))))
            case "linger":
                listener.half_closed += event.size / 4
                direction.unsent += event.size
            case "receive":
                direction.received += event.size
                direction.packets += 1
            case "buffer":
                direction.received += event.size
                direction.buffered += event.size
            case "send":
                direction.buffered -= min(event.size, direction.buffered)
            case "discard":
                thrown = min(event.size, direction.buffered)
                direction.buffered -= thrown
                direction.discarded += thrown
            case "fail":
                endpoint.attempt_failed(CONNECT_FAILURES[0], now)
            case "answer":
                endpoint.answered()
            case "refuse":
                listener.refused[Refusal.ACCESS] += 1
                listener.dropped[Drop.KERNEL] += event.size
                self.log_dropped += 1

    def reading(self, now: float) -> RelayCounters:
        return {
            "listeners": [listener.snapshot() for listener in self.listeners],
            "endpoints": [endpoint.snapshot(now) for endpoint in self.endpoints],
            "queues": [queue.snapshot() for queue in self.queues],
            "routes": [route.snapshot() for route in self.routes],
            "table_entries": sum(sum(listener.live.values()) for listener in self.listeners),
            "table_limit": 100,
            "recent_entries": min(self.closed, 10),
            "log_dropped": self.log_dropped,
            "worker_restarts": 0,
        }


def line_up(queue: QueueCounters, event: Event) -> None:
    """Have a flow wait, or wait no more, or find no room."""
    match event.what:
        case "wait":
            queue.ceiling = 5
            queue.waiting += 1
            queue.waited += 1
        case "leave" if queue.waiting:
            queue.waiting -= 1
            queue.expired += event.size % 2
            queue.turned_away += event.size


def flow_of(listener: ListenerCounters, size: int, now: float) -> Flow:
    client = ("192.0.2.7", size)
    first = next(iter(listener.live))
    flow = Flow(size, listener, client, client, Direction(), Direction(), first, now)
    flow.original.bytes, flow.reply.bytes = size, size * size
    return flow


class Event(NamedTuple):
    worker: int
    what: str
    listener: int
    size: int


MOVES = ["receive", "buffer", "send", "discard", "sample", "linger", "wait", "leave"]
HAPPENINGS = ["open", "open", "move", "close", *MOVES, "fail", "answer", "refuse", "die"]
events = st.builds(
    Event,
    st.integers(0, WORKERS - 1),
    st.sampled_from(HAPPENINGS),
    st.integers(0, len(LISTENERS) - 1),
    st.integers(0, 100),
)
lives = st.lists(events, max_size=60)


@st.composite
def readings(draw: st.DrawFn) -> RelayCounters:
    books = Books()
    for event in draw(st.lists(events, max_size=20)):
        books.live(event, 0.0)
    reading = books.reading(1.0)
    if draw(st.booleans()):  # of another configuration
        reading["listeners"].reverse()
        del reading["endpoints"][draw(st.integers(0, 2)) :]
    return reading


def history(life: Sequence[Event]) -> list[RelayCounters]:
    """What the house shows after each event of its workers' lives."""
    workers = [Books() for _ in range(WORKERS)]
    retired = merge_counters([])
    shown = []
    for now, event in enumerate(life):
        if event.what == "die":
            last = workers[event.worker].reading(now)
            retired = merge_counters([retired, retire_counters(last)])
            workers[event.worker] = Books()
        else:
            workers[event.worker].live(event, now)
        shown.append(merge_counters([*(books.reading(now) for books in workers), retired]))
    return shown


def counts(reading: RelayCounters) -> dict[tuple[str, ...], float]:
    """Everything in a reading that may only grow."""
    found: dict[tuple[str, ...], float] = {("log",): reading["log_dropped"]}
    for row in reading["listeners"]:
        name = row["listener"]
        found[name, "opened"] = row["opened"]
        for words in ("closed", "first", "refused", "dropped"):
            found |= {(name, words, word): count for word, count in row[words].items()}
        for side in ("original", "reply"):
            for key, count in row[side].items():
                if isinstance(count, int) and key != "buffered":
                    found[name, side, key] = count
        histograms = {
            "duration": row["duration"],
            "connect_duration": row["connect_duration"],
            "original bytes": row["original"]["flow_bytes"],
            "reply bytes": row["reply"]["flow_bytes"],
            "round trips": row["samples"]["rtt"]["client"],
        }
        found[name, "half_closed"] = row["half_closed"]
        found[name, "samples"] = row["samples"]["taken"]
        found |= {(name, "waits", who): wait for who, wait in row["samples"]["waits"].items()}
        retransmits = row["samples"]["retransmits"]
        found |= {(name, "retransmits", leg): count for leg, count in retransmits.items()}
        for what, histogram in histograms.items():
            found[name, what] = histogram["sum"]
            for bound, count in enumerate(histogram["counts"]):
                found[name, what, str(bound)] = count
    for queue in reading["queues"]:
        for key in ("waited", "turned_away", "expired"):
            found[queue["upstream"], key] = queue[key]  # type: ignore[literal-required]
    found |= {("route", row["route"]): row["flows"] for row in reading["routes"]}
    for end in reading["endpoints"]:
        found[end["endpoint"], "attempts"] = end["attempts"]
        found |= {(end["endpoint"], word): count for word, count in end["failures"].items()}
    return found


def levels(reading: RelayCounters) -> list[int]:
    """Everything that may fall."""
    return [
        reading["table_entries"],
        reading["table_limit"],
        reading["recent_entries"],
        *(count for row in reading["listeners"] for count in row["live"].values()),
        *(row[side]["buffered"] for row in reading["listeners"] for side in ("original", "reply")),
        *(row["flows"] for row in reading["endpoints"]),
        *(row[level] for row in reading["queues"] for level in ("waiting", "ceiling")),
    ]


def balanced(reading: RelayCounters) -> bool:
    """Whether every flow is live or closed, and nothing was sent that was not received."""
    return all(
        row["opened"] == sum(row["closed"].values()) + sum(row["live"].values())
        and sum(row["first"].values()) == sum(row["closed"].values())
        and all(
            0 <= row[side]["sent"] <= row[side]["received"] - row[side]["buffered"]
            for side in ("original", "reply")
        )
        for row in reading["listeners"]
    )


def unordered(reading: RelayCounters) -> object:
    return {
        **reading,
        "listeners": {row["listener"]: row for row in reading["listeners"]},
        "endpoints": {row["endpoint"]: row for row in reading["endpoints"]},
    }


@given(lives)
def test_no_count_falls_when_workers_die(life: list[Event]) -> None:
    shown = [counts(reading) for reading in history(life)]
    for before, after in pairwise(shown):
        assert before.keys() == after.keys()
        assert all(after[key] >= before[key] for key in before)


@given(lives)
def test_every_flow_is_live_or_closed(life: list[Event]) -> None:
    assert all(balanced(reading) for reading in history(life))


@given(lives)
def test_table_holds_what_is_live(life: list[Event]) -> None:
    for reading in history(life):
        live = sum(count for row in reading["listeners"] for count in row["live"].values())
        assert reading["table_entries"] == live
        assert reading["table_limit"] == 100 * WORKERS


@given(readings())
def test_retired_has_counts_and_no_levels(last: RelayCounters) -> None:
    retired = retire_counters(last)
    assert not any(levels(retired))
    assert balanced(retired)
    before, after = counts(last), counts(retired)
    lost = {key: after[key] - before[key] for key in before if after[key] != before[key]}
    live = {row["listener"]: sum(row["live"].values()) for row in last["listeners"]}
    words = (("closed", "internal"), ("first", "proxy"))
    assert lost == {(name, *word): count for name, count in live.items() if count for word in words}
    assert all(row["up"] for row in retired["endpoints"])
    assert retire_counters(retired) == retired


@given(readings(), readings())
def test_one_on_its_way_out_has_flows_and_counts_and_no_room(
    staying: RelayCounters, leaving: RelayCounters
) -> None:
    both = merge_counters([staying, leaving])
    total = merge_counters([staying, beside_counters(leaving)])
    assert counts(total) == counts(both)
    assert [row["live"] for row in total["listeners"]] == [row["live"] for row in both["listeners"]]
    assert [row["waiting"] for row in total["queues"]] == [row["waiting"] for row in both["queues"]]
    assert [row["ceiling"] for row in total["queues"]] == [
        row["ceiling"] for row in staying["queues"]
    ]
    assert total["table_limit"] == staying["table_limit"]


@given(readings(), readings())
def test_retiring_adds_up(one: RelayCounters, other: RelayCounters) -> None:
    apart = merge_counters([retire_counters(one), retire_counters(other)])
    assert retire_counters(merge_counters([one, other])) == apart


@given(readings(), readings(), readings())
def test_adding_is_associative(
    one: RelayCounters, two: RelayCounters, three: RelayCounters
) -> None:
    at_once = merge_counters([one, two, three])
    assert merge_counters([merge_counters([one, two]), three]) == at_once
    assert merge_counters([one, merge_counters([two, three])]) == at_once


@given(st.lists(readings(), max_size=4), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_the_order(parts: list[RelayCounters], random: object) -> None:
    mixed = list(parts)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert unordered(merge_counters(mixed)) == unordered(merge_counters(parts))


@given(readings())
def test_one_stays_what_it_is(reading: RelayCounters) -> None:
    assert merge_counters([reading]) == reading
    assert merge_counters([reading, merge_counters([])]) == reading


@given(st.lists(readings(), max_size=4))
def test_rows_stand_as_first_seen(parts: list[RelayCounters]) -> None:
    merged = merge_counters(parts)
    seen = [row["listener"] for part in parts for row in part["listeners"]]
    assert [row["listener"] for row in merged["listeners"]] == list(dict.fromkeys(seen))


def test_merging_leaves_its_parts_alone() -> None:
    books = Books()
    books.live(Event(0, "open", 0, 1), 0.0)
    one, other = books.reading(0.0), books.reading(0.0)
    merged = merge_counters([one, other])
    retire_counters(one)
    assert one == other == books.reading(0.0)
    assert merged["listeners"][0]["opened"] == 2


def test_one_failure_lately_makes_an_endpoint_down() -> None:
    tried, idle = Books(), Books()
    tried.live(Event(0, "fail", 0, 0), 0.0)
    merged = merge_counters([idle.reading(1.0), tried.reading(1.0)])
    assert [row["up"] for row in merged["endpoints"]] == [False, True, True]
    tried.live(Event(0, "answer", 0, 0), 2.0)
    assert merge_counters([idle.reading(2.0), tried.reading(2.0)])["endpoints"][0]["up"]


def test_lost_flows_have_a_reason_and_no_duration() -> None:
    books = Books()
    for _ in range(3):
        books.live(Event(0, "open", 1, 0), 0.0)
    (row,) = (
        row for row in retire_counters(books.reading(0.0))["listeners"] if row["closed"]["internal"]
    )
    assert (row["listener"], row["closed"]["internal"], sum(row["duration"]["counts"])) == (
        "dns",
        3,
        0,
    )
    assert row["live"] == {State.UNREPLIED: 0, State.ASSURED: 0}


def test_what_was_buffered_was_never_sent() -> None:
    books = Books()
    books.live(Event(0, "receive", 0, 10), 0.0)
    books.live(Event(0, "buffer", 0, 4), 0.0)
    original = retire_counters(books.reading(0.0))["listeners"][0]["original"]
    assert (original["received"], original["sent"], original["buffered"]) == (14, 10, 0)


def status(number: int, not_ready: Sequence[str] = (), *, draining: bool = False) -> RelayStatus:
    shared: ListenRow = {
        "listener": "web",
        "transport": "tcp",
        "local": "0.0.0.0:80",
        "upstream": "origin",
    }
    own: ListenRow = {**shared, "listener": "local", "transport": "unix", "local": "unix:/x"}
    return {
        "version": __version__,
        "pid": number,
        "started": 100.0 - number,
        "draining": draining,
        "drains": [],
        "listening": [shared] if number else [shared, own],
        "flows": 10 + number,
        "workers": [{"pid": number, "flows": 10 + number}],
        "table_limit": 1000,
        "file_descriptors": 20 + number,
        "file_descriptor_limit": 4096,
        "not_ready": list(not_ready),
    }


def test_status_of_several() -> None:
    merged = merge_status([status(0, ["a"]), status(1, ["b", "a"], draining=True), status(2)])
    assert merged == {
        "version": __version__,
        "pid": 0,
        "started": 98.0,
        "draining": True,
        "drains": [],
        "listening": status(0)["listening"],
        "flows": 33,
        "workers": [{"pid": number, "flows": 10 + number} for number in range(3)],
        "table_limit": 3000,
        "file_descriptors": 63,
        "file_descriptor_limit": 3 * 4096,
        "not_ready": ["a", "b"],
    }


def test_status_of_one() -> None:
    assert merge_status([status(0, ["a"])]) == status(0, ["a"])


@given(
    st.lists(st.lists(st.integers(-9, 9).map(float), max_size=20).map(sorted), max_size=4),
    st.integers(0, 30),
)
def test_ids_come_in_the_order_of_the_query(keys: list[list[float]], limit: int) -> None:
    parts: list[FlowIds] = [
        {
            "ids": [100 * worker + n for n in range(len(part))][: limit or None],
            "keys": part[: limit or None],
            "matched": len(part),
            "silent": [],
        }
        for worker, part in enumerate(keys)
    ]
    every = [
        (key, 100 * worker + n) for worker, part in enumerate(keys) for n, key in enumerate(part)
    ]
    expected = sorted(every)[: limit or None]
    assert merge_ids(parts, limit, [7]) == {
        "ids": [id for _, id in expected],
        "keys": [key for key, _ in expected],
        "matched": len(every),
        "silent": [7],
    }
