"""Unix sockets on either side of a flow: streams, datagrams, names and credentials."""

from __future__ import annotations

import array
import errno
import os
import socket as std
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from socket import (
    AF_UNIX,
    MSG_OOB,
    SCM_RIGHTS,
    SHUT_WR,
    SO_OOBINLINE,
    SO_RCVBUF,
    SO_SNDBUF,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
)
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import parse_listen
from proxy.control.listen import bind_socket
from proxy.control.unix import bind_unix
from proxy.core.address import Address, Transport, parse_address
from proxy.core.expiry import FlowLimits
from proxy.core.query import FlowQuery
from proxy.core.unix import unix_address
from proxy.engine.mmsg import LARGEST_DATAGRAM
from proxy.engine.worker import Worker
from tests.engine.lab import (
    PATIENCE,
    Lab,
    accept,
    connect,
    datagram_socket,
    is_refused,
    is_reset,
    listening,
    open_listener,
    opened,
    pass_both_ways,
    receive_all,
    receive_exactly,
    send_all,
)

BULK = os.urandom(8 << 20)
ME = {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid()}


@asynccontextmanager
async def relaying(
    listen: str, endpoints: Sequence[Address], limits: FlowLimits | None = None, **parts: Any
) -> AsyncIterator[Lab]:
    """A worker with one listener, at a Unix socket or not, in front of these endpoints."""
    address = parse_listen(listen)
    unix = address.transport.is_unix
    socket: std.socket
    socket = bind_unix(address, backlog=128, mode=0o600) if unix else bind_socket(address)
    bound = unix_address(address.host) if unix else socket.getsockname()
    worker = Worker(10_000, recent=10_000)
    await open_listener(worker, "lab", socket, endpoints, address.transport, limits, **parts)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            try:
                yield Lab(worker, bound, address.transport)
            finally:
                worker.stop()
                nursery.cancel_scope.cancel()


async def unix_socket(kind: int, path: str | Path | None = None) -> SocketType:
    socket = trio.socket.socket(AF_UNIX, kind)
    opened.append(socket)
    if path is not None:
        await socket.bind(os.fspath(path))
    return socket


async def unix_listening(path: Path, backlog: int = 128) -> SocketType:
    socket = await unix_socket(SOCK_STREAM, path)
    socket.listen(backlog)
    return socket


async def unix_client(path: Path, kind: int = SOCK_STREAM) -> SocketType:
    socket = await unix_socket(kind)
    await socket.connect(os.fspath(path))
    return socket


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def knows_urgent() -> bool:
    one, other = std.socketpair()
    with one, other:
        try:
            return bool(one.send(b"!", MSG_OOB))
        except OSError:
            return False


async def receive_urgent(socket: SocketType) -> bytes:
    """Wait for urgent data."""
    while True:
        try:
            return socket._sock.recv(1, MSG_OOB)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EAGAIN}:
                raise
        await trio.sleep(0.002)


def unix(path: Path) -> Address:
    return unix_address(str(path))


@pytest.mark.parametrize("front", ["tcp", "unix"])
@pytest.mark.parametrize("back", ["tcp", "unix"])
async def test_streams_of_both_kinds_go_to_endpoints_of_both_kinds(
    front: str, back: str, tmp_path: Path
) -> None:
    if front == back == "tcp":
        return
    door, origin = tmp_path / "door", tmp_path / "origin"
    endpoint = listening() if back == "tcp" else await unix_listening(origin)
    target = endpoint.getsockname() if back == "tcp" else unix(origin)
    url = "tcp://127.0.0.1:0" if front == "tcp" else f"unix://{door}"
    async with relaying(url, [target]) as lab:
        client = await (connect(lab.address) if front == "tcp" else unix_client(door))
        accepted = await accept(endpoint)
        await pass_both_ways(client, accepted, BULK)
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "finished"
        assert row["original"] == row["reply"] == {"bytes": len(BULK), "packets": None}
        assert row["transport"] == front
        if front == "unix":
            assert row["client"] == {"local": f"unix:{door}", "remote": "unix:", "via": None}
            assert row["credentials"] == ME
            assert row["source"] == f"uid:{os.getuid()}"
        else:
            assert row["credentials"] is None
        if back == "unix":
            assert row["endpoint"] == {"local": "unix:", "remote": f"unix:{origin}"}
        assert row["endpoint_credentials"] == (ME if back == "unix" else None)
        listener = (await lab.counters())["listeners"][0]
        assert listener["original"]["sent"] == listener["reply"]["sent"] == len(BULK)


