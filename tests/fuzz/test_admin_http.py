# Invariant: whatever bytes arrive at the admin, by TCP or at its Unix socket, in whatever pieces,
# every answer is whole, well-formed HTTP, the connection ends within its bounds, nothing is
# changed by TCP, no fault of ours is logged, and the next client is served.

"""Fuzzing the admin's HTTP. A bounded run is part of the tests; for a longer one:

SOCKPAIR_FUZZ=100000 python -m pytest tests/fuzz/test_admin_http.py
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

import h11
import structlog.testing
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.observe.api import ROUTES, Api
from proxy.observe.http import Bounds, HttpConnection
from proxy.observe.params import PARAMS
from tests.e2e.patience import PATIENCE
from tests.observe.fake_relay import FakeRelay, FakeSteward

EXAMPLES: Final = int(os.environ.get("SOCKPAIR_FUZZ", "150"))

BOUNDS: Final = Bounds(header_bytes=2048, body_bytes=512)
"""Little room, and all the time there is by default: whoever sends this comes to an end."""

WORDS = st.sampled_from(
    [b"GET", b"HEAD", b"DELETE", b"POST", b"PUT", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI", b"get"]
)
PATHS = st.sampled_from(
    [
        *(route.encode() for route in ROUTES),
        b"/api/v1/flows/1",
        b"/api/v1/flows/99999999999999999999",
        b"/api/v1/limits/1",
        b"/../../etc/passwd",
        b"//evil.example/",
        b"http://evil.example/metrics",
        b"*",
        b"/%00",
    ]
)
VALUES = st.sampled_from(
    [b"", b"1", b"-1", b"true", b"web", b"10.0.0.0/8", b"[::1]:53", b"unix:/x", b"%ff", b"9" * 30]
)
QUERIES = st.lists(
    st.tuples(st.sampled_from([name.encode() for name in PARAMS]), VALUES), max_size=4
).map(lambda pairs: b"&".join(name + b"=" + value for name, value in pairs))
HEADERS = st.lists(
    st.sampled_from(
        [
            b"Host: 127.0.0.1",
            b"Host: evil.example",
            b"Content-Length: 5",
            b"Content-Length: -1",
            b"Content-Length: 99999",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Expect: 100-continue",
            b"Connection: close",
            b"Connection: upgrade",
            b"Upgrade: websocket",
            b"Accept: text/html",
            b"Accept: application/x-ndjson",
            b"Last-Event-ID: 7",
            b"Last-Event-ID: \xff",
            b"Sec-Fetch-Site: cross-site",
            b"X: " + b"y" * 3000,
            b"broken",
            b" folded",
            b"\x00: nul",
        ]
    ),
    max_size=5,
)
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"ICY", b""])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Something that looks like a request, more or less."""
    query = draw(QUERIES)
    target = draw(PATHS) + (b"?" + query if query else b"")
    head = b" ".join((draw(WORDS), target, draw(VERSIONS)))
    lines = b"\r\n".join([head, *draw(HEADERS)])
    return lines + draw(st.sampled_from([b"\r\n\r\n", b"\n\n", b"\r\n", b""])) + draw(BODIES)


BODIES = st.sampled_from([b"", b"12345", b"5\r\nhello\r\n0\r\n\r\n", b"fffffff\r\n", b"x" * 700])
PIECES = st.lists(requests() | st.binary(max_size=60), max_size=4)


def test_whatever_arrives_is_answered_or_closed_and_the_next_client_is_served() -> None:
    @given(PIECES, st.booleans())
    @settings(max_examples=EXAMPLES, deadline=None)
    def fuzz(pieces: list[bytes], local: bool) -> None:
        with structlog.testing.capture_logs() as logs:
            trio.run(_try, pieces, local)
        assert [entry for entry in logs if "failed" in entry["event"]] == []

    fuzz()


async def _try(pieces: list[bytes], local: bool) -> None:
    relay = FakeRelay()
    relay.open_tcp()
    relay.open_udp()
    steward = FakeSteward()
    api = Api(relay, steward)
    with trio.fail_after(PATIENCE):
        _check_answers(await _tell(api, pieces, local))
        served = await _tell(api, [b"GET /healthz HTTP/1.0\r\n\r\n"], local)
    assert served.endswith(b"ok\n")
    assert api.hub.readers == 0
    if not local:
        assert len(relay.live) == 2
        assert steward.asked == []
        assert steward.books.orders == ()


async def _tell(api: Api, pieces: list[bytes], local: bool) -> bytes:
    """Send the pieces one after the other, then the end; return all that is answered."""
    one, two = trio.socket.socketpair()
    near, far = trio.SocketStream(one), trio.SocketStream(two)
    answer = b""
    connection = HttpConnection(near, api, "fuzz", local, BOUNDS, local=local)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve)
        with suppress(trio.BrokenResourceError):
            for piece in pieces:
                await far.send_all(piece)
                await trio.lowlevel.checkpoint()
            await far.send_eof()
        with suppress(trio.BrokenResourceError):
            async for part in far:
                answer += part
    return answer


def _check_answers(answer: bytes) -> None:
    """Every answer is well-formed, as one to GET or one to HEAD; the last may have been cut."""
    while answer:
        assert answer.startswith(b"HTTP/1.1 "), answer[:60]
        head, end, rest = answer.partition(b"\r\n\r\n")
        assert end, answer[:200]
        status = int(head.split(b" ", 2)[1])
        assert status == 100 or 200 <= status < 600
        assert b"X-Content-Type-Options: nosniff" in head or status == 100
        answer = rest if status == 100 else _after_body(head, rest)


def _after_body(head: bytes, rest: bytes) -> bytes:
    """What follows an answer; one to HEAD has no body, so that the next one begins at once."""
    if not rest or rest.startswith(b"HTTP/1.1 "):
        return rest
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(head + b"\r\n\r\n" + rest)
    while True:
        event = client.next_event()
        if isinstance(event, h11.EndOfMessage):
            return client.trailing_data[0]
        if event is h11.NEED_DATA:
            return b""
