"""PROXY protocol over UDP: each datagram says by itself whose it is, in and out."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from socket import AF_UNIX, IPPROTO_UDP, SOCK_DGRAM
from typing import Any

import pytest
import trio

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.access import AccessList
from proxy.core.address import Address, Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.proxy_block import AUTHORITY, LOCAL_BLOCK, write_block
from proxy.core.proxy_header import Tlv
from proxy.core.proxy_protocol import HeaderStyle, write_header
from proxy.core.unix import UnixAddress
from proxy.engine.datagram_options import DatagramOptions
from proxy.engine.runs import UDP_SEGMENT
from proxy.engine.worker import Worker
from tests.engine.lab import UPSTREAMS, Lab, change, datagram_socket, open_listener, relaying
from tests.engine.test_identified import use
from tests.engine.test_preface import LOOPBACK, until_refused

CLIENT = ("192.0.2.1", 5060)
OTHER = ("192.0.2.2", 5060)
EDGE = ("198.51.100.2", 53)


def block(client: Address = CLIENT, **parts: Any) -> bytes:
    return write_block(client, EDGE, datagrams=True, **parts)


def udp(endpoints: Sequence[Address], host: str = "127.0.0.1", **parts: Any) -> Any:
    return relaying(endpoints, Transport.UDP, host, **{"proxied": LOOPBACK, **parts})


def reach(lab: Lab, host: str = "127.0.0.1") -> Address:
    return host, lab.address[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("limits", [{}, {"admission": AdmissionLimits(source_flows=10)}])
async def test_the_declared_client_has_the_flow(host: str, limits: dict[str, Any]) -> None:
    endpoint, peer = datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()], host, **limits) as lab:
        tlvs = (Tlv(AUTHORITY, b"a"),)
        await peer.sendto(block(tlvs=tlvs, checksum=True) + b"question", reach(lab))
        data, sender = await endpoint.recvfrom(100)
        assert data == b"question"
        await endpoint.sendto(b"answer", sender)
        assert await peer.recv(100) == b"answer"
        (row,) = await lab.live()
        assert row["client"] == {
            "local": "198.51.100.2:53",
            "remote": "192.0.2.1:5060",
            "via": {
                "local": f"127.0.0.1:{lab.address[1]}",
                "remote": "{}:{}".format(*peer.getsockname()),
            },
        }
        assert row["source"] == "192.0.2.1/32"
        assert [tlv["name"] for tlv in row["tlvs"] or []] == ["authority"]
        assert row["original"] == {"bytes": 8, "packets": 1}


async def test_clients_of_one_proxy_have_flows_of_their_own() -> None:
    endpoint, peer = datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()]) as lab:
        senders = set()
        for client in (CLIENT, OTHER, CLIENT):
            await peer.sendto(block(client) + b"x", lab.address)
            senders.add((await endpoint.recvfrom(100))[1])
        assert len(senders) == 2
        rows = await lab.live()
        assert sorted(row["original"]["packets"] for row in rows) == [1, 2]


async def test_answers_go_to_where_the_last_datagram_came_from() -> None:
    endpoint, peers = datagram_socket(), [datagram_socket(), datagram_socket()]
    async with udp([endpoint.getsockname()]) as lab:
        for peer in peers:
            await peer.sendto(block() + b"x", lab.address)
            _, sender = await endpoint.recvfrom(100)
            await endpoint.sendto(b"answer", sender)
            assert await peer.recv(100) == b"answer"
        assert len(await lab.live()) == 1


@pytest.mark.parametrize("header", [LOCAL_BLOCK, block(UnixAddress(""))], ids=["local", "unspec"])
async def test_who_speaks_for_itself_is_the_client(header: bytes) -> None:
    endpoint, peer = datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()]) as lab:
        await peer.sendto(header + b"x", lab.address)
        assert await endpoint.recv(100) == b"x"
        (row,) = await lab.live()
        assert row["client"]["remote"] == "{}:{}".format(*peer.getsockname())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"question",
        block()[:-1],
        block(checksum=True)[:-1] + b"?",
        write_header(HeaderStyle(1), CLIENT, EDGE, 0),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x12\xff\xff" + bytes(5000),
    ],
)
async def test_a_datagram_without_a_right_header_goes_nowhere(data: bytes) -> None:
    endpoint, peer = datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()]) as lab:
        await peer.sendto(data, lab.address)
        await until_refused(lab, bad_header=1)
        await peer.sendto(block() + b"right", lab.address)
        assert await endpoint.recv(100) == b"right"
        assert len(await lab.live()) == 1


async def test_an_empty_datagram_is_one() -> None:
    endpoint, peer = datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()]) as lab:
        await peer.sendto(block(), lab.address)
        assert await endpoint.recv(100) == b""


async def test_a_reload_may_begin_and_end_it() -> None:
    endpoint, peer = datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()]) as lab:
        spec = lab.worker._roster.specs["lab"]
        for proxied, said in ((None, block() + b"x"), (LOOPBACK, b"x")):
            changed = (replace(spec, proxied=proxied),)
            await lab.worker.apply(change(*UPSTREAMS[lab.worker].values(), changed=changed))
            await peer.sendto(block() + b"x", lab.address)
            assert await endpoint.recv(100) == said
        assert len(await lab.live()) == 2


async def test_a_dual_stack_listener_knows_ipv4_peers() -> None:
    endpoint, peer = datagram_socket(), datagram_socket()
    socket = bind_socket(ListenAddress(Transport.UDP, "::", 0), dual_stack=True)
    worker = Worker(100, recent=100)
    await open_listener(
        worker, "lab", socket, [endpoint.getsockname()], Transport.UDP, proxied=LOOPBACK
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        for payload in (b"x", b"y"):
            await peer.sendto(block() + payload, ("127.0.0.1", socket.getsockname()[1]))
            data, sender = await endpoint.recvfrom(100)
            assert data == payload
            await endpoint.sendto(b"answer", sender)
            assert await peer.recv(100) == b"answer"
        worker.stop()
        nursery.cancel_scope.cancel()


async def test_no_header_is_looked_for_from_others() -> None:
    endpoint, peer = datagram_socket(), datagram_socket("127.0.0.2")
    async with udp([endpoint.getsockname()]) as lab:
        await peer.sendto(block() + b"x", lab.address)
        assert await endpoint.recv(100) == block() + b"x"
        (row,) = await lab.live()
        assert row["client"]["remote"] == "{}:{}".format(*peer.getsockname())
        assert row["client"]["via"] is None


async def test_others_are_refused_where_nobody_comes_by_himself() -> None:
    peer = datagram_socket("127.0.0.2")
    async with udp([CLIENT], proxied=LOOPBACK._replace(alone=True)) as lab:
        await peer.sendto(b"x", lab.address)
        await until_refused(lab, access=1)


async def test_ceilings_and_access_are_those_of_declared_clients() -> None:
    endpoint, peer = datagram_socket(), datagram_socket()
    access = AccessList([], [ipaddress.ip_network("192.0.2.2/32")])
    limits = AdmissionLimits(source_flows=1)
    async with udp([endpoint.getsockname()], access=access, admission=limits) as lab:
        for client in (CLIENT, (CLIENT[0], 1), OTHER, ("192.0.2.3", 1)):
            await peer.sendto(block(client), lab.address)
        await until_refused(lab, source_flows=1, access=1)
        assert len(await lab.live()) == 2


@pytest.mark.parametrize("checksum", [False, True])
async def test_the_endpoint_is_told_in_every_datagram(
    checksum: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = use(HeaderStyle(2, checksum), monkeypatch)
    endpoint, client = datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()], proxied=None) as lab:
        header = write_header(style, client.getsockname(), lab.address, 1, datagrams=True)
        for _ in range(3):
            for size in (5, 0):
                await client.sendto(bytes(size), lab.address)
            for size in (5, 0):
                data, sender = await endpoint.recvfrom(200)
                assert data == header + bytes(size)
        await endpoint.sendto(b"answer", sender)
        assert await client.recv(100) == b"answer"
        (row,) = await lab.live()
        assert row["original"] == {"bytes": 15, "packets": 6}


async def test_what_has_no_room_for_a_header_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    use(HeaderStyle(2), monkeypatch)
    endpoint, client = datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()], proxied=None) as lab:
        await client.sendto(bytes(65_507), lab.address)
        await lab.wait_counter(lambda counters: counters["listeners"][0]["dropped"]["too_big"], 1)


async def test_a_burst_has_a_header_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener without headers would send it as one piece."""
    style = use(HeaderStyle(2), monkeypatch)
    endpoint, client = datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()], proxied=None) as lab:
        header = write_header(style, client.getsockname(), lab.address, 1, datagrams=True)
        for _ in range(20):
            await client.sendto(b"x" * 100, lab.address)
        for _ in range(20):
            assert await endpoint.recv(300) == header + b"x" * 100