async def test_requests_and_answers_alternate(tmp_path: Path) -> None:
    endpoint = await unix_listening(tmp_path / "origin")
    async with relaying(f"unix://{tmp_path}/door", [unix(tmp_path / "origin")]) as lab:
        client = await unix_client(tmp_path / "door")
        accepted = await accept(endpoint)
        for number in range(100):
            await client.send(b"question %d" % number)
            assert await accepted.recv(100) == b"question %d" % number
            await accepted.send(b"answer %d" % number)
            assert await client.recv(100) == b"answer %d" % number
        assert len(await lab.live()) == 1


async def test_half_close_is_kept(tmp_path: Path) -> None:
    endpoint = await unix_listening(tmp_path / "origin")
    async with relaying(f"unix://{tmp_path}/door", [unix(tmp_path / "origin")]) as lab:
        client = await unix_client(tmp_path / "door")
        accepted = await accept(endpoint)
        await client.send(b"all I have")
        client.shutdown(SHUT_WR)
        assert await receive_all(accepted) == b"all I have"
        await lab.wait_live("client_closed")
        await accepted.send(b"late answer")
        accepted.close()
        assert await receive_all(client) == b"late answer"
        (row,) = await lab.wait_ended()
        assert (row["close_reason"], row["close_side"]) == ("finished", "client")


async def test_what_follows_passed_descriptors_is_not_held_up(tmp_path: Path) -> None:
    """A receive ends short at the message that carried them; they themselves are not forwarded."""
    endpoint = listening()
    async with relaying(f"unix://{tmp_path}/door", [endpoint.getsockname()]) as lab:
        with std.socket(AF_UNIX) as client:
            client.connect(str(tmp_path / "door"))
            accepted = await accept(endpoint)
            await lab.wait_live("established")
            rights = (SOL_SOCKET, SCM_RIGHTS, array.array("i", [0]))
            # Without a checkpoint, so that all of it comes with one edge.
            client.sendmsg([b"one "], [rights])
            client.sendmsg([b"two "], [rights])
            client.send(b"three")
            assert await receive_exactly(accepted, 13) == b"one two three"


async def test_stalled_readers_hold_back_the_sender(tmp_path: Path) -> None:
    endpoint = await unix_listening(tmp_path / "origin")
    async with relaying(f"unix://{tmp_path}/door", [unix(tmp_path / "origin")]) as lab:
        client = await unix_client(tmp_path / "door")
        accepted = await accept(endpoint)
        sent = 0
        with trio.move_on_after(0.2):
            while True:
                sent += await client.send(BULK[: 1 << 16])
        assert sent < 4 << 20
        client.shutdown(SHUT_WR)
        assert len(await receive_all(accepted)) == sent
        listener = (await lab.counters())["listeners"][0]
        assert listener["original"]["buffered"] == 0


async def test_an_endpoint_with_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    endpoint = await unix_listening(tmp_path / "origin", backlog=0)
    first = await unix_client(tmp_path / "origin")
    async with relaying("tcp://127.0.0.1:0", [unix(tmp_path / "origin")]) as lab:
        client = await connect(lab.address)
        await client.send(b"patience")
        await lab.wait_live("connecting")
        await accept(endpoint)
        first.close()
        accepted = await accept(endpoint)
        assert await receive_exactly(accepted, 8) == b"patience"
        await accepted.send(b"pays")
        assert await receive_exactly(client, 4) == b"pays"


async def test_a_full_backlog_ends_with_the_connect_timeout(tmp_path: Path) -> None:
    await unix_listening(tmp_path / "origin", backlog=0)
    await unix_client(tmp_path / "origin")
    limits = FlowLimits(connect=0.2)
    async with relaying("tcp://127.0.0.1:0", [unix(tmp_path / "origin")], limits) as lab:
        client = await connect(lab.address)
        assert await is_reset(client)
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "connect_timeout"


async def test_a_missing_endpoint_is_refused_and_the_next_is_tried(tmp_path: Path) -> None:
    endpoint = await unix_listening(tmp_path / "origin")
    missing, there = unix(tmp_path / "missing"), unix(tmp_path / "origin")
    async with relaying("tcp://127.0.0.1:0", [missing, there]) as lab:
        client = await connect(lab.address)
        await accept(endpoint)
        client.close()
        failures = (await lab.counters())["endpoints"][0]["failures"]
        assert failures["connect_refused"] == 1
    async with relaying("tcp://127.0.0.1:0", [missing]) as lab:
        assert await is_refused(lab.address)
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "connect_refused"


