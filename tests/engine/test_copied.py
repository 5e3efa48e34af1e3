"""DSCP as the client sent it, and priorities: read off the packets that arrive at other hosts."""

from __future__ import annotations

import re
import socket as std
import struct
import subprocess
from collections.abc import Iterator

import pytest
import trio
from trio.socket import SocketType

from proxy.config.load import parse
from proxy.control.outbound import OptionError, outbounds
from proxy.core.address import Address, format_address
from proxy.engine.copied import (
    CLASS_SPACE,
    TCP_SAVE_SYN,
    CopiedWay,
    dscp_of_datagram,
    dscp_of_packet,
)
from proxy.engine.outbound import Outbound
from tests.control.binding import bind_listeners
from tests.engine.lab import accept, family_of, receive_exactly, send_all
from tests.engine.origins_lab import (
    CLIENT,
    CLIENT_V6,
    SERVER,
    SERVER_V6,
    housed,
    listening,
    noted,
    routed,
    sniffing,
    traffic_class,
    unprivileged,
)
from tests.engine.test_origins import BOTH, configuration, divert
from tests.engine.udp_network import Network

PROXY, PROXY_V6 = "10.0.1.1", "fd01::1"
SO_PRIORITY = 12
COPIES = 'dscp = "copy"'
AF41 = 34


@pytest.fixture
def network() -> Iterator[Network]:
    with routed() as network:
        yield network


def set_dscp(socket: SocketType, dscp: int) -> None:
    """Mark what a peer sends, with ECN bits beside it, which nobody is to copy."""
    socket.setsockopt(std.IPPROTO_IP, std.IP_TOS, dscp << 2 | 1)
    if socket.family == std.AF_INET6:
        socket.setsockopt(std.IPPROTO_IPV6, std.IPV6_TCLASS, dscp << 2 | 1)


async def calling(
    network: Network, source: str, to: Address, dscp: int, port: int = 0
) -> SocketType:
    """A TCP client that marks its SYN."""
    with network.inside("client"):
        socket = std.socket(family_of(to), std.SOCK_STREAM | std.SOCK_NONBLOCK)
        socket.bind((source, port))
    client = noted(socket)
    set_dscp(client, dscp)
    await client.connect(to)
    return client


def marking(network: Network, source: str, to: Address, dscp: int) -> SocketType:
    """A UDP client that marks its datagrams."""
    client = network.socket("client", source)
    set_dscp(client, dscp)
    return client


def telling(network: Network, host: str, port: int = 7000) -> SocketType:
    """A UDP server that is told how datagrams to it are marked."""
    server = network.socket("server", host, port)
    if server.family == std.AF_INET6:
        server.setsockopt(std.IPPROTO_IPV6, std.IPV6_RECVTCLASS, 1)
    server.setsockopt(std.IPPROTO_IP, std.IP_RECVTOS, 1)
    return server


async def told(server: SocketType) -> tuple[bytes, int, Address]:
    """The next datagram, its DSCP, and whom it is from."""
    data, [(_, _, value)], _, peer = await server.recvmsg(2000, 64)
    assert value[0] & 3 == 0, "ECN is nobody else's"
    return data, value[0] >> 2, peer


@BOTH
@pytest.mark.parametrize("towards", [SERVER, SERVER_V6], ids=["to-v4", "to-v6"])
async def test_a_stream_has_the_dscp_of_its_syn(
    network: Network, client_host: str, server_host: str, towards: str
) -> None:
    endpoint = listening(network, "server", towards, 7000)
    sniffer = sniffing(network, "server")
    text = configuration(endpoint=format_address(endpoint.getsockname()[:2]), upstream=COPIES)
    to = (PROXY_V6 if ":" in client_host else PROXY, 15000)
    async with housed(text):
        for dscp in (46, 0, 63, 46):
            await calling(network, client_host, to, dscp)
            port = (await accept(endpoint)).getpeername()[1]
            assert await traffic_class(sniffer, port) >> 2 == dscp  # the SYN's
            assert await traffic_class(sniffer, port) >> 2 == dscp


UDP_CASES = pytest.mark.parametrize(
    ("listen", "source", "to"),
    [
        ("udp://0.0.0.0:15000", CLIENT, PROXY),
        ("udp://10.0.1.1:15000", CLIENT, PROXY),
        ("udp://[::]:15000", CLIENT, PROXY),
        ("udp://[::]:15000", CLIENT_V6, PROXY_V6),
        ("udp://[fd01::1]:15000", CLIENT_V6, PROXY_V6),
    ],
)


