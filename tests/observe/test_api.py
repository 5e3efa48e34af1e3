"""What each path tells, which questions it refuses and why, and who may change what."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest
import structlog.testing
import trio

from proxy.core.flow import CloseReason
from proxy.core.live_limit import ORDERS_MAX, LimitValues
from proxy.core.query import FlowQuery
from proxy.observe.params import (
    DRAINING,
    EXPLAINING,
    KILLING,
    LIMITING,
    LISTING,
    PARAMS,
    RELOADING,
    STREAMING,
    read_params,
)
from tests.observe.admin import Answer, admin_server, ask
from tests.observe.fake_relay import FakeRelay, FakeSteward

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def relay() -> FakeRelay:
    relay = FakeRelay()
    relay.open_tcp(("192.0.2.7", 51000), original=100, reply=5000)
    relay.open_tcp(("198.51.100.9", 52000), original=9)
    relay.open_udp()
    relay.end(relay.open_tcp(("192.0.2.8", 53000)), CloseReason.CLIENT_RESET)
    return relay


async def get(relay: FakeRelay, folder: Path, target: str) -> Answer:
    async with admin_server(relay, folder) as admin:
        return await admin.get(target)


async def ids(relay: FakeRelay, folder: Path, query: str) -> list[int]:
    answer = await get(relay, folder, f"/api/v1/flows{query}")
    assert answer.status == 200, answer
    return [row["id"] for row in answer.json["flows"]]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", [1, 2, 3]),
        ("?listener=web", [1, 2]),
        ("?client=192.0.2.0/24", [1]),
        ("?client=192.0.2.7", [1]),
        ("?client=2001:db8::/32", [3]),
        ("?endpoint=10.0.0.0/8", [1, 2]),
        ("?state=unreplied", [3]),
        ("?transport=udp", [3]),
        ("?min_bytes=1000", [1]),
        ("?server_name=www.example.org", []),
        ("?min_bytes=4KiB", [1]),
        ("?sort=bytes", [1, 2, 3]),
        ("?limit=1", [1]),
        ("?limit=0", [1, 2, 3]),
        ("?recent=true", [4]),
        ("?recent=false", [1, 2, 3]),
        ("?evictable=true", [3, 1, 2]),
        ("?evictable=true&newcomer=tcp&limit=2", [3, 1]),
        ("?evictable=true&newcomer=udp", [3]),
        ("?evictable=true&listener=web", [1, 2]),
        ("?evictable=false", [1, 2, 3]),
        ("?address=198.51.100.9:52000", [2]),
        ("?address=%5B2001:db8::7%5D:5353", [3]),
        ("?address=10.0.0.9:40001", [1]),
        ("?port=40001", [1]),
        ("?port=5353", [3]),
        ("?client=192.0.2.7:51000", [1]),
        ("?client=192.0.2.7:51001", []),
        ("?client=::ffff:192.0.2.7", [1]),
        ("?client=::ffff:192.0.2.0/120", [1]),
        ("?client=::ffff:198.51.100.0/120", [2]),
        ("?client=::/0", [3]),
        ("?client=%5B::ffff:192.0.2.7%5D:51000", [1]),
        ("?address=%5B::ffff:198.51.100.9%5D:52000", [2]),
        ("?endpoint=10.0.0.1:80", [1, 2]),
        ("?state=Unreplied", [3]),
        ("?transport=UDP", [3]),
    ],
)
async def test_filters(relay: FakeRelay, tmp_path: Path, query: str, found: list[int]) -> None:
    assert await ids(relay, tmp_path, query) == found


async def test_matched_counts_also_what_the_limit_hides(relay: FakeRelay, tmp_path: Path) -> None:
    answer = await get(relay, tmp_path, "/api/v1/flows?limit=1")
    assert answer.json["matched"] == 3
    assert len(answer.json["flows"]) == 1
    assert answer.headers["content-type"] == "application/json"


async def test_many_rows_are_whole(tmp_path: Path) -> None:
    relay = FakeRelay()
    for port in range(1, 351):
        relay.open_tcp(("192.0.2.7", port))
    assert await ids(relay, tmp_path, "") == [*range(1, 351)]


async def test_who_accepts_lines_gets_the_same_rows_one_a_line(
    relay: FakeRelay, tmp_path: Path
) -> None:
    async with admin_server(relay, tmp_path) as admin:
        for query, matched in (("limit=2", "3"), ("min_bytes=10GiB", "0")):
            whole = (await admin.get(f"/api/v1/flows?{query}")).json
            lines = await admin.get(f"/api/v1/flows?{query}", accept="application/x-ndjson")
            assert [json.loads(line) for line in lines.body.splitlines()] == whole["flows"]
            assert lines.headers["content-type"] == "application/x-ndjson"
            assert lines.headers["sockpair-matched"] == matched


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("client=10.0.0.0/33", ['"client"', "10.0.0.0/33", "2001:db8::/32"]),
        ("state=open", ['"state"', '"open"', "established"]),
        ("transport=sctp", ['"transport"', "tcp, udp"]),
        ("min_bytes=lots", ['"min_bytes"', "lots", "10MiB"]),
        ("sort=size", ['"sort"', '"size"', "bytes"]),
        ("server_name=b%C3%BCcher", ['"server_name"', "www.example.org"]),
        ("limit=-1", ['"limit"', "-1", "whole number"]),
        ("limit=" + "9" * 30, ['"limit"']),
        ("recent=maybe", ['"recent"', "true or false"]),
        ("evictable=maybe", ['"evictable"', "true or false"]),
        ("evictable=true&newcomer=unix", ['"newcomer"', '"unix"', "tcp, udp"]),
        ("newcomer=udp", ['"newcomer"', "only with evictable=true"]),
        ("evictable=true&sort=bytes", ['"sort"', "not with evictable"]),
        ("evictable=true&recent=true", ['"recent"', "not with evictable"]),
        ("address=web:80", ['"address"', "web:80"]),
        ("listener=wbe", ['"wbe"', "web, dns"]),
        ("port=0", ['"port"', "1 to 65535"]),
        ("port=65536", ['"port"', "1 to 65535"]),
        ("client=web:80", ['"client"', "192.0.2.1:80"]),
        ("lstener=web", ['"lstener"', 'did you mean "listener"?']),
        ("limit=1&limit=2", ['"limit"', "twice"]),
        ("all=true", ['"all"', "known here"]),
        ("&".join("limit=1" for _ in range(40)), ["fields"]),
    ],
)
async def test_a_bad_question_is_400_and_taught(
    relay: FakeRelay, tmp_path: Path, query: str, words: list[str]
) -> None:
    answer = await get(relay, tmp_path, f"/api/v1/flows?{query}")
    assert answer.status == 400
    for word in words:
        assert word in answer.json["error"]


async def test_a_refused_value_is_told_apart_from_its_parameter(
    relay: FakeRelay, tmp_path: Path
) -> None:
    """The command knows the parameter as an option."""
    async with admin_server(relay, tmp_path) as admin:
        for query in ("min_bytes=1K", "listener=wbe"):
            answer = (await admin.get(f"/api/v1/flows?{query}")).json
            name = query.partition("=")[0]
            assert answer["parameter"] == name
            assert answer["error"] == f'parameter "{name}": {answer["reason"]}'


def test_every_parameter_can_be_read() -> None:
    named = {*LISTING, *KILLING, *RELOADING, *DRAINING, *LIMITING, *STREAMING, *EXPLAINING}
    assert named == {*PARAMS}
    assert read_params("", ()) == {}


async def test_one_flow(relay: FakeRelay, tmp_path: Path) -> None:
    async with admin_server(relay, tmp_path) as admin:
        assert (await admin.get("/api/v1/flows/2")).json["id"] == 2
        assert (await admin.get("/api/v1/flows/4")).json["close_reason"] == "client_reset"
        assert (await admin.get("/api/v1/flows/99")).status == 404
        assert (await admin.get("/api/v1/flows/x")).status == 400
        assert (await admin.get("/api/v1/flows/")).status == 404


async def test_find_shows_live_flows_first(relay: FakeRelay, tmp_path: Path) -> None:
    async with admin_server(relay, tmp_path) as admin:
        found = (await admin.get("/api/v1/find?address=10.0.0.1:80")).json
        assert [row["id"] for row in found["flows"]] == [1, 2, 4]
        assert found["matched"] == 3
        none = await admin.get("/api/v1/find?address=10.0.0.1:81")
        assert none.json == {"flows": [], "matched": 0, "silent": []}
        assert (await admin.get("/api/v1/find")).status == 400
        by_port = (await admin.get("/api/v1/find?port=80")).json
        assert [row["id"] for row in by_port["flows"]] == [1, 2, 4]


async def test_status_listeners_upstreams(relay: FakeRelay, tmp_path: Path) -> None:
    async with admin_server(relay, tmp_path) as admin:
        assert (await admin.get("/api/v1/status")).json["version"] == "1.2.3"
        listeners = (await admin.get("/api/v1/listeners")).json["listeners"]
        upstreams = (await admin.get("/api/v1/upstreams")).json["upstreams"]
        assert (await admin.get("/api/v1/status?x=1")).status == 400
    assert [(row["listener"], row["listening"]) for row in listeners] == [
        ("web", ["0.0.0.0:8080"]),
        ("dns", ["[::]:53"]),
    ]
    assert [row["survive"] for row in listeners] == ["crash", "restart"]
    assert listeners[0]["opened"] == 3
    for direction in ("original", "reply"):
        web, dns = (row[direction] for row in listeners)
        assert web["packets_received"] is web["packets_sent"] is None
        assert dns["packets_received"] == dns["packets_sent"] == 0
    assert [(row["upstream"], len(row["endpoints"])) for row in upstreams] == [
        ("web", 1),
        ("resolvers", 1),
    ]
    assert upstreams[0]["queue"] == {
        "waiting": 0,
        "ceiling": 0,
        "waited": 0,
        "turned_away": 0,
        "expired": 0,
    }
    assert upstreams[1]["queue"] is None


async def test_a_part_of_the_flows_is_not_taken_for_the_whole(
    relay: FakeRelay, tmp_path: Path
) -> None:
    async with admin_server(relay, tmp_path) as admin:
        assert (await admin.get("/api/v1/flows")).json["silent"] == []
        lines = await admin.get("/api/v1/flows", accept="application/x-ndjson")
        assert "sockpair-silent" not in lines.headers
        relay.silent = [0, 2]
        for path in ("/api/v1/flows", "/api/v1/flows?min_bytes=10GiB", "/api/v1/find?port=53"):
            assert (await admin.get(path)).json["silent"] == [0, 2]
        lines = await admin.get("/api/v1/flows", accept="application/x-ndjson")
        assert lines.headers["sockpair-silent"] == "0,2"
        assert (await admin.get("/api/v1/flows/1")).status == 200
        unsure = await admin.get("/api/v1/flows/99")
        assert unsure.status == 503
        assert unsure.json["error"] == "workers 0, 2 do not answer, and may have flow 99"
        flows = (await admin.get("/metrics/flows")).body
        assert b"\nsockpair_flow_workers_silent 2.0\n" in flows


async def test_it_is_not_alive_when_no_worker_answers(relay: FakeRelay, tmp_path: Path) -> None:
    async with admin_server(relay, tmp_path) as admin:
        assert b"\nsockpair_workers_silent 0.0\n" in (await admin.get("/metrics")).body
        relay.silent = [0]
        answer = await admin.get("/healthz")
        assert (answer.status, answer.json["error"]) == (503, "no worker answers")
        assert b"\nsockpair_workers_silent 1.0\n" in (await admin.get("/metrics")).body


async def test_metrics_add_what_the_sink_dropped(relay: FakeRelay, tmp_path: Path) -> None:
    answer = await get(relay, tmp_path, "/metrics")
    assert b"sockpair_log_records_dropped_total 7.0" in answer.body
    assert answer.headers["content-type"].startswith("text/plain; version=")


async def test_ready_says_why_not(relay: FakeRelay, tmp_path: Path) -> None:
    async with admin_server(relay, tmp_path) as admin:
        assert (await admin.get("/readyz")).status == 200
        relay.not_ready = ["upstream web: no endpoint is up"]
        relay.draining = True
        answer = await admin.get("/readyz")
        assert (await admin.get("/healthz")).status == 200
    assert answer.status == 503
    assert answer.json["reasons"] == ["draining", "upstream web: no endpoint is up"]
    assert "no endpoint is up" in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/api/v1/flow", 'did you mean "/api/v1/flows"?'),
        ("/flows", 'did you mean "/api/v1/flows"?'),
        ("/metric/", 'did you mean "/metrics"?'),
        ("/api/v1/bogus", '"/" lists what there is'),
        ("/api/v1/flows/", 'did you mean "/api/v1/flows"?'),
        ("/nothing", '"/" lists what there is'),
        ("//", 'did you mean "/"?'),
    ],
)
async def test_unknown_paths_name_the_nearest(
    relay: FakeRelay, tmp_path: Path, path: str, hint: str
) -> None:
    answer = await get(relay, tmp_path, path)
    assert answer.status == 404
    assert hint in answer.json["error"]


async def test_index_lists_what_there_is(relay: FakeRelay, tmp_path: Path) -> None:
    answer = await get(relay, tmp_path, "/")
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"/api/v1/find" in answer.body


async def test_a_browser_gets_the_page_and_its_files(relay: FakeRelay, tmp_path: Path) -> None:
    async with admin_server(relay, tmp_path) as admin:
        answer = await admin.get("/", accept="text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for name in re.findall(rb'"(/page/[^"]+)"', answer.body):
            file = await admin.get(name.decode())
            assert file.status == 200, name
            assert "html" not in file.headers["content-type"]
        missing = await admin.get("/page/..%2fapi.py")
        assert missing.status == 404


async def test_tcp_only_reads(relay: FakeRelay, tmp_path: Path) -> None:
    async with admin_server(relay, tmp_path) as admin, await admin.by_tcp() as stream:
        for target in ("/api/v1/flows/1", "/api/v1/flows?all=true"):
            answer = await ask(stream, "DELETE", target)
            assert answer.status == 403
            assert "Unix socket" in answer.json["error"]
        answer = await ask(stream, "POST", "/api/v1/flows", body=b"{}")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert len(relay.live) == 3


async def test_405_on_the_unix_socket_allows_more(relay: FakeRelay, tmp_path: Path) -> None:
    async with admin_server(relay, tmp_path) as admin:
        answer = await admin.control("PUT", "/api/v1/flows/1")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, DELETE")


async def test_kill_one_is_logged_with_who_asked(relay: FakeRelay, tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with admin_server(relay, tmp_path) as admin:
            assert (await admin.control("DELETE", "/api/v1/flows/1")).json == {"killed": 1}
            assert (await admin.control("DELETE", "/api/v1/flows/1")).status == 404
    assert [flow.id for flow in relay.live] == [2, 3]
    assert len(logs) == 1, "what killed nothing is not worth a warning"
    assert logs[0]["event"] == "flows_killed"
    assert logs[0]["by"] == f"pid {os.getpid()} uid {os.getuid()}"
    assert logs[0]["asked"] == "/api/v1/flows/1"


@pytest.mark.parametrize(
    ("query", "killed"), [("?listener=web", 2), ("?all=true", 3), ("?transport=udp", 1)]
)
async def test_kill_by_filter(relay: FakeRelay, tmp_path: Path, query: str, killed: int) -> None:
    async with admin_server(relay, tmp_path) as admin:
        answer = await admin.control("DELETE", f"/api/v1/flows{query}")
    assert answer.json == {"killed": killed}
    assert len(relay.live) == 3 - killed


@pytest.mark.parametrize("query", ["", "?all=false", "?all=true&listener=web", "?limit=1"])
async def test_killing_needs_to_be_meant(relay: FakeRelay, tmp_path: Path, query: str) -> None:
    async with admin_server(relay, tmp_path) as admin:
        assert (await admin.control("DELETE", f"/api/v1/flows{query}")).status == 400
    assert len(relay.live) == 3


async def test_encoding_gives_way_to_others(tmp_path: Path) -> None:
    """A listing of thousands of rows lets another task run again and again."""
    relay = FakeRelay()
    for port in range(1, 5001):
        relay.open_tcp(("192.0.2.7", port))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with admin_server(relay, tmp_path) as admin, trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        answer = await admin.get("/api/v1/flows")
        nursery.cancel_scope.cancel()
    assert answer.json["matched"] == 5000
    assert turns > 5000 / 100


async def test_reload_and_drain_are_for_the_admin_socket(relay: FakeRelay, tmp_path: Path) -> None:
    steward = FakeSteward()
    async with admin_server(relay, tmp_path, steward=steward) as admin:
        for path in ("/api/v1/reload", "/api/v1/drain?listener=web"):
            async with await admin.by_tcp() as stream:
                assert (await ask(stream, "POST", path)).status == 403
            assert (await admin.get(path)).status == 405
            assert (await admin.control("GET", path)).status == 405
    assert steward.asked == []


async def test_limits_are_read_by_anybody_and_set_on_the_admin_socket(
    relay: FakeRelay, tmp_path: Path
) -> None:
    steward = FakeSteward()
    async with admin_server(relay, tmp_path, steward=steward) as admin:
        for method, path in (
            ("POST", "/api/v1/limits?listener=web&flows=1"),
            ("DELETE", "/api/v1/limits/1"),
        ):
            async with await admin.by_tcp() as stream:
                assert (await ask(stream, method, path)).status == 403
        assert not len(steward.books)
        query = "?client=192.0.2.0/24&bandwidth=1MiB/s&flow_bandwidth=8kbit/s&bytes=1KiB&for=10m"
        row = (await admin.control("POST", f"/api/v1/limits{query}")).json
        assert (row["number"], row["client"], row["matched"]) == (1, "192.0.2.0/24", 2)
        assert (row["bandwidth"], row["flow_bandwidth"], row["bytes"]) == (1 << 20, 1000, 1024)
        assert row["until"] - row["since"] == 600
        answer = (await admin.get("/api/v1/limits")).json
        assert answer["orders"] == [row]
        assert answer["configured"][0]["key"] == "limits.flows"
        assert (await admin.control("DELETE", "/api/v1/limits/1")).json == row
        assert (await admin.control("DELETE", "/api/v1/limits/1")).status == 404
        assert (await admin.control("DELETE", "/api/v1/limits/x")).status == 400


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("listener=web", "bandwidth"),
        ("bandwidth=1MiB/s", "listener"),
        ("listener=wbe&flows=1", "web, dns"),
        ("endpoint=10.0.0.1&flows=1", "before a flow has an endpoint"),
        ("listener=web&bandwidth=0MiB/s", "1MiB/s"),
        ("listener=web&flows=-1", "whole number"),
        ("listener=web&flows=1&for=0s", "more than nothing"),
        ("listener=web&state=assured&flows=1", "unknown parameter"),
    ],
)
async def test_a_limit_that_cannot_be_is_taught(
    relay: FakeRelay, tmp_path: Path, query: str, word: str
) -> None:
    steward = FakeSteward()
    async with admin_server(relay, tmp_path, steward=steward) as admin:
        answer = await admin.control("POST", f"/api/v1/limits?{query}")
        assert answer.status == 400
        assert word in answer.json["error"]
    assert not len(steward.books)


async def test_there_is_an_end_to_limits(relay: FakeRelay, tmp_path: Path) -> None:
    steward = FakeSteward()
    for _ in range(ORDERS_MAX):
        steward.books.give(FlowQuery(id=1), LimitValues(bytes=1), "a", 0.0, 0.0)
    async with admin_server(relay, tmp_path, steward=steward) as admin:
        answer = await admin.control("POST", "/api/v1/limits?id=1&bytes=1")
        assert answer.status == 507
        assert "1000 limits" in answer.json["error"]


async def test_a_limit_of_a_flow_that_does_not_live_is_a_mistake(
    relay: FakeRelay, tmp_path: Path
) -> None:
    steward = FakeSteward()
    async with admin_server(relay, tmp_path, steward=steward) as admin:
        for number in (4, 99):  # closed, never there
            answer = await admin.control("POST", f"/api/v1/limits?id={number}&bytes=1")
            assert answer.status == 404
            assert f"no flow {number} is live" in answer.json["error"]
    assert not len(steward.books)


async def test_reload_answers_with_the_plan_or_the_problems(
    relay: FakeRelay, tmp_path: Path
) -> None:
    steward = FakeSteward()
    async with admin_server(relay, tmp_path, steward=steward) as admin:
        assert (await admin.control("POST", "/api/v1/reload")).json["reloaded"]
        for flag in ("1", "true"):
            answer = await admin.control("POST", f"/api/v1/reload?dry_run={flag}")
            assert answer.json["lines"] == ["~ engine.recent: 1 -> 2"]
        steward.problems = ["f:1: no"]
        answer = await admin.control("POST", "/api/v1/reload")
        assert (answer.status, answer.json["problems"]) == (409, ["f:1: no"])
        assert (await admin.control("POST", "/api/v1/reload?x=1")).status == 400
        assert "sockpair_config_last_reload_successful 0.0" in (
            (await admin.get("/metrics")).body.decode()
        )
    assert [dry_run for _, dry_run in steward.asked] == [False, True, True, False]


async def test_drain_names_its_target_or_what_there_is(relay: FakeRelay, tmp_path: Path) -> None:
    steward = FakeSteward()
    async with admin_server(relay, tmp_path, steward=steward) as admin:

        async def drain(query: str) -> Answer:
            return await admin.control("POST", f"/api/v1/drain{query}")

        answer = await drain("?listener=web&timeout=5s")
        assert answer.json == {"draining": [{"listener": "web"}], "timeout": 5.0}
        assert (await drain("?endpoint=10.0.0.1:80&upstream=web")).status == 200
        for wrong in ("", "?listener=web&endpoint=10.0.0.1:80", "?listener=web&timeout=soon"):
            assert (await drain(wrong)).status == 400
        answer = await drain("?listener=wbe")
        assert answer.status == 404
        assert 'there is no listener "wbe"; there are: dns, web' in answer.json["error"]
        assert "10.0.0.53:53" in (await drain("?endpoint=1.2.3.4:5")).json["error"]
    assert steward.asked[:2] == [
        ("drain", "web", None, None, 5.0),
        ("drain", None, "10.0.0.1:80", "web", None),
    ]


async def test_nothing_is_ordered_while_a_successor_takes_over(
    relay: FakeRelay, tmp_path: Path
) -> None:
    steward = FakeSteward()
    steward.is_standing_down = True
    async with admin_server(relay, tmp_path, steward=steward) as admin:
        for path in ("/api/v1/reload", "/api/v1/drain?listener=web", "/api/v1/limits?flows=3"):
            answer = await admin.control("POST", path)
            assert answer.status == 503
            assert "ask again" in answer.json["error"]
        assert (await admin.get("/api/v1/status")).status == 200
    assert steward.asked == []


async def test_an_upgrade_answers_with_the_successor_or_the_problems(
    relay: FakeRelay, tmp_path: Path
) -> None:
    steward = FakeSteward()
    async with admin_server(relay, tmp_path, steward=steward) as admin:
        assert (await admin.get("/api/v1/upgrade")).status == 405
        steward.problems = ["f:1: no"]
        answer = await admin.control("POST", "/api/v1/upgrade")
        assert (answer.status, answer.json["problems"]) == (409, ["f:1: no"])
        steward.problems = []
        answer = await admin.control("POST", "/api/v1/upgrade?dry_run=true")
        assert (answer.json["upgraded"], answer.json["dry_run"]) == (False, True)
        answer = await admin.control("POST", "/api/v1/upgrade")
        assert (answer.json["upgraded"], answer.json["pid"]) == (True, 7)
        rows = (await admin.get("/api/v1/status")).json["predecessors"]
        assert rows == [{"pid": 6, "flows": 1, "draining": True}]
