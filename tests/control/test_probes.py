"""Probes against real servers, and against peers that say nothing, too little, or too much."""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path

import pytest
import trio

from proxy.control.probe_command import OUTPUT_MAX, CommandProbe
from proxy.control.probe_http import ANSWERS_MAX, HttpProbe
from proxy.control.probes import READ_MAX, Sight, TcpProbe, UdpProbe
from proxy.core.address import parse_address
from proxy.core.health import Result, Verdict
from proxy.core.source import ANY_PORT, SourcePool
from proxy.core.unix import unix_address
from proxy.engine.outbound import Outbound
from tests.e2e.patience import PATIENCE
from tests.e2e.peers import ZONE, dns_query, nginx, nsd, redis
from tests.e2e.program import free_port, is_running
from tests.e2e.sockets import echo, listen, listen_datagrams

PASSED, FAILED, SILENT = Verdict.PASSED, Verdict.FAILED, Verdict.SILENT
SHORT = 0.2

OK = (range(200, 400),)
PING = TcpProbe(b"PING\r\n", b"+PONG")


def at(text: str, timeout: float = PATIENCE) -> Sight:
    return Sight(parse_address(text), timeout)


def closed_port() -> str:
    return f"127.0.0.1:{free_port()}"


async def say_nothing(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await trio.sleep_forever()


async def drip(stream: trio.SocketStream) -> None:
    """A byte now and then, for ever."""
    while True:
        await stream.send_all(b".")
        await trio.sleep(0.01)


async def flood(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(b"x" * 65536)


async def reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


async def leave(stream: trio.SocketStream) -> None:
    await stream.send_all(b"-ERR go away\r\n\x1b[31m")


@pytest.mark.peers("redis-server")
async def test_redis_is_asked_for_its_pong(tmp_path: Path) -> None:
    async with redis(tmp_path) as server:
        assert await PING.run(at(server.text)) == Result(PASSED, "answered as expected")
        pattern = TcpProbe(b"PING\r\n", re.compile(rb"^\+P[A-Z]+G\r$", re.MULTILINE))
        assert (await pattern.run(at(server.text))).verdict is PASSED
        other = await TcpProbe(b"QUIT\r\n", b"+PONG").run(at(server.text))
        assert other == Result(FAILED, r'closed before the expected answer: "+OK\r\n"')
    refused = await PING.run(at(server.text))
    assert refused == Result(FAILED, "connection refused")


@pytest.mark.peers("nginx")
async def test_nginx_is_asked_for_a_page(tmp_path: Path) -> None:
    async with nginx(tmp_path) as server:
        (tmp_path / "html" / "health").write_text("well")
        for path, host, statuses, result in [
            ("/health", None, OK, Result(PASSED, "status 200")),
            ("/health?x=1", "example.org", OK, Result(PASSED, "status 200")),
            ("/nothing", None, OK, Result(FAILED, "status 404")),
            ("/nothing", None, (range(200, 300), range(404, 405)), Result(PASSED, "status 404")),
        ]:
            assert await HttpProbe(path, host, statuses).run(at(server.text)) == result
    assert (await HttpProbe("/", None, OK).run(at(server.text))).verdict is FAILED


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", Result(PASSED, "status 204")),
        (b"HTTP/1.0 503 Busy\r\n\r\n", Result(FAILED, "status 503")),
        (
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            Result(PASSED, "status 200"),
        ),
        (b"", Result(FAILED, "closed before an answer")),
        (b"HTTP/1.1 2", Result(FAILED, "closed before an answer")),
    ],
)
async def test_what_answers_http_say(nursery: trio.Nursery, answer: bytes, result: Result) -> None:
    requests: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        requests.append(await stream.receive_some())
        await stream.send_all(answer)

    address = await listen(nursery, serve)
    assert await HttpProbe("/up?now", "web.example", OK).run(at(address)) == result
    (request,) = requests
    assert request.startswith(b"GET /up?now HTTP/1.1\r\n")
    assert b"\r\nHost: web.example\r\n" in request


async def test_what_is_no_http(nursery: trio.Nursery) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"-ERR go away\r\n\r\n")

    result = await HttpProbe("/", None, OK).run(at(await listen(nursery, serve)))
    assert result == Result(FAILED, "no HTTP: illegal status line: -ERR go away")