@UDP_CASES
@pytest.mark.parametrize("limited", [False, True])
async def test_datagrams_have_the_dscp_of_the_one_that_opened_the_flow(
    network: Network, listen: str, source: str, to: str, limited: bool
) -> None:
    server = telling(network, SERVER)
    more = 'limits.bandwidth = "1Gbit/s"' if limited else ""
    async with housed(configuration(listen, f"{SERVER}:7000", more, COPIES)) as lab:
        for dscp in (46, 0, 63):
            client = marking(network, source, (to, 15000), dscp)
            for question in (b"one", b"two"):
                await client.sendto(question, (to, 15000))
                data, seen, peer = await told(server)
                assert (data, seen) == (question, dscp)
                await server.sendto(data + b"!", peer)
                assert (await client.recvfrom(10))[0] == data + b"!"
            set_dscp(client, AF41)
            await client.sendto(b"later", (to, 15000))
            assert (await told(server))[:2] == (b"later", dscp)
        assert len(await lab.live()) == 3


@BOTH
@pytest.mark.parametrize("listen", ["udp://[::]:15000", "own"])
async def test_a_diverted_datagram_is_copied_too(
    network: Network, client_host: str, server_host: str, listen: str
) -> None:
    divert(network, "udp")
    if listen == "own":
        listen = "udp://0.0.0.0:15000" if client_host == CLIENT else "udp://[::]:15000"
    server = telling(network, server_host, 53)
    text = configuration(listen, listener="transparent = true", upstream=COPIES)
    async with housed(text):
        client = marking(network, client_host, (server_host, 53), 46)
        for question in (b"one", b"two"):
            await client.sendto(question, (server_host, 53))
            data, seen, peer = await told(server)
            assert (data, seen, peer[:2]) == (question, 46, client.getsockname()[:2])
            await server.sendto(b"a", peer)
            assert (await client.recvfrom(10))[0] == b"a"


@UDP_CASES
async def test_trains_are_known_beside_the_dscp(
    network: Network, listen: str, source: str, to: str
) -> None:
    """A train that was taken for a datagram would arrive as one."""
    server = telling(network, SERVER)
    async with housed(configuration(listen, f"{SERVER}:7000", "", COPIES)) as lab:
        client = marking(network, source, (to, 15000), 46)
        train = [(std.IPPROTO_UDP, 103, struct.pack("=H", 100))]
        await client.sendmsg([bytes(250)], train, 0, (to, 15000))
        sizes = [await told(server) for _ in range(3)]
        assert [(len(data), dscp) for data, dscp, _ in sizes] == [(100, 46), (100, 46), (50, 46)]
        assert (await lab.live())[0]["original"]["packets"] == 3


async def test_copying_is_off_unless_it_is_on(network: Network) -> None:
    """Nothing is asked of the kernel that nobody needs."""
    for scheme, upstream, wanted in [("tcp", "", 0), ("tcp", COPIES, 1), ("udp", "", 0)]:
        text = configuration(f"{scheme}://0.0.0.0:15000", f"{SERVER}:7000", "", upstream)
        async with housed(text) as lab:
            ((listener,),) = lab.worker._roster._listeners.values()
            asked = (
                (std.IPPROTO_TCP, TCP_SAVE_SYN)
                if scheme == "tcp"
                else (std.IPPROTO_IP, std.IP_RECVTOS)
            )
            assert listener.socket.getsockopt(*asked) == wanted


# What leaves the proxy with each priority, and by which interface.
COUNTERS = "table inet count {\n%s\nchain out {\n type filter hook output priority 0\n%s\n}\n}"


def count_priorities(network: Network, *rules: str) -> None:
    names = "\n".join(f"counter c{number} {{ }}" for number in range(len(rules)))
    lines = "\n".join(f"{rule} counter name c{number}" for number, rule in enumerate(rules))
    network.run("proxy", "nft", COUNTERS % (names, lines))


def counted() -> list[int]:
    command = ["nft", "list", "counters"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(found) for found in re.findall(r"packets (\d+)", listing)]


NEAR, FAR = 'oifname "eth0" meta l4proto { tcp, udp }', 'oifname "eth1" meta l4proto { tcp, udp }'


@BOTH
async def test_streams_have_their_priorities_on_both_sides(
    network: Network, client_host: str, server_host: str
) -> None:
    """Beside DSCPs, of which the kernel would make others."""
    count_priorities(
        network,
        f"{NEAR} meta priority 0:3",
        f"{NEAR} meta priority != 0:3",
        f"{FAR} meta priority 0:f",
        f"{FAR} meta priority != 0:f",
    )
    endpoint = listening(network, "server", server_host, 7000)
    text = configuration(
        endpoint=format_address(endpoint.getsockname()[:2]),
        listener='dscp = "af41"\npriority = 3',
        upstream='dscp = "copy"\npriority = 15',
    )
    async with housed(text):
        to = (PROXY_V6 if ":" in client_host else PROXY, 15000)
        client = await calling(network, client_host, to, 46)
        accepted = await accept(endpoint)
        for _ in range(3):
            await send_all(client, b"request")
            await receive_exactly(accepted, 7)
            await send_all(accepted, b"x")
            assert await receive_exactly(client, 1) == b"x"
    near, other_near, far, other_far = counted()
    assert near >= 4
    assert far >= 4
    assert (other_near, other_far) == (0, 0)


