"""Look-ups by files of our own and a real DNS server."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from proxy.config.values import parse_endpoint
from proxy.control.dns import Asking, Resolver
from proxy.core.address import HostPort
from proxy.core.names import Answer, Failure, Parts, Target
from tests.e2e.patience import PATIENCE
from tests.e2e.peers import ZONE
from tests.e2e.program import free_port
from tests.e2e.zone import Zone, zone

RECORDS = f"""
one 7 A 192.0.2.1
both 7 A 192.0.2.2
both 9 AAAA 2001:db8::2
alias 3 CNAME one
blocked 60 A 0.0.0.0
blocked 60 AAAA ::ffff:192.0.2.9
txt TXT "nothing else"
deep.down 60 A 192.0.2.3
{"".join(f"many 60 A 10.0.{n // 250}.{n % 250}{chr(10)}" for n in range(300))}
_http._tcp 5 SRV 10 3 8080 one
_http._tcp 5 SRV 20 0 8081 both
_http._tcp 5 SRV 20 0 8082 nowhere
_none._tcp 5 SRV 0 0 80 .
"""

pytestmark = pytest.mark.peers("nsd")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Zone]:
    async with zone(tmp_path / "nsd", RECORDS) as zone_:
        yield zone_


class Files:
    """The files that a resolver reads."""

    def __init__(self, folder: Path) -> None:
        self.hosts, self.resolv = folder / "hosts", folder / "resolv.conf"
        self.resolver = Resolver(self.hosts, self.resolv)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def asking(zone_: Zone, timeout: float = PATIENCE) -> Asking:
    return Asking((parse_endpoint(zone_.server),), timeout)


def v4(host: str, port: int = 0, **kind: int) -> Target:
    return Target((host, port), **kind)


def v6(host: str, port: int = 0, **kind: int) -> Target:
    return Target((host, port, 0, 0), **kind)


async def test_both_families_with_their_time(served: Zone, files: Files) -> None:
    assert await files.resolver.host(f"both.{ZONE}", asking(served)) == {
        "A": Answer((v4("192.0.2.2"),), 7.0),
        "AAAA": Answer((v6("2001:db8::2"),), 9.0),
    }


async def test_an_alias_holds_as_long_as_the_shortest_of_its_chain(
    served: Zone, files: Files
) -> None:
    parts = await files.resolver.host(f"alias.{ZONE}", asking(served))
    assert answer(parts, "A") == Answer((v4("192.0.2.1"),), 3.0)


async def test_a_family_that_the_name_has_not_is_an_answer(served: Zone, files: Files) -> None:
    parts = await files.resolver.host(f"one.{ZONE}", asking(served))
    assert answer(parts, "AAAA") == Answer((), 1.0)  # the zone's own time for what is not there


async def test_addresses_that_nobody_can_connect_to_are_none(served: Zone, files: Files) -> None:
    parts = await files.resolver.host(f"blocked.{ZONE}", asking(served))
    assert answer(parts, "A").targets == answer(parts, "AAAA").targets == ()


async def test_a_name_that_does_not_exist(served: Zone, files: Files) -> None:
    gone = Failure("there is no such name", final=True)
    parts = await files.resolver.host(f"nobody.{ZONE}", asking(served))
    assert parts == {"A": gone, "AAAA": gone}
    assert await files.resolver.service(f"_x._tcp.{ZONE}", asking(served)) == gone


async def test_an_answer_that_fits_no_datagram(served: Zone, files: Files) -> None:
    parts = await files.resolver.host(f"many.{ZONE}", asking(served))
    assert len(answer(parts, "A").targets) == 300


async def test_a_service_has_ports_weights_and_priorities(served: Zone, files: Files) -> None:
    parts = await files.resolver.service(f"_http._tcp.{ZONE}", asking(served))
    one, both, nowhere = (f"{name}.{ZONE}." for name in ("one", "both", "nowhere"))
    gone = Failure("there is no such name", final=True)
    assert parts == {
        (one, 8080, "A"): Answer((v4("192.0.2.1", 8080, weight=3, priority=10),), 5.0),
        (one, 8080, "AAAA"): Answer((), 1.0),
        (both, 8081, "A"): Answer((v4("192.0.2.2", 8081, weight=0, priority=20),), 5.0),
        (both, 8081, "AAAA"): Answer((v6("2001:db8::2", 8081, weight=0, priority=20),), 5.0),
        (nowhere, 8082, "A"): gone,
        (nowhere, 8082, "AAAA"): gone,
    }


async def test_a_service_that_is_not_offered(served: Zone, files: Files) -> None:
    for name in ("_none._tcp", "txt"):
        found = await files.resolver.service(f"{name}.{ZONE}", asking(served))
        assert isinstance(found, Failure)
        assert found.final


async def test_a_server_that_does_not_answer(served: Zone, files: Files) -> None:
    served.stop()
    parts = await files.resolver.host(f"one.{ZONE}", asking(served, timeout=0.2))
    said = f"no answer within 0.2 s from {served.server}"
    assert parts == {kind: Failure(f"{said} ({kind})") for kind in ("A", "AAAA")}


async def test_a_server_that_refuses(served: Zone, files: Files) -> None:
    parts = await files.resolver.host("example.org", asking(served))
    assert not isinstance(parts, Failure)
    failure = parts["A"]
    assert isinstance(failure, Failure)
    assert not failure.final
    assert failure.reason.endswith("REFUSED (A)")


async def test_the_file_of_hosts_comes_first_and_is_read_again(served: Zone, files: Files) -> None:
    files.hosts.write_text(f"192.0.2.77 one.{ZONE}\n")
    parts = await files.resolver.host(f"one.{ZONE}", asking(served))
    assert answer(parts, "hosts").targets == (v4("192.0.2.77"),)
    files.hosts.write_text("# nothing any more\n")
    parts = await files.resolver.host(f"one.{ZONE}", asking(served))
    assert answer(parts, "A").targets == (v4("192.0.2.1"),)


async def test_localhost_needs_no_file_and_no_server(files: Files) -> None:
    parts = await files.resolver.host("localhost", Asking())
    assert answer(parts, "hosts").targets == (v4("127.0.0.1"), v6("::1"))


async def test_domains_of_resolv_conf_are_searched(served: Zone, files: Files) -> None:
    files.resolv.write_text(f"search no.{ZONE} {ZONE}\noptions ndots:2\n")
    for name in ("deep.down", "one"):
        parts = await files.resolver.host(name, asking(served, timeout=PATIENCE))
        assert answer(parts, "A").targets, name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "names no server"),
        ("search example.org\n", "names no server"),
        ("nameserver not-an-address\n", "not-an-address"),
    ],
)
async def test_a_resolv_conf_without_servers(files: Files, text: str | None, reason: str) -> None:
    if text is not None:
        files.resolv.write_text(text)
    for look_up in (files.resolver.host, files.resolver.service):
        failure = await look_up("_a._tcp.example.org", Asking())
        assert isinstance(failure, Failure)
        assert reason in failure.reason
        assert str(files.resolv) in failure.reason


async def test_no_question_blocks_others(served: Zone, files: Files) -> None:
    """While a server is silent, other tasks have their turn."""
    served.stop()
    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(files.resolver.host, f"one.{ZONE}", asking(served, timeout=0.3))
        with trio.move_on_after(0.2):
            while True:
                await trio.sleep(0.001)
                turns += 1
    assert turns > 10


def answer(parts: Parts | Failure, key: str) -> Answer:
    assert not isinstance(parts, Failure), parts
    part = parts[key]
    assert isinstance(part, Answer), part
    return part


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_a_server_sends_is_a_result(
    nursery: trio.Nursery, files: Files, seed: int
) -> None:
    """Answers of any bytes, or right ones with some bytes changed, by UDP and TCP."""
    dice = random.Random(seed)
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        address = ("127.0.0.1", free_port())
        await server.bind(address)
        listening = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        await listening.bind(address)
        listening.listen()
        nursery.start_soon(garble_datagrams, server, dice)
        nursery.start_soon(
            trio.serve_listeners, partial(garble, dice), [trio.SocketListener(listening)]
        )
        asked = Asking((HostPort(*address),), timeout=0.1)
        for look_up in (files.resolver.host, files.resolver.service):
            found = await look_up("web.example", asked)
            parts = [found] if isinstance(found, Failure) else list(found.values())
            assert all(isinstance(part, Failure | Answer) for part in parts)
        nursery.cancel_scope.cancel()


async def garble_datagrams(server: trio.socket.SocketType, dice: random.Random) -> None:
    while True:
        query, sender = await server.recvfrom(65535)
        await server.sendto(garbled(query, dice), sender)


async def garble(dice: random.Random, stream: trio.SocketStream) -> None:
    try:
        query = await stream.receive_some(65535)
        data = garbled(query[2:], dice)
        await stream.send_all(len(data).to_bytes(2, "big") + data)
        await stream.aclose()
    except trio.BrokenResourceError:
        return


def garbled(query: bytes, dice: random.Random) -> bytes:
    """An answer to a query, or to anything."""
    if dice.random() < 0.2:
        return dice.randbytes(dice.randrange(600))
    if len(query) < 12:
        return query
    kind = query[-4:-2]
    rdata = {b"\0\x01": b"\xc0\0\2\1", b"\0\x1c": bytes(16)}.get(kind, b"\0\1\0\1\0\x50\xc0\x0c")
    record = b"\xc0\x0c" + kind + b"\0\1\0\0\0\1" + len(rdata).to_bytes(2, "big") + rdata
    flags = b"\x87\x80" if dice.random() < 0.2 else b"\x85\x80"  # truncated, or not
    head = query[:2] + flags + b"\0\1\0\1\0\0\0\0"
    answer = bytearray(head + query[12:] + record)
    for _ in range(dice.randrange(4)):
        answer[dice.randrange(2, len(answer))] = dice.randrange(256)
    return bytes(answer[: dice.randrange(len(answer))] if dice.random() < 0.2 else answer)
