"""The admin server against clients that are slow, large, malformed, impatient or many."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import structlog.testing
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engine import turns as turns_of_the_pump
from proxy.observe import server
from proxy.observe.api import Api
from proxy.observe.http import PIECE_BYTES, Bounds, HttpConnection, Request, Response
from proxy.observe.server import serve_admin
from tests.e2e.patience import PATIENCE
from tests.observe.admin import admin_server, ask, read_all
from tests.observe.fake_relay import FakeRelay, FakeSteward
from tests.observe.slowloris import Slowloris

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Bounds(request_seconds=0.1, idle_seconds=0.1, response_seconds=0.1, linger_seconds=0.1)
HEAD = b"Host: 127.0.0.1\r\n"


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


async def test_get_and_security_headers(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin:
        answer = await admin.get("/healthz")
    assert (answer.status, answer.body) == (200, b"ok\n")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"] == "default-src 'none'"
    assert "date" in answer.headers


async def test_a_head_that_is_refused_has_no_body_and_the_next_answer_has(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin:
        answer = await admin.raw(b"HEAD / HTTP/1.1\r\n" + HEAD + b"Content-Length: 99999\r\n\r\n")
        assert status_of(answer) == 413
        assert answer.endswith(b"\r\n\r\n")
        answer = await admin.raw(b"HEAD / HTTP/1.1\r\n" + HEAD + b"\r\nno request\r\n\r\n")
        assert status_of(answer) == 200
        assert b"malformed" in answer


async def test_keep_alive_serves_many_requests(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin, await admin.by_tcp() as stream:
        for target in ("/healthz", "/nothing", "/metrics", "/api/v1/flows"):
            answer = await ask(stream, "GET", target)
            assert answer.status == (404 if target == "/nothing" else 200)


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    one = b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n"
    two = b"GET /readyz HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n"
    async with admin_server(FakeRelay(), tmp_path) as admin:
        answer = await admin.raw(one * 3 + two)
    assert answer.count(b"HTTP/1.1 200") == 4
    assert answer.endswith(b"ready\n")


async def test_head_is_get_without_body(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin:
        request = b"HEAD /healthz HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n"
        answer = await admin.raw(request)
    assert status_of(answer) == 200
    assert b"Content-Length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_http_1_0_gets_its_answer_and_the_end(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin:
        answer = await admin.raw(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert status_of(answer) == 200
    assert b"chunked" not in answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9600", "127.0.0.1.evil", "[x]", ""])
async def test_a_stranger_name_in_host_is_refused(tmp_path: Path, host: str) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin:
        answer = await admin.get("/metrics", Host=host)
    assert answer.status == 403
    assert "use an IP address or localhost" in answer.json["error"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.1.2.3:9600", "[::1]:9600", "[::1]", "localhost", "LOCALHOST:80"]
)
async def test_addresses_in_host_are_served(tmp_path: Path, host: str) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin:
        assert (await admin.get("/healthz", Host=host)).status == 200


async def test_host_is_free_on_the_unix_socket(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin, await admin.by_unix() as stream:
        assert (await ask(stream, "GET", "/healthz", Host="anything")).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET http://x/ HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 4000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 70000\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 9999999999999999\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
            b"11170\r\n" + b"x" * 70_000,
            413,
        ),
        (b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: -1\r\n\r\n", 400),
    ],
)
async def test_what_cannot_be_read_is_answered_and_closed(
    tmp_path: Path, request_bytes: bytes, status: int
) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin:
        answer = await admin.raw(request_bytes)
        assert status_of(answer) == status
        assert b'{"error": ' in answer
        assert b"Connection: close" in answer
        assert (await admin.get("/healthz")).status == 200


async def test_a_request_that_trickles_is_ended(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path, QUICK) as admin:
        answer = await admin.raw(b"GET / HTTP/1.1\r\n")
        assert status_of(answer) == 408
        assert await admin.raw(b"") == b""  # not a byte: no answer either


async def test_a_slow_body_is_ended(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path, QUICK) as admin:
        request = b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 10\r\n\r\nabc"
        assert status_of(await admin.raw(request)) == 408


async def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    bounds = replace(Bounds(), idle_seconds=0.1)
    async with admin_server(FakeRelay(), tmp_path, bounds) as admin, await admin.by_tcp() as stream:
        assert (await ask(stream, "GET", "/healthz")).status == 200
        assert await read_all(stream) == b""


async def test_the_body_is_asked_for_when_the_client_waits(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path) as admin, await admin.by_tcp() as stream:
        expecting = b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        await stream.send_all(b"POST / HTTP/1.1\r\n" + HEAD + expecting)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"{}")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 405 ")


async def test_whoever_keeps_us_waiting_longest_makes_room(tmp_path: Path) -> None:
    bounds = replace(Bounds(), connections=2)
    with structlog.testing.capture_logs() as logs:
        async with (
            admin_server(FakeRelay(), tmp_path, bounds) as admin,
            await admin.by_tcp() as one,
            await admin.by_tcp() as two,
        ):
            for stream in (two, one):
                assert (await ask(stream, "GET", "/healthz")).status == 200
            assert (await admin.get("/healthz")).status == 200
            assert await read_all(two) == b""
            answer = await ask(one, "GET", "/metrics")
            assert b"sockpair_admin_connections_refused_total 1.0" in answer.body
            assert (await admin.control("GET", "/healthz")).status == 200  # its own bound
    assert [entry["event"] for entry in logs] == ["admin_connections_full"]


async def test_who_is_being_answered_makes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TAKING_SECONDS", 0.0)
    bounds = replace(Bounds(), connections=2)
    with structlog.testing.capture_logs():
        async with (
            admin_server(FakeRelay(), tmp_path, bounds) as admin,
            await admin.by_tcp() as one,
            await admin.by_tcp() as two,
        ):
            for stream in (one, two):
                await stream.send_all(b"GET /api/v1/events HTTP/1.1\r\n" + HEAD + b"\r\n")
                told = b""
                while b"event: live" not in told:
                    told += await stream.receive_some()
                assert status_of(told) == 200
            await trio.testing.wait_all_tasks_blocked()
            assert await admin.raw(b"") == b""
            assert await admin.raw(b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n") == b""


async def test_who_takes_no_answer_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TAKING_SECONDS", 0.05)
    relay, bounds = FakeRelay(), replace(Bounds(), connections=1)
    for port in range(1, 12_000):
        relay.open_tcp(("192.0.2.7", port))
    with structlog.testing.capture_logs():
        async with admin_server(relay, tmp_path, bounds) as admin, await admin.by_tcp() as slow:
            await slow.send_all(b"GET /api/v1/flows HTTP/1.1\r\n" + HEAD + b"\r\n")
            while not (await admin.raw(b"GET /healthz HTTP/1.0\r\n\r\n")).endswith(b"ok\n"):
                await trio.sleep(0.01)


async def test_a_thousand_who_say_little_keep_nobody_out(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with admin_server(FakeRelay(), tmp_path) as admin:
            with Slowloris(admin.tcp, 1000) as crowd:
                for _ in range(5):
                    assert (await admin.get("/metrics")).status == 200
                    crowd.say_a_byte()
            assert crowd.thrown_out
    assert [entry["event"] for entry in logs] == ["admin_connections_full"]


def test_who_waits_longest_is_found() -> None:
    def waiting(asking: float | None, taking: float | None = None) -> HttpConnection:
        made = connection(None, Response(b""), QUICK)  # type: ignore[arg-type]
        made.asking_since, made.taking_since = asking, taking
        return made

    busy, late, early = waiting(None), waiting(9.0), waiting(8.0)
    taking, stuck = waiting(None, 9.5), waiting(None, 7.0)
    assert server.longest_waited_for([], 10.0) is None
    assert server.longest_waited_for([busy, taking], 10.0) is None
    assert server.longest_waited_for([busy, late, early, taking], 10.0) is early
    assert server.longest_waited_for([busy, late, early, stuck], 10.0) is stuck


async def test_a_fault_is_one_500_and_one_record(tmp_path: Path) -> None:
    relay = FakeRelay()
    relay.failure = RuntimeError("secret detail")
    with structlog.testing.capture_logs() as logs:
        async with admin_server(relay, tmp_path) as admin, await admin.by_tcp() as stream:
            answer = await ask(stream, "GET", "/healthz")
            assert answer.status == 500
            assert b"secret" not in answer.body
            relay.failure = None
            assert (await ask(stream, "GET", "/healthz")).status == 200
    assert [entry["event"] for entry in logs] == ["admin_request_failed"]


def connection(stream: trio.SocketStream, response: Response, bounds: Bounds) -> HttpConnection:
    async def handler(_request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return response

    return HttpConnection(stream, handler, "test", control=False, bounds=bounds)


async def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    one, two = trio.socket.socketpair()
    return trio.SocketStream(one), trio.SocketStream(two)


async def test_a_slow_reader_is_dropped() -> None:
    near, far = await stream_pair()
    async with far:
        await far.send_all(b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n")
        with trio.fail_after(PATIENCE):
            await connection(near, Response(b"x" * 10_000_000), QUICK).serve()
        assert len(await read_all(far)) < 10_000_000


async def test_a_long_body_arrives_whole() -> None:
    near, far = await stream_pair()
    body = bytes(range(256)) * 10_000
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(connection(near, Response(body), Bounds()).serve)
        assert (await ask(far, "GET", "/")).body == body
        await far.aclose()


async def test_a_body_that_fails_midway_ends_the_connection() -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield b"half" * PIECE_BYTES
        raise RuntimeError

    near, far = await stream_pair()
    async with far:
        await far.send_all(b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n")
        with structlog.testing.capture_logs() as logs:
            await connection(near, Response(broken()), QUICK).serve()
        answer = await read_all(far)
    assert b"halfhalf" in answer
    assert not answer.endswith(b"0\r\n\r\n")  # the client can see that it is not whole
    assert [entry["event"] for entry in logs] == ["admin_connection_failed"]


async def test_slices_are_sent_together_and_others_have_their_turn_after_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns_of_the_pump, "TURN", 0.0)
    turns, seen = 0, list[int]()

    def body() -> Iterator[bytes]:
        for _ in range(20):
            seen.append(turns)
            yield b"x" * (PIECE_BYTES // 8)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    near, far = await stream_pair()
    async with far:
        await far.send_all(b"GET / HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            await connection(near, Response(body()), QUICK).serve()
            nursery.cancel_scope.cancel()
        answer = await read_all(far)
    assert answer.endswith(b"0\r\n\r\n")
    assert answer.count(f"{PIECE_BYTES:x}\r\n".encode()) == 2
    assert answer.count(b"x") == 20 * (PIECE_BYTES // 8)
    assert all(later > now for now, later in zip(seen, seen[2:], strict=False))  # Trio shuffles


async def test_a_client_that_leaves_midway_is_nobodys_fault() -> None:
    near, far = await stream_pair()
    await far.send_all(b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n")
    await far.aclose()
    with structlog.testing.capture_logs() as logs:
        await connection(near, Response(b"x" * 10_000_000), QUICK).serve()
    assert logs == []


class StarvedListener:
    """A listener that runs out of descriptors, twice, and then works, then breaks."""

    def __init__(self, stream: trio.SocketStream) -> None:
        full = OSError(errno.EMFILE, "too many open files")
        self.script: list[Exception | trio.SocketStream] = [full, full, stream]

    async def accept(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        if not self.script:
            raise OSError(errno.EINVAL, "not one of the named errors")
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def __aenter__(self) -> StarvedListener:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.lowlevel.checkpoint()


async def test_accepting_survives_named_errors_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.observe.server.PAUSE_SECONDS", 0.01)
    near, far = await stream_pair()
    listener = StarvedListener(near)
    raises = pytest.RaisesGroup(pytest.RaisesGroup(pytest.RaisesExc(OSError, match="named")))
    async with far:
        with structlog.testing.capture_logs() as logs, raises:
            await serve_admin(FakeRelay(), FakeSteward(), [listener])  # type: ignore[list-item]
    assert [entry["event"] for entry in logs] == ["admin_accept_paused"]
    assert listener.script == []


REQUEST_PARTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"GET /api/v1/flows?limit=1 HTTP/1.1\r\n",
        b"DELETE /api/v1/flows HTTP/1.1\r\n",
        b"HEAD /metrics HTTP/1.0\r\n",
        HEAD,
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"\r\n",
        b"3\r\nabc\r\n0\r\n\r\n",
    ]
)
ANYTHING = st.lists(REQUEST_PARTS | st.binary(max_size=40), max_size=12).map(b"".join)


def test_any_bytes_are_answered_or_closed_and_the_server_goes_on() -> None:
    """Whatever arrives: the connection ends within its bounds, no fault is logged, and a
    proper request on the next connection is served."""

    @given(ANYTHING)
    @settings(max_examples=120, deadline=None)
    def fuzz(data: bytes) -> None:
        with structlog.testing.capture_logs() as logs:
            trio.run(fuzz_once, data)
        assert [entry for entry in logs if "failed" in entry["event"]] == []

    fuzz()


async def fuzz_once(data: bytes) -> None:
    api = Api(FakeRelay(), FakeSteward())
    with trio.fail_after(PATIENCE):
        for sent in (data, b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n"):
            near, far = await stream_pair()
            async with far, trio.open_nursery() as nursery:
                nursery.start_soon(HttpConnection(near, api, "fuzz", False, Bounds()).serve)
                await far.send_all(sent)
                await far.send_eof()
                answer = await read_all(far)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
        assert answer.endswith(b"ok\n")
