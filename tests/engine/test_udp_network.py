"""UDP between several hosts: where answers leave from, ICMP errors, broadcast and multicast."""

from __future__ import annotations

import socket as std
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import parse_listen
from proxy.control.listen import bind_socket
from proxy.core.address import Address, Transport
from proxy.core.expiry import FlowLimits
from proxy.core.flow import CloseReason, CloseSide
from proxy.core.upstream import MulticastPath
from proxy.engine.datagram_options import DatagramOptions, Pmtu
from proxy.engine.sockaddr import scoped
from proxy.engine.worker import Worker
from tests.engine.lab import PATIENCE, Lab, open_listener
from tests.engine.udp_network import Network, index_of, require_namespaces

SSDP = "239.255.255.250"
SEARCH = b'M-SEARCH * HTTP/1.1\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n'
WAKE = b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01" * 16


@pytest.fixture
def network() -> Iterator[Network]:
    """``client`` - ``proxy`` - a bridge with ``one`` and ``two``; the test is on ``proxy``."""
    require_namespaces()
    network = Network()
    try:
        for host in ("client", "proxy", "one", "two"):
            network.add(host)
        network.join("near", "client", "eth0", "10.0.1.2/24", "fd01::2/64", "fe80::2/64")
        network.join(
            "near",
            "proxy",
            "eth0",
            *("10.0.1.1/24", "10.0.1.11/24", "fd01::1/64", "fd01::11/64", "fe80::1/64"),
        )
        network.join("far", "proxy", "eth1", "10.0.2.1/24", "fd02::1/64", "fe80::21/64")
        network.join("far", "one", "eth0", "10.0.2.2/24", "fd02::2/64", "fe80::22/64")
        network.join("far", "two", "eth0", "10.0.2.3/24", "fd02::3/64", "fe80::23/64")
        with network.inside("proxy"):
            yield network
    finally:
        network.close()


@asynccontextmanager
async def relaying(
    listen: str,
    endpoints: Sequence[Address],
    options: DatagramOptions | None = None,
    path: MulticastPath | None = None,
    groups: Sequence[str] = (),
    limits: FlowLimits | None = None,
    group_interface: str = "eth0",
) -> AsyncIterator[Lab]:
    """The relay on the host ``proxy``."""
    worker = Worker(1000, recent=1000)
    socket = bind_socket(parse_listen(listen), groups=groups, group_interface=group_interface)
    await open_listener(
        worker,
        "lab",
        socket,
        endpoints,
        Transport.UDP,
        limits,
        datagrams=options or DatagramOptions(),
        multicast=path or MulticastPath(),
    )
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            try:
                yield Lab(worker, socket.getsockname(), Transport.UDP)
            finally:
                worker.stop()
                nursery.cancel_scope.cancel()


async def echo(endpoint: SocketType, *, mark: bytes = b"") -> None:
    """Answer for ever."""
    while True:
        data, sender = await endpoint.recvfrom(70000)
        await endpoint.sendto(mark + data, sender)


async def ask(client: SocketType, address: Address, data: bytes = b"who") -> Address:
    """Send, and return who answered."""
    await client.sendto(data, address)
    answer, answerer = await client.recvfrom(70000)
    assert answer == data
    sender: Address = answerer
    return sender


@pytest.mark.parametrize(
    ("listen", "endpoint", "source", "hits"),
    [
        ("udp://0.0.0.0:53", "10.0.2.2", "10.0.1.2", ["10.0.1.1", "10.0.1.11", "10.0.2.1"]),
        ("udp://[::]:53", "fd02::2", "fd01::2", ["fd01::1", "fd01::11", "fd02::1"]),
        ("udp://10.0.1.11:53", "fd02::2", "10.0.1.2", ["10.0.1.11"]),
        ("udp://[fd01::11]:53", "10.0.2.2", "fd01::2", ["fd01::11"]),
    ],
)
async def test_an_answer_leaves_from_the_address_that_was_hit(
    network: Network, listen: str, endpoint: str, source: str, hits: list[str]
) -> None:
    network.run("client", "ip", "route", "add", "10.0.2.0/24", "via", "10.0.1.1")
    network.run("client", "ip", "route", "add", "fd02::/64", "via", "fd01::1")
    client, server = network.socket("client", source), network.socket("one", endpoint, 53)
    async with relaying(listen, [(endpoint, 53)]) as lab, trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        for hit in hits:
            assert (await ask(client, (hit, 53)))[:2] == (hit, 53)
        locals_seen = {row["client"]["local"] for row in await lab.live()}
        assert locals_seen == {f"[{hit}]:53" if ":" in hit else f"{hit}:53" for hit in hits}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("listen", ["udp://[fe80::1%eth0]:53", "udp://[::]:53"])