async def test_a_reset_of_the_endpoint_reaches_a_unix_client_after_the_data(tmp_path: Path) -> None:
    """The kernel knows no RST here; the client sees the end, or ECONNRESET when it had spoken."""
    endpoint = listening()
    async with relaying(f"unix://{tmp_path}/door", [endpoint.getsockname()]) as lab:
        client = await unix_client(tmp_path / "door")
        accepted = await accept(endpoint)
        await accepted.send(b"last words")
        assert await receive_exactly(client, 10) == b"last words"
        accepted.setsockopt(SOL_SOCKET, std.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        accepted.close()
        assert await receive_all(client) == b""
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "endpoint_reset"


async def test_closing_with_something_unread_is_a_reset(tmp_path: Path) -> None:
    endpoint = listening()
    async with relaying(f"unix://{tmp_path}/door", [endpoint.getsockname()]) as lab:
        client = await unix_client(tmp_path / "door")
        accepted = await accept(endpoint)
        await accepted.send(b"unread")
        await lab.wait_counter(lambda c: c["listeners"][0]["reply"]["sent"], 6)
        client.close()
        assert await is_reset(accepted)
        (row,) = await lab.wait_ended()
        assert (row["close_reason"], row["close_side"]) == ("client_reset", "client")


@pytest.mark.skipif(not knows_urgent(), reason="Unix sockets have urgent data since Linux 5.15")
@pytest.mark.parametrize("front", ["tcp", "unix"])
async def test_urgent_data_keeps_its_place(front: str, tmp_path: Path) -> None:
    door, origin = tmp_path / "door", tmp_path / "origin"
    endpoint = await unix_listening(origin) if front == "tcp" else listening()
    target = unix(origin) if front == "tcp" else endpoint.getsockname()
    url = "tcp://127.0.0.1:0" if front == "tcp" else f"unix://{door}"
    async with relaying(url, [target]) as lab:
        client = await (connect(lab.address) if front == "tcp" else unix_client(door))
        accepted = await accept(endpoint)
        await client.send(b"before")
        assert await receive_exactly(accepted, 6) == b"before"
        await client.send(b"!", MSG_OOB)
        assert await receive_urgent(accepted) == b"!"
        await client.send(b"after")
        assert await receive_exactly(accepted, 5) == b"after"
        row = await lab.wait_live("established")
        assert row["original"]["bytes"] == 12


@pytest.mark.skipif(not knows_urgent(), reason="Unix sockets have urgent data since Linux 5.15")
@pytest.mark.parametrize("front", ["tcp", "unix"])
@pytest.mark.parametrize("turned", [False, True])
async def test_urgent_bytes_in_quick_succession_are_all_there(
    front: str, tmp_path: Path, *, turned: bool
) -> None:
    door, origin = tmp_path / "door", tmp_path / "origin"
    endpoint = await unix_listening(origin) if front == "tcp" else listening()
    target = unix(origin) if front == "tcp" else endpoint.getsockname()
    url = "tcp://127.0.0.1:0" if front == "tcp" else f"unix://{door}"
    async with relaying(url, [target]) as lab:
        for _ in range(20):
            client = await (connect(lab.address) if front == "tcp" else unix_client(door))
            accepted = await accept(endpoint)
            sender, receiver = (accepted, client) if turned else (client, accepted)
            receiver.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
            await send_all(sender, b"abc")
            assert await receive_exactly(receiver, 3) == b"abc"
            for byte in b"01234":
                sender._sock.send(bytes([byte]), MSG_OOB)
            await send_all(sender, b"z")
            sender.shutdown(SHUT_WR)
            assert await receive_all(receiver) == b"01234z"
            client.close()
            accepted.close()


async def test_abstract_names(tmp_path: Path) -> None:
    name = f"sockpair-test-{os.getpid()}"
    endpoint = await unix_socket(SOCK_STREAM, f"\0{name}-origin")
    endpoint.listen(8)
    async with relaying(f"unix://@{name}", [unix_address(f"@{name}-origin")]) as lab:
        client = await unix_socket(SOCK_STREAM)
        await client.connect(f"\0{name}")
        await accept(endpoint)
        row = await lab.wait_live("established")
        assert row["client"]["local"] == f"unix:@{name}"
        assert row["endpoint"]["remote"] == f"unix:@{name}-origin"


async def test_flows_are_found_by_the_address_of_a_unix_socket(tmp_path: Path) -> None:
    endpoint = await unix_listening(tmp_path / "origin")
    async with relaying(f"unix://{tmp_path}/door", [unix(tmp_path / "origin")]) as lab:
        client = await unix_socket(SOCK_STREAM, tmp_path / "cli\nent")
        await client.connect(str(tmp_path / "door"))
        await accept(endpoint)
        row = await lab.wait_live("established")
        shown = row["client"]["remote"]
        assert shown == f"unix:{tmp_path}/cli\\nent"

        async def matched(**fields: object) -> int:
            return (await lab.worker.flows(FlowQuery(**fields)))["matched"]  # type: ignore[arg-type]

        for text in (shown, f"unix:{tmp_path}/door", f"unix://{tmp_path}/origin", "unix:"):
            assert await matched(address=parse_address(text)) == 1, text
        assert await matched(address=parse_address("unix:/elsewhere")) == 0
        assert await matched(address=parse_address("10.0.0.1:80")) == 0
        assert await matched(client=ip_network("0.0.0.0/0")) == 0
        assert await matched(endpoint=ip_network("::/0")) == 0
        assert await matched(client=parse_address(shown)) == 1
        assert await matched(transport=Transport.UNIX) == 1


async def test_no_descriptor_stays_behind(tmp_path: Path) -> None:
    endpoint = await unix_listening(tmp_path / "origin")
    targets = [unix(tmp_path / "missing"), unix(tmp_path / "origin")]
    async with relaying(f"unix://{tmp_path}/door", targets) as lab:
        before = descriptors()
        for _ in range(20):
            client = await unix_client(tmp_path / "door")
            accepted = await accept(endpoint)
            client.close()
            accepted.close()
        await lab.wait_ended(20)
        assert descriptors() == before
        assert lab.worker._relay.files.used == 0


# Datagrams


async def exchange(client: SocketType, endpoint: SocketType, data: bytes) -> object:
    """Send a datagram through, answer it backwards; returns our outbound address."""
    await client.send(data)
    received, sender = await endpoint.recvfrom(1 << 17)
    assert received == data
    await endpoint.sendto(data[::-1], sender)
    assert await client.recv(1 << 17) == data[::-1]
    return sender


async def bound_client(tmp_path: Path, name: str = "client") -> SocketType:
    client = await unix_socket(SOCK_DGRAM, tmp_path / name)
    await client.connect(str(tmp_path / "door"))
    return client


@pytest.mark.parametrize("front", ["udp", "unixgram"])
@pytest.mark.parametrize("back", ["udp", "unixgram"])
async def test_datagrams_of_both_kinds_go_to_endpoints_of_both_kinds(
    front: str, back: str, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    endpoint = datagram_socket() if back == "udp" else await unix_socket(SOCK_DGRAM, origin)
    target = endpoint.getsockname() if back == "udp" else unix(origin)
    url = "udp://127.0.0.1:0" if front == "udp" else f"unixgram://{tmp_path}/door"
    async with relaying(url, [target]) as lab:
        if front == "udp":
            client = datagram_socket()
            await client.connect(lab.address)
        else:
            client = await bound_client(tmp_path)
        sizes = (0, 1, 512, 9000, 65507)
        for size in sizes:
            await exchange(client, endpoint, b"x" * size)
        row = await lab.wait_live("assured")
        assert row["transport"] == front
        assert row["original"] == row["reply"] == {"bytes": sum(sizes), "packets": len(sizes)}
        if front == "unixgram":
            assert row["client"]["local"] == f"unix:{tmp_path}/door"
            assert row["client"]["remote"] == f"unix:{tmp_path}/client"
            assert row["credentials"] == ME
            assert row["source"] == f"uid:{os.getuid()}"
        if back == "unixgram":
            assert row["endpoint"]["remote"] == f"unix:{origin}"
            assert str(row["endpoint"]["local"]).startswith("unix:@")


async def test_clients_without_a_name_share_a_flow_that_stays_unreplied(tmp_path: Path) -> None:
    endpoint = datagram_socket()
    async with relaying(f"unixgram://{tmp_path}/door", [endpoint.getsockname()]) as lab:
        clients = [await unix_client(tmp_path / "door", SOCK_DGRAM) for _ in range(3)]
        for client in clients:
            await client.send(b"log line")
            data, sender = await endpoint.recvfrom(100)
            assert data == b"log line"
            await endpoint.sendto(b"thanks", sender)
        await lab.wait_counter(lambda c: c["listeners"][0]["dropped"]["unnamed"], 3)
        (row,) = await lab.live()
        assert row["state"] == "unreplied"
        assert row["client"]["remote"] == "unix:"
        assert (row["credentials"], row["source"]) == (None, "uid:?")
        listener = (await lab.counters())["listeners"][0]
        assert (listener["reply"]["packets_received"], listener["reply"]["packets_sent"]) == (3, 0)


async def test_an_endpoint_that_starts_anew_is_found_again(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    endpoint = await unix_socket(SOCK_DGRAM, origin)
    async with relaying("udp://127.0.0.1:0", [unix(origin)]) as lab:
        client = datagram_socket()
        await client.connect(lab.address)
        await exchange(client, endpoint, b"first life")
        endpoint.close()
        await client.send(b"lost")
        await lab.wait_counter(lambda c: c["listeners"][0]["dropped"]["refused"], 1)
        origin.unlink()
        endpoint = await unix_socket(SOCK_DGRAM, origin)
        await exchange(client, endpoint, b"second life")
        assert len(await lab.live()) == 1
        assert await lab.ended() == []


async def test_a_client_cannot_pass_descriptors_into_the_proxy(tmp_path: Path) -> None:
    endpoint = await unix_socket(SOCK_DGRAM, tmp_path / "origin")
    async with relaying(f"unixgram://{tmp_path}/door", [unix(tmp_path / "origin")]) as lab:
        with std.socket(AF_UNIX, SOCK_DGRAM) as client:
            client.bind(str(tmp_path / "client"))
            client.connect(str(tmp_path / "door"))
            client.send(b"hello")
            assert await endpoint.recv(100) == b"hello"
            before = descriptors()
            rights = (SOL_SOCKET, SCM_RIGHTS, array.array("i", [0] * 8))
            client.sendmsg([b"gift"], [rights])
            assert await endpoint.recv(100) == b"gift"
            assert descriptors() == before
        assert len(await lab.live()) == 1


async def test_datagrams_longer_than_any_of_ip_are_dropped_whole(tmp_path: Path) -> None:
    endpoint = await unix_socket(SOCK_DGRAM, tmp_path / "origin")
    endpoint.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 20)
    async with relaying(f"unixgram://{tmp_path}/door", [unix(tmp_path / "origin")]) as lab:
        client = await bound_client(tmp_path)
        client.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 20)
        sender = await exchange(client, endpoint, b"x" * LARGEST_DATAGRAM)
        await client.send(b"x" * (LARGEST_DATAGRAM + 1))
        await lab.wait_counter(lambda c: c["listeners"][0]["dropped"]["truncated"], 1)
        await endpoint.sendto(b"x" * (LARGEST_DATAGRAM + 1), sender)
        await lab.wait_counter(lambda c: c["listeners"][0]["dropped"]["too_big"], 1)
        await exchange(client, endpoint, b"and on it goes")


async def test_a_missing_datagram_endpoint_ends_the_flow(tmp_path: Path) -> None:
    async with relaying("udp://127.0.0.1:0", [unix(tmp_path / "missing")]) as lab:
        client = datagram_socket()
        await client.connect(lab.address)
        await client.send(b"x")
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "connect_refused"
        assert lab.worker._relay.files.used == 0


async def test_a_datagram_from_our_own_listener_is_a_loop(tmp_path: Path) -> None:
    endpoint = datagram_socket()
    async with relaying(f"unixgram://{tmp_path}/door", [endpoint.getsockname()]) as lab:
        listener = lab.listener.socket
        listener.sendto(b"x", str(tmp_path / "door"))
        await lab.wait_counter(lambda c: c["listeners"][0]["refused"]["loop"], 1)
        assert await lab.live() == []


async def test_replies_of_udp_and_unix_listeners_do_not_mix(tmp_path: Path) -> None:
    """They share the batch that replies are sent from, with room for the longest address."""
    endpoint = datagram_socket()
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 1 << 20)
    async with relaying(f"unixgram://{tmp_path}/door", [endpoint.getsockname()]) as lab:
        socket = bind_socket(parse_listen("udp://127.0.0.1:0"))
        address = socket.getsockname()
        endpoints = [endpoint.getsockname()]
        await open_listener(lab.worker, "udp", socket, endpoints, Transport.UDP)
        clients = []
        for number in range(4):
            udp = datagram_socket()
            await udp.connect(address)
            clients += [udp, await bound_client(tmp_path, f"{'long' * 10}{number}")]
        for round_number in range(5):
            for number, client in enumerate(clients):
                await client.send(b"%d %d" % (round_number, number))
            for _ in clients:
                data, sender = await endpoint.recvfrom(100)
                endpoint._sock.sendto(data, sender)
            for number, client in enumerate(clients):
                assert await client.recv(100) == b"%d %d" % (round_number, number)