async def test_a_flow_keeps_its_header_in_bursts_after_a_reload_without_headers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """New flows have none, and bursts of theirs go as one piece."""
    style = use(HeaderStyle(2), monkeypatch)
    endpoint, client = datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()], proxied=None) as lab:
        header = write_header(style, client.getsockname(), lab.address, 1, datagrams=True)
        await client.sendto(b"x" * 100, lab.address)
        assert await endpoint.recv(300) == header + b"x" * 100
        await lab.worker.apply(change(replace(UPSTREAMS[lab.worker]["lab"], style=None)))
        control = [(IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 100))]
        await client.sendmsg([b"y" * 500], control, 0, lab.address)
        for _ in range(5):
            assert await endpoint.recv(1000) == header + b"y" * 100


async def test_a_declared_client_is_declared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    style = use(HeaderStyle(2), monkeypatch)
    endpoint, peer = datagram_socket(), datagram_socket()
    options = DatagramOptions(responses=1)
    async with udp([endpoint.getsockname()], datagrams=options) as lab:
        await peer.sendto(block() + b"x", lab.address)
        header = write_header(style, CLIENT, EDGE, 1, datagrams=True)
        data, sender = await endpoint.recvfrom(200)
        assert data == header + b"x"
        await endpoint.sendto(b"answer", sender)
        assert await peer.recv(100) == b"answer"
        (row,) = await lab.wait_ended()  # which responses = 1 still does
        assert row["close_reason"] == "finished"


async def test_an_endpoint_at_a_unix_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = use(HeaderStyle(2), monkeypatch)
    path = str(tmp_path / "endpoint.sock")
    with trio.socket.socket(AF_UNIX, SOCK_DGRAM) as endpoint:
        await endpoint.bind(path)
        async with udp([UnixAddress(path)], proxied=None) as lab:
            client = datagram_socket()
            await client.sendto(b"x", lab.address)
            header = write_header(style, client.getsockname(), lab.address, 1, datagrams=True)
            assert await endpoint.recv(200) == header + b"x"