@pytest.mark.parametrize("transparent", [False, True])
async def test_datagrams_have_their_priorities_on_both_sides(
    network: Network, transparent: bool
) -> None:
    count_priorities(
        network,
        f"{NEAR} meta priority 0:0",
        f"{NEAR} meta priority != 0:0",
        f"{FAR} meta priority 0:5",
        f"{FAR} meta priority != 0:5",
    )
    divert(network, "udp")
    server = network.socket("server", SERVER, 53)
    # DSCP 34 alone would make it priority 2.
    listener = "dscp = 34\npriority = 0" + transparent * "\ntransparent = true"
    endpoint = "original" if transparent else f"{SERVER}:53"
    text = configuration("udp://0.0.0.0:15000", endpoint, listener, "priority = 5")
    to = (SERVER, 53) if transparent else (PROXY, 15000)
    async with housed(text):
        client = network.socket("client", CLIENT)
        for _ in range(2):
            await client.sendto(b"q", to)
            _, peer = await server.recvfrom(10)
            await server.sendto(b"a", peer)
            assert (await client.recvfrom(10))[0] == b"a"
    assert counted() == [2, 0, 2, 0]


@pytest.mark.parametrize("side", ["listener", "upstream"])
async def test_a_high_priority_needs_a_privilege_which_is_named(
    network: Network, side: str
) -> None:
    config = {}
    for number in (6, 7):
        keys = {side: f"priority = {number}"}
        text = configuration("tcp://0.0.0.0:15000", f"{SERVER}:1", **keys)
        config[number] = parse(text, "f")
    owner = "listener.a" if side == "listener" else "upstream.b"

    def rehearse(number: int) -> None:
        outbounds(config[number])
        for socket in bind_listeners(config[number]).values():
            socket.close()

    with unprivileged():
        rehearse(6)
        with pytest.raises(OptionError) as caught:
            rehearse(7)
    assert str(caught.value) == (
        f"{owner}.priority: cannot be used: Operation not permitted; above 6 it needs CAP_NET_ADMIN"
    )


async def test_a_way_is_worked_out_once_for_each_dscp() -> None:
    way = Outbound(copies_dscp=True).way(std.SOCK_DGRAM)
    assert isinstance(way, CopiedWay)
    assert way.with_dscp(46) is way.with_dscp(46)
    assert way.with_dscp(46) is not way.with_dscp(0)
    socket, error = way.with_dscp(46)(("127.0.0.1", 9), ("127.0.0.1", 1))
    with trio.socket.from_stdlib_socket(std.socket(fileno=socket.detach())) as opened:
        assert (error, opened.getsockopt(std.IPPROTO_IP, std.IP_TOS)) == (0, 46 << 2)


async def test_the_dscp_of_a_packet() -> None:
    for value in range(256):
        for beside in (0, 5, 15):
            v4 = bytes([0x40 | beside, value, 0xFF, 0xFF])
            v6 = struct.pack("!I", 6 << 28 | value << 20 | beside << 16)
            assert dscp_of_packet(v4) == dscp_of_packet(v6) == value >> 2


async def test_what_the_kernel_has_not_kept_is_none() -> None:
    assert dscp_of_packet(b"") == dscp_of_packet(b"\x45") == 0


MESSAGE = struct.Struct("=Qii")
PKTINFO = MESSAGE.pack(28, std.IPPROTO_IP, 8) + bytes(16)
V4_CLASS = MESSAGE.pack(17, std.IPPROTO_IP, 1) + bytes([46 << 2 | 3]) + bytes(7)
V6_CLASS = MESSAGE.pack(20, std.IPPROTO_IPV6, 67) + struct.pack("=I", 46 << 2 | 3) + bytes(4)


async def test_the_dscp_among_control_messages() -> None:
    assert len(V4_CLASS) == len(V6_CLASS) == CLASS_SPACE
    for told_by in (V4_CLASS, V6_CLASS):
        assert dscp_of_datagram(memoryview(told_by)) == 46
        assert dscp_of_datagram(memoryview(PKTINFO + told_by)) == 46
        assert dscp_of_datagram(memoryview(told_by + PKTINFO)) == 46
    assert dscp_of_datagram(memoryview(PKTINFO)) == dscp_of_datagram(memoryview(b"")) == 0