async def test_a_head_without_an_end_is_bounded(nursery: trio.Nursery) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        while True:
            await stream.send_all(b"x: " + b"y" * 1000 + b"\r\n")

    result = await HttpProbe("/", None, OK).run(at(await listen(nursery, quietly(serve))))
    assert result.reason.startswith("no HTTP: ")


async def test_interim_answers_without_an_end_are_bounded(nursery: trio.Nursery) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    result = await HttpProbe("/", None, OK).run(at(await listen(nursery, quietly(serve))))
    assert result == Result(FAILED, f"no answer within {ANSWERS_MAX} bytes")


@pytest.mark.peers("nsd")
async def test_a_name_server_is_asked(tmp_path: Path) -> None:
    probe = UdpProbe(dns_query(f"ns.{ZONE}"), b"\xc0\x00\x02\x35")
    async with nsd(tmp_path) as server:
        assert await probe.run(at(server.text)) == Result(PASSED, "answered as expected")
        assert await UdpProbe(probe.send).run(at(server.text)) == Result(PASSED, "answered")
        other = UdpProbe(probe.send, b"something else")
        result = await other.run(at(server.text, SHORT))
        assert result == Result(FAILED, f"no answer as expected within {SHORT} s")
    assert await probe.run(at(server.text)) == Result(FAILED, "port unreachable")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("probe", [UdpProbe(), UdpProbe(b"ping"), UdpProbe(b"ping", b"pong")])
async def test_a_closed_udp_port_is_a_failure(host: str, probe: UdpProbe) -> None:
    result = await probe.run(at(f"{host}:{free_port()}"))
    assert result == Result(FAILED, "port unreachable")


async def test_a_silent_udp_port_is_not_well_and_not_ill() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*silent.getsockname())
        result = await UdpProbe(b"ping").run(at(address, SHORT))
        assert result == Result(SILENT, f"no answer within {SHORT} s")
        expecting = await UdpProbe(b"ping", b"pong").run(at(address, SHORT))
        assert expecting.verdict is FAILED


async def test_any_udp_answer_will_do_if_none_is_expected(nursery: trio.Nursery) -> None:
    address = await listen_datagrams(nursery)
    assert await UdpProbe(b"ping").run(at(address)) == Result(PASSED, "answered")
    assert (await UdpProbe(b"ping", b"ping").run(at(address))).verdict is PASSED


async def test_who_accepts_is_well_unless_an_answer_is_expected(nursery: trio.Nursery) -> None:
    address = await listen(nursery, say_nothing)
    assert await TcpProbe().run(at(address)) == Result(PASSED, "connected")
    silent = await PING.run(at(address, SHORT))
    reason = f"connected, but no answer as expected within {SHORT} s"
    assert silent == Result(FAILED, reason)


async def test_who_drips_is_not_waited_for(nursery: trio.Nursery) -> None:
    address = await listen(nursery, quietly(drip))
    assert (await PING.run(at(address, SHORT))).verdict is FAILED
    assert (await HttpProbe("/", None, OK).run(at(address, SHORT))).verdict is FAILED


async def test_who_floods_is_read_no_further_than_the_bound(nursery: trio.Nursery) -> None:
    address = await listen(nursery, quietly(flood))
    result = await PING.run(at(address))
    assert result.verdict is FAILED
    assert result.reason.startswith('answered otherwise than expected: "xxx')
    assert len(result.reason) < 120
    assert (await TcpProbe(b"", b"x" * READ_MAX).run(at(address))).verdict is PASSED


async def test_who_resets(nursery: trio.Nursery) -> None:
    address = await listen(nursery, reset)
    result = await TcpProbe(b"", b"+PONG").run(at(address))
    assert result == Result(FAILED, "connection reset by peer")


async def test_what_peers_say_is_shown_safely(nursery: trio.Nursery) -> None:
    result = await TcpProbe(b"", b"+PONG").run(at(await listen(nursery, leave)))
    assert result.reason == (r'closed before the expected answer: "-ERR go away\r\n\x1b[31m"')