async def test_link_local_addresses_show_their_interface(network: Network, listen: str) -> None:
    client = network.socket("client", "fe80::2", scope="eth0")
    server = network.socket("one", "fe80::22", 53, scope="eth0")
    with network.inside("client"):
        scope = index_of("eth0")
    async with (
        relaying(listen, [scoped("fe80::22%eth1", 53)]) as lab,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, server)
        assert await ask(client, ("fe80::1", 53, 0, scope)) == ("fe80::1", 53, 0, scope)
        (row,) = await lab.live()
        assert row["client"]["local"] == "[fe80::1%eth0]:53"
        assert row["client"]["remote"] == f"[fe80::2%eth0]:{client.getsockname()[1]}"
        assert row["endpoint"]["remote"] == "[fe80::22%eth1]:53"
        assert (row["endpoint"]["local"] or "").startswith("[fe80::21%eth1]:")
        (listening,) = (await lab.worker.status())["listening"]
        assert listening["local"] == listen.removeprefix("udp://")
        nursery.cancel_scope.cancel()


REJECTIONS = [
    ("ip", "icmp type port-unreachable", "refused"),
    ("ip", "icmp type host-unreachable", "host_unreachable"),
    ("ip", "icmp type net-unreachable", "net_unreachable"),
    ("ip", "icmp type admin-prohibited", "prohibited"),
    ("ip", "icmp type host-prohibited", "prohibited"),
    ("ip", "icmp type prot-unreachable", "other"),
    ("ip6", "icmpv6 type port-unreachable", "refused"),
    ("ip6", "icmpv6 type addr-unreachable", "host_unreachable"),
    ("ip6", "icmpv6 type no-route", "net_unreachable"),
    ("ip6", "icmpv6 type admin-prohibited", "prohibited"),
]


@pytest.mark.parametrize(("family", "reject", "kind"), REJECTIONS)
async def test_icmp_errors_are_counted_by_kind_and_end_nothing(
    network: Network, family: str, reject: str, kind: str
) -> None:
    host = "10.0.2.2" if family == "ip" else "fd02::2"
    network.run("one", "nft", f"add table {family} t")
    network.run("one", "nft", f"add chain {family} t c {{ type filter hook input priority 0; }}")
    network.run("one", "nft", f"add rule {family} t c udp dport 53 reject with {reject}")
    client, server = network.socket("client", "10.0.1.2"), network.socket("one", host, 53)
    async with relaying("udp://10.0.1.1:53", [(host, 53)]) as lab:
        await client.connect(("10.0.1.1", 53))
        for number in (1, 2):
            await client.send(b"x")
            await lab.wait_counter(lambda c: c["listeners"][0]["dropped"][kind], number)
        rounds = lab.worker._relay.pump.rounds
        await trio.sleep(0.05)
        woken = lab.worker._relay.pump.rounds - rounds
        assert woken < 20, "an error that was counted is gone"
        network.run("one", "nft", f"delete table {family} t")
        await client.send(b"back")
        assert (await server.recvfrom(100))[0] == b"back"
        counters = (await lab.counters())["listeners"][0]
        assert sum(counters["dropped"].values()) == 2
        assert counters["original"]["packets_sent"] == 3
        assert [row["close_reason"] for row in await lab.live()] == [None]


@pytest.mark.parametrize("burst", [1, 20])
async def test_a_datagram_is_not_lost_for_the_error_of_an_earlier_one(
    network: Network, burst: int
) -> None:
    network.run("one", "nft", "add table ip t")
    network.run("one", "nft", "add chain ip t c { type filter hook input priority 0; }")
    network.run("one", "nft", "add rule ip t c udp length 9 reject")  # one byte of payload
    client, server = network.socket("client", "10.0.1.2"), network.socket("one", "10.0.2.2", 53)
    async with relaying("udp://10.0.1.1:53", [("10.0.2.2", 53)]):
        await client.connect(("10.0.1.1", 53))
        for number in range(burst):
            client._sock.send(b"x")
            client._sock.send(b"number %d" % number)
        received = [(await server.recvfrom(100))[0] for _ in range(burst)]
        assert received == [b"number %d" % number for number in range(burst)]


async def test_a_hop_limit_that_was_reached_is_counted(network: Network) -> None:
    network.run("one", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    network.run("proxy", "ip", "route", "add", "10.0.9.0/24", "via", "10.0.2.2")
    network.run("one", "ip", "route", "add", "10.0.9.0/24", "via", "10.0.2.3")
    network.run("proxy", "sysctl", "-qw", "net.ipv4.ip_default_ttl=1")
    client = network.socket("client", "10.0.1.2")
    async with relaying("udp://10.0.1.1:53", [("10.0.9.1", 53)]) as lab:
        await client.sendto(b"x", ("10.0.1.1", 53))
        await lab.wait_counter(lambda c: c["listeners"][0]["dropped"]["ttl_exceeded"], 1)


@pytest.mark.parametrize("pmtu", Pmtu)
@pytest.mark.parametrize("version", [4, 6])
async def test_a_datagram_that_the_path_cannot_carry_whole(
    network: Network, pmtu: Pmtu, version: int
) -> None:
    """``proxy`` - ``one`` with a narrow link to ``two``, which is asked for the other network."""
    network.run("one", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    host, prefix = ("10.0.9.1", "10.0.9.0/24") if version == 4 else ("fd09::1", "fd09::/64")
    via, back = ("10.0.2.2", "10.0.2.3") if version == 4 else ("fd02::2", "fd02::3")
    network.run("proxy", "ip", "route", "add", prefix, "via", via)
    network.run("one", "ip", "route", "add", prefix, "via", back, "mtu", "1300")
    network.run("two", "ip", "address", "add", f"{host}/128" if version == 6 else host, "dev", "lo")
    client, server = network.socket("client", "10.0.1.2"), network.socket("two", host, 53)
    options = DatagramOptions(pmtu=pmtu)
    async with relaying("udp://10.0.1.1:53", [(host, 53)], options) as lab:
        await client.connect(("10.0.1.1", 53))

        def too_big() -> int:
            return lab.listener.counters.dropped["too_big"]

        await client.send(b"x" * 1400)
        if pmtu is Pmtu.ALLOW and version == 4:
            assert len((await server.recvfrom(2000))[0]) == 1400
            await client.send(b"x" * 3000)
            assert len((await server.recvfrom(4000))[0]) == 3000
            assert too_big() == 0
            return
        if pmtu is not Pmtu.ALLOW:  # IPv6 tells nobody who fragments anyway: ipv6(7)
            while too_big() < 1:
                await trio.sleep(0.002)
        if pmtu in {Pmtu.FORBID, Pmtu.PROBE}:
            await client.send(b"x" * (1400 if pmtu is Pmtu.FORBID else 3000))
            while too_big() < 2:
                await trio.sleep(0.002)
            return
        with trio.move_on_after(1) as waited:
            while True:
                await client.send(b"y" * 1400)
                with trio.move_on_after(0.05):
                    assert (await server.recvfrom(2000))[0] == b"y" * 1400
                    break
        assert not waited.cancelled_caught


async def test_what_the_kernel_drops_on_the_way_back_is_counted(network: Network) -> None:
    client, server = network.socket("client", "10.0.1.2"), network.socket("one", "10.0.2.2", 53)
    async with relaying("udp://10.0.1.1:53", [("10.0.2.2", 53)]) as lab:
        await client.sendto(b"x", ("10.0.1.1", 53))
        _, proxy = await server.recvfrom(100)
        (flow,) = list(lab.worker._relay.table)
        flow.socket.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 2048)
        for _ in range(50):
            server._sock.sendto(b"x" * 1000, proxy)  # no checkpoint: the pump cannot read
        flow.abort(CloseReason.KILLED, CloseSide.PROXY, 0.0)
        assert (await lab.counters())["listeners"][0]["dropped"]["kernel"] > 10


async def test_an_ssdp_search_reaches_every_device_and_brings_all_answers(
    network: Network,
) -> None:
    devices = [network.socket(host, "0.0.0.0", 1900) for host in ("one", "two")]
    for host, device in zip(("one", "two"), devices, strict=True):
        with network.inside(host):
            member = std.inet_aton(SSDP) + struct.pack("=Ii", 0, index_of("eth0"))
            device.setsockopt(std.IPPROTO_IP, std.IP_ADD_MEMBERSHIP, member)
    client = network.socket("client", "10.0.1.2")
    with network.inside("client"):
        request = struct.pack("=IIi", 0, 0, index_of("eth0"))
        client.setsockopt(std.IPPROTO_IP, std.IP_MULTICAST_IF, request)
    path = MulticastPath("eth1", ttl=4)
    options = DatagramOptions(multicast=True)
    async with (
        relaying("udp://0.0.0.0:1900", [(SSDP, 1900)], options, path, [SSDP]) as lab,
        trio.open_nursery() as nursery,
    ):
        for number, device in enumerate(devices):
            nursery.start_soon(partial_echo, device, b"device %d: " % number)
        await client.sendto(SEARCH, (SSDP, 1900))
        answers = [await client.recvfrom(1000) for _ in devices]
        assert {data for data, _ in answers} == {b"device 0: " + SEARCH, b"device 1: " + SEARCH}
        assert {sender for _, sender in answers} == {("10.0.1.1", 1900)}
        (row,) = await lab.live()
        assert row["state"] == "assured"
        assert row["client"]["local"] == f"{SSDP}:1900"
        assert row["endpoint"]["remote"] == f"{SSDP}:1900"
        assert (row["endpoint"]["local"] or "").startswith("10.0.2.1:")
        responders = sorted(row["responders"] or [], key=lambda responder: str(responder["remote"]))
        size = len(b"device 0: " + SEARCH)
        assert responders == [
            {"remote": "10.0.2.2:1900", "packets": 1, "bytes": size},
            {"remote": "10.0.2.3:1900", "packets": 1, "bytes": size},
        ]
        nursery.cancel_scope.cancel()
        assert lab.worker._relay.files.used == 2
    assert lab.worker._relay.files.used == 0


async def partial_echo(device: SocketType, mark: bytes) -> None:
    await echo(device, mark=mark)


async def test_an_ipv6_group_works_the_same_way(network: Network) -> None:
    group = "ff02::c"
    devices = [network.socket(host, "::", 1900) for host in ("one", "two")]
    for host, device in zip(("one", "two"), devices, strict=True):
        with network.inside(host):
            member = std.inet_pton(std.AF_INET6, group) + struct.pack("=I", index_of("eth0"))
            device.setsockopt(std.IPPROTO_IPV6, std.IPV6_JOIN_GROUP, member)
    client = network.socket("client", "fe80::2", scope="eth0")
    with network.inside("client"):
        scope = index_of("eth0")
    options = DatagramOptions(multicast=True)
    endpoint = (group, 1900, 0, 0)
    async with (
        relaying("udp://[::]:1900", [endpoint], options, MulticastPath("eth1"), [group]) as lab,
        trio.open_nursery() as nursery,
    ):
        for device in devices:
            nursery.start_soon(echo, device)
        await client.sendto(SEARCH, (group, 1900, 0, scope))
        for _ in devices:
            _, sender = await client.recvfrom(1000)
            assert sender[0] == "fe80::1"
        (row,) = await lab.live()
        assert row["client"]["local"] == f"[{group}%eth0]:1900"
        assert {responder["remote"] for responder in row["responders"] or []} == {
            "[fe80::22%eth1]:1900",
            "[fe80::23%eth1]:1900",
        }
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("text", ["ff02::c", "ff12::c"])
async def test_the_zone_of_a_group_says_where_before_any_key_does(
    network: Network, text: str
) -> None:
    """The keys name the wrong side of each."""
    device = network.socket("one", "::", 1900)
    with network.inside("one"):
        member = std.inet_pton(std.AF_INET6, text) + struct.pack("=I", index_of("eth0"))
        device.setsockopt(std.IPPROTO_IPV6, std.IPV6_JOIN_GROUP, member)
    client = network.socket("client", "fe80::2", scope="eth0")
    with network.inside("client"):
        scope = index_of("eth0")
    address = scoped(f"{text}%eth1", 1900)
    ways = MulticastPath("eth0"), [f"{text}%eth0"]
    options = DatagramOptions(multicast=True)
    async with (
        relaying("udp://[::]:1900", [address], options, *ways, group_interface="eth1") as lab,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, device)
        await client.sendto(SEARCH, (text, 1900, 0, scope))
        assert (await client.recvfrom(1000))[0] == SEARCH
        (row,) = await lab.live()
        assert row["endpoint"]["remote"] == f"[{text}%eth1]:1900"
        assert [each["remote"] for each in row["responders"] or []] == ["[fe80::22%eth1]:1900"]
        nursery.cancel_scope.cancel()


async def test_a_group_within_an_interface_is_heard_on_this_host(network: Network) -> None:
    device = network.socket("proxy", "::", 1901)
    member = std.inet_pton(std.AF_INET6, "ff01::c") + struct.pack("=I", index_of("eth1"))
    device.setsockopt(std.IPPROTO_IPV6, std.IPV6_JOIN_GROUP, member)
    client = network.socket("client", "10.0.1.2")
    endpoint = scoped("ff01::c%eth1", 1901)
    async with (
        relaying("udp://10.0.1.1:53", [endpoint]) as lab,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, device)
        assert await ask(client, ("10.0.1.1", 53)) == ("10.0.1.1", 53)
        (row,) = await lab.live()
        assert row["endpoint"]["remote"] == "[ff01::c%eth1]:1901"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("target", ["10.0.2.255", "255.255.255.255"])
@pytest.mark.parametrize("hit", ["10.0.1.255", "255.255.255.255"])
async def test_a_wake_on_lan_broadcast_crosses_to_the_other_network(
    network: Network, target: str, hit: str
) -> None:
    network.run("client", "ip", "route", "add", "default", "dev", "eth0")
    hosts = [network.socket(host, "0.0.0.0", 9) for host in ("one", "two")]
    client = network.socket("client", "10.0.1.2")
    options = DatagramOptions(broadcast=True)
    path = MulticastPath("eth1")
    async with relaying("udp://0.0.0.0:9", [(target, 9)], options, path) as lab:
        await client.sendto(WAKE, (hit, 9))
        for host in hosts:
            data, sender = await host.recvfrom(1000)
            assert (data, sender[0]) == (WAKE, "10.0.2.1")
            await host.sendto(b"awake", sender)
            assert await client.recvfrom(100) == (b"awake", ("10.0.1.1", 9))
        (row,) = await lab.live()
        assert row["client"]["local"] == f"{hit}:9"
        assert len(row["responders"] or []) == 2


async def test_our_own_broadcast_does_not_come_back_as_a_new_flow(network: Network) -> None:
    """The listener and its endpoint are on the same network: each broadcast returns to us."""
    client = network.socket("client", "10.0.1.2")
    options = DatagramOptions(broadcast=True)
    async with relaying("udp://0.0.0.0:9", [("10.0.1.255", 9)], options) as lab:
        await client.sendto(WAKE, ("10.0.1.255", 9))
        await lab.wait_counter(lambda c: c["listeners"][0]["refused"]["loop"], 1)
        assert len(await lab.live()) == 1
        assert (await lab.counters())["listeners"][0]["opened"] == 1


async def test_a_broadcast_is_refused_where_it_is_not_served(network: Network) -> None:
    client, server = network.socket("client", "10.0.1.2"), network.socket("one", "10.0.2.2", 53)
    async with (
        relaying("udp://0.0.0.0:53", [("10.0.2.2", 53)]) as lab,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, server)
        await ask(client, ("10.0.1.1", 53))
        await client.sendto(b"everybody", ("10.0.1.255", 53))
        await lab.wait_counter(lambda c: c["listeners"][0]["refused"]["broadcast"], 1)
        (row,) = await lab.live()
        assert row["original"]["packets"] == 1
        nursery.cancel_scope.cancel()