async def test_who_does_not_accept() -> None:
    """A full backlog, which answers no further SYN."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        others = [socket.socket() for _ in range(3)]
        for each in others:
            each.setblocking(False)
            each.connect_ex(address)
        result = await TcpProbe().run(Sight(address, SHORT))
        for each in others:
            each.close()
    assert result == Result(FAILED, f"not connected within {SHORT} s")


async def test_a_unix_socket(nursery: trio.Nursery, tmp_path: Path) -> None:
    address = unix_address(str(tmp_path / "socket"))
    sight = Sight(address, PATIENCE)
    assert (await TcpProbe().run(sight)).verdict is FAILED
    listening = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listening.bind(str(tmp_path / "socket"))
    listening.listen()
    nursery.start_soon(trio.serve_listeners, echo, [trio.SocketListener(listening)])
    assert (await TcpProbe(b"ping", b"ping").run(sight)).verdict is PASSED


async def test_what_a_stream_begins_with_goes_first(nursery: trio.Nursery) -> None:
    for address, probe in [
        (await listen(nursery, echo), TcpProbe(b"ping", b"HEADping")),
        (await listen_datagrams(nursery), UdpProbe(b"ping", b"HEADping")),
    ]:
        sight = Sight(parse_address(address), PATIENCE, preface=b"HEAD")
        assert (await probe.run(sight)).verdict is PASSED


@pytest.mark.parametrize("probe", [TcpProbe(b"", b"127.0.0.9"), UdpProbe(b"", b"127.0.0.9")])
async def test_it_leaves_by_the_sources_of_the_upstream(
    nursery: trio.Nursery, probe: TcpProbe | UdpProbe
) -> None:
    """The peer says where it sees us come from."""

    async def tell(stream: trio.SocketStream) -> None:
        await stream.send_all(stream.socket.getpeername()[0].encode())

    address = await listen(nursery, tell)
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        await bound.bind(("127.0.0.1", 0))
        nursery.start_soon(tell_datagrams, bound)
        if isinstance(probe, UdpProbe):
            address = "{}:{}".format(*bound.getsockname())
        source = SourcePool(("127.0.0.9",), ANY_PORT)
        sight = Sight(parse_address(address), PATIENCE, Outbound(source=source))
        assert (await probe.run(sight)).verdict is PASSED
        gone = Outbound(source=SourcePool(("192.0.2.77",), ANY_PORT))
        lost = await probe.run(Sight(parse_address(address), PATIENCE, gone))
        assert lost == Result(FAILED, "no source to leave from")


async def tell_datagrams(bound: trio.socket.SocketType) -> None:
    while True:
        _, sender = await bound.recvfrom(100)
        await bound.sendto(sender[0].encode(), sender)


def script(text: str) -> CommandProbe:
    return CommandProbe(("/bin/sh", "-c", text), "web", "db.example:5432")


TARGET = "127.0.0.1:5432"


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("exit 0", Result(PASSED, "exit status 0")),
        ("echo one; echo two", Result(PASSED, "two")),
        ("echo bad >&2; exit 3", Result(FAILED, "exit status 3: bad")),
        ("kill -TERM $$", Result(FAILED, "signal 15")),
        (r"printf '\033[31mred\n'", Result(PASSED, r"\x1b[31mred")),
        (
            'echo "$SOCKPAIR_ADDRESS $SOCKPAIR_PORT $SOCKPAIR_UPSTREAM $SOCKPAIR_ENDPOINT"',
            Result(PASSED, "127.0.0.1 5432 web db.example:5432"),
        ),
        ("echo well; sleep 60 & exit 0", Result(PASSED, "well")),
    ],
)
async def test_commands(text: str, result: Result) -> None:
    assert await script(text).run(at(TARGET)) == result


async def test_a_command_that_says_much_is_not_held_up() -> None:
    result = await script(f"yes | head -c {64 * OUTPUT_MAX}; echo; echo done").run(at(TARGET))
    assert result == Result(PASSED, "done")


async def test_a_command_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    text = f"sleep 600 & echo $! >{file}; echo $$ >>{file}; wait"
    result = await script(text).run(at(TARGET, timeout=2.0))
    assert result == Result(FAILED, "killed: not done within 2 s")
    with trio.fail_after(PATIENCE):  # who is killed still has to be scheduled for it
        for pid in file.read_text().split():
            while is_running(int(pid)):
                await trio.sleep(0.002)


async def test_a_command_that_is_not_there() -> None:
    result = await CommandProbe(("/nowhere/check",), "web", "x").run(at(TARGET))
    assert result == Result(FAILED, '"/nowhere/check" cannot be run: No such file or directory')


def quietly(serve):  # type: ignore[no-untyped-def]
    """Serve until the other side leaves."""

    async def quiet(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except trio.BrokenResourceError:
            await stream.aclose()

    return quiet
