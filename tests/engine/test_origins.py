"""Where flows come from and where they were meant to go, seen by the hosts on either side."""

from __future__ import annotations

import socket as std
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio

from proxy.config.load import parse
from proxy.control.outbound import OptionError, outbounds
from proxy.core.address import Address, format_address
from proxy.core.flow import Refusal
from tests.control.binding import bind_listeners
from tests.engine.lab import Lab, accept, is_reset, receive_exactly, send_all
from tests.engine.origins_lab import (
    CLIENT,
    CLIENT_V6,
    DIVERT,
    OWN,
    REDIRECT,
    SERVER,
    SERVER_V6,
    connecting,
    housed,
    listening,
    noted,
    routed,
    shipped_rules,
    sniffing,
    traffic_class,
    unprivileged,
)
from tests.engine.udp_network import Network

EF = 46
BOTH = pytest.mark.parametrize(
    ("client_host", "server_host"), [(CLIENT, SERVER), (CLIENT_V6, SERVER_V6)], ids=["v4", "v6"]
)


@pytest.fixture
def network() -> Iterator[Network]:
    with routed() as network:
        yield network


def configuration(
    listen: str = "tcp://[::]:15000",
    endpoint: str = "original",
    listener: str = "",
    upstream: str = "",
) -> str:
    dual = "dual_stack = true\n" if "[::]" in listen else ""
    return (
        f'[listener.a]\nlisten = "{listen}"\nupstream = "b"\n{dual}{listener}\n'
        f'[upstream.b]\nendpoints = ["{endpoint}"]\n{upstream}\n'
    )


def divert(network: Network, protocols: str) -> None:
    network.run("proxy", "nft", DIVERT.replace("PROTOCOLS", protocols))


async def refused(lab: Lab, refusal: Refusal) -> None:
    await lab.wait_counter(lambda counters: counters["listeners"][0]["refused"][refusal], 1)


@BOTH
async def test_tproxy_hides_us_from_both_sides_of_a_stream(
    network: Network, client_host: str, server_host: str
) -> None:
    divert(network, "tcp")
    endpoint = listening(network, "server", server_host, 7000)
    async with housed(configuration(listener="transparent = true")) as lab:
        client = await connecting(network, "client", client_host, endpoint.getsockname())
        accepted = await accept(endpoint)
        assert accepted.getpeername() == client.getsockname()
        assert client.getpeername() == endpoint.getsockname()
        await send_all(client, b"request")
        assert await receive_exactly(accepted, 7) == b"request"
        await send_all(accepted, b"answer")
        assert await receive_exactly(client, 6) == b"answer"
        row = await lab.wait_live("established")
        pair = {
            "local": format_address(client.getsockname()),
            "remote": format_address(endpoint.getsockname()),
        }
        assert row["endpoint"] == pair
        assert row["client"] == {"local": pair["remote"], "remote": pair["local"], "via": None}


async def test_the_port_of_a_client_is_kept_only_if_it_can_be(network: Network) -> None:
    """A socket of our own holds the port of the client."""
    divert(network, "tcp")
    endpoint = listening(network, "server", SERVER, 7000)
    async with housed(configuration(listener="transparent = true")):
        with std.socket() as thief:
            with network.inside("client"):
                client = std.socket()
                client.bind((CLIENT, 0))
                client.setblocking(False)
            thief.bind(("0.0.0.0", client.getsockname()[1]))
            wrapped = noted(client)
            await wrapped.connect(endpoint.getsockname())
            accepted = await accept(endpoint)
        assert accepted.getpeername()[0] == CLIENT
        assert accepted.getpeername()[1] != wrapped.getsockname()[1]


@BOTH
async def test_redirect_leads_to_the_original_destination(
    network: Network, client_host: str, server_host: str
) -> None:
    network.run("proxy", "nft", REDIRECT)
    endpoint = listening(network, "server", server_host, 7000)
    async with housed(configuration()) as lab:
        await connecting(network, "client", client_host, endpoint.getsockname())
        accepted = await accept(endpoint)
        assert accepted.getpeername()[0] != client_host
        row = await lab.wait_live("established")
        assert row["endpoint"]["remote"] == format_address(endpoint.getsockname())
        assert row["client"]["local"].endswith(":15000")
        (counters,) = (await lab.counters())["endpoints"]
        assert (counters["endpoint"], counters["flows"]) == ("original", 1)


async def test_a_dead_destination_does_not_make_the_others_unready(network: Network) -> None:
    network.run("proxy", "nft", REDIRECT)
    async with housed(configuration()) as lab:
        client = await connecting(network, "client", CLIENT, (SERVER, 7000))
        assert await is_reset(client)
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "connect_refused"
        assert (await lab.worker.status())["not_ready"] == []
        (counters,) = (await lab.counters())["endpoints"]
        assert counters["failures"]["connect_refused"] == 1


@pytest.mark.parametrize("to", ["10.0.1.1", "fd01::1"])
async def test_who_meant_the_listener_itself_would_go_in_circles(network: Network, to: str) -> None:
    async with housed(configuration()) as lab:
        source = CLIENT_V6 if ":" in to else CLIENT
        client = await connecting(network, "client", source, (to, 15000))
        assert await is_reset(client)
        await refused(lab, Refusal.LOOP)


async def test_our_own_flow_that_is_diverted_again_is_refused(network: Network) -> None:
    network.run("proxy", "nft", REDIRECT)
    network.run(
        "proxy",
        "nft",
        REDIRECT.replace("prerouting", "output")
        .replace('iifname "eth0" ', "")
        .replace("sockpair", "again")
        .replace("dstnat", "-100"),
    )
    async with housed(configuration()) as lab:
        client = await connecting(network, "client", CLIENT, (SERVER, 7000))
        assert await is_reset(client)
        await refused(lab, Refusal.LOOP)
        assert len(await lab.wait_ended()) == 1


def datagrams(network: Network, host: str, source: str, to: Address) -> trio.socket.SocketType:
    """A client that hears only whom it asked."""
    with network.inside(host):
        socket = std.socket(std.AF_INET6 if ":" in source else std.AF_INET, std.SOCK_DGRAM)
        socket.bind((source, 0))
        socket.connect(to)
        socket.setblocking(False)
    return noted(socket)


async def knock(network: Network, transport: str) -> None:
    """Open a flow, which may be refused."""
    if transport == "tcp":
        with suppress(ConnectionResetError):
            await connecting(network, "client", CLIENT, ("10.0.1.1", 15000))
    else:
        await datagrams(network, "client", CLIENT, ("10.0.1.1", 15000)).send(b"q")


@BOTH
@pytest.mark.parametrize("port", [5353, 15000])
@pytest.mark.parametrize("listen", ["udp://[::]:15000", "own"])
async def test_tproxy_hides_us_from_both_sides_of_datagrams(
    network: Network, client_host: str, server_host: str, port: int, listen: str
) -> None:
    divert(network, "udp")
    if listen == "own":
        listen = "udp://0.0.0.0:15000" if client_host == CLIENT else "udp://[::]:15000"
    server = network.socket("server", server_host, port)
    async with housed(configuration(listen, listener="transparent = true")) as lab:
        client = datagrams(network, "client", client_host, (server_host, port))
        for question in (b"one", b"", b"three"):
            await client.send(question)
            data, peer = await server.recvfrom(100)
            assert (data, peer) == (question, client.getsockname())
            await server.sendto(question + b"!", peer)
            assert await client.recv(100) == question + b"!"
        row = await lab.wait_live("assured")
        assert row["client"]["local"] == row["endpoint"]["remote"]
        assert row["client"]["remote"] == row["endpoint"]["local"]
        assert row["original"]["packets"] == 3
        exits = lab.worker._relay.exits
        assert len(exits) == (port != 15000)
        lab.worker.stop()
        assert len(exits) == 0
        assert lab.worker._relay.files.used == 0


NARROW, NARROW_V6 = "10.0.2.128", "fd02::80"
FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")


def narrow(network: Network) -> None:
    """A host behind a link of 1300 bytes, to which ``server`` routes."""
    network.run("server", "sysctl", "-qw", *(f"{key}=1" for key in FORWARDING))
    # A router asks for neighbours from its link-local address when it passes on what others sent.
    network.run("server", "ip", "address", "add", "fe80::20/64", "dev", "eth0", "nodad")
    network.add("inner")
    network.join("beyond", "server", "eth1", "10.0.3.1/24", "fd03::1/64", "fe80::31/64")
    network.join("beyond", "inner", "eth0", "10.0.3.2/24", "fd03::2/64", "fe80::32/64")
    for host, server, inner, back in (
        (NARROW, SERVER, "10.0.3.2", "10.0.3.1"),
        (NARROW_V6, SERVER_V6, "fd03::2", "fd03::1"),
    ):
        bits = "128" if ":" in host else "32"
        network.run("inner", "ip", "address", "add", f"{host}/{bits}", "dev", "lo")
        network.run("inner", "ip", "route", "add", "default", "via", back)
        network.run("server", "ip", "route", "add", host, "via", inner, "mtu", "1300")
        network.run("proxy", "ip", "route", "add", host, "via", server)


@pytest.mark.parametrize(
    ("client_host", "inner"), [(CLIENT, NARROW), (CLIENT_V6, NARROW_V6)], ids=["v4", "v6"]
)
async def test_the_shipped_rules_let_a_stream_through_a_narrow_link(
    network: Network, client_host: str, inner: str
) -> None:
    """The router's ICMP is for the client's address, and must find our socket that bears it."""
    narrow(network)
    network.run("proxy", "nft", shipped_rules())
    endpoint = listening(network, "inner", inner, 5432)
    async with housed(configuration(listener="transparent = true")):
        client = await connecting(network, "client", client_host, (inner, 5432))
        accepted = await accept(endpoint)
        assert accepted.getpeername() == client.getsockname()
        with trio.fail_after(5):  # nothing comes at all, where the ICMP is lost
            await send_all(client, b"x" * 100_000)
            assert len(await receive_exactly(accepted, 100_000)) == 100_000


@BOTH
async def test_the_shipped_rules_let_a_refused_datagram_be_counted(
    network: Network, client_host: str, server_host: str
) -> None:
    network.run("proxy", "nft", shipped_rules())
    async with housed(configuration("udp://[::]:15000", listener="transparent = true")) as lab:
        client = datagrams(network, "client", client_host, (server_host, 53))
        await client.send(b"nobody hears")
        with trio.fail_after(5):
            await lab.wait_counter(lambda c: c["listeners"][0]["dropped"]["refused"], 1)
        assert await lab.live()


async def test_one_exit_serves_all_who_asked_the_same_address(network: Network) -> None:
    divert(network, "udp")
    server = network.socket("server", SERVER, 53)
    async with housed(configuration("udp://0.0.0.0:15000", listener="transparent = true")) as lab:
        clients = [datagrams(network, "client", CLIENT, (SERVER, 53)) for _ in range(5)]
        for number, client in enumerate(clients):
            await client.send(bytes([number]))
            data, peer = await server.recvfrom(100)
            await server.sendto(data, peer)
        for number, client in enumerate(clients):
            assert await client.recv(10) == bytes([number])
        assert len(lab.worker._relay.exits) == 1


async def test_a_transparent_listener_may_have_endpoints(network: Network) -> None:
    """The server sees the client, who asked somebody else and hears from there."""
    divert(network, "udp")
    server = network.socket("server", SERVER, 53)
    text = configuration("udp://0.0.0.0:15000", f"{SERVER}:53", "transparent = true")
    async with housed(text):
        client = datagrams(network, "client", CLIENT, ("10.0.2.77", 99))
        await client.send(b"q")
        _, peer = await server.recvfrom(10)
        assert peer == client.getsockname()
        await server.sendto(b"a", peer)
        assert await client.recv(10) == b"a"


async def test_a_datagram_to_the_listener_itself_would_go_in_circles(network: Network) -> None:
    async with housed(configuration("udp://0.0.0.0:15000", listener="transparent = true")) as lab:
        client = datagrams(network, "client", CLIENT, ("10.0.1.1", 15000))
        await client.send(b"x")
        await refused(lab, Refusal.LOOP)


@pytest.mark.parametrize("ports", ["", 'source_ports = "20000-20001"\n'])
async def test_sources_take_turns_in_streams(network: Network, ports: str) -> None:
    endpoint = listening(network, "server", SERVER)
    text = configuration(
        "tcp://0.0.0.0:15000",
        format_address(endpoint.getsockname()),
        upstream=f'source = ["{OWN[4]}", "{OWN[1]}-{OWN[3]}"]\n{ports}',
    )
    async with housed(text):
        seen = []
        for _ in range(8):
            await connecting(network, "client", CLIENT, ("10.0.1.1", 15000))
            accepted = await accept(endpoint)
            seen.append(accepted.getpeername())
        assert Counter(host for host, _ in seen) == dict.fromkeys(OWN[1:5], 2)
        assert len(set(seen)) == 8
        if ports:
            assert {port for _, port in seen} == {20000, 20001}


async def test_sources_take_turns_in_datagrams(network: Network) -> None:
    server = network.socket("server", SERVER)
    upstream = f'source = "{OWN[1]}-{OWN[2]}"\nsource_ports = "20000-20002"\n'
    text = configuration(
        "udp://0.0.0.0:15000", format_address(server.getsockname()), upstream=upstream
    )
    async with housed(text):
        seen = []
        for _ in range(6):
            client = datagrams(network, "client", CLIENT, ("10.0.1.1", 15000))
            await client.send(b"q")
            seen.append((await server.recvfrom(10))[1])
        assert Counter(host for host, _ in seen) == {OWN[1]: 3, OWN[2]: 3}
        assert Counter(port for _, port in seen) == {20000: 2, 20001: 2, 20002: 2}


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_when_every_source_is_taken_the_reason_says_so(
    network: Network, transport: str
) -> None:
    endpoint = listening(network, "server", SERVER, 7000)
    network.socket("server", SERVER, 7000)
    upstream = f'source = "{OWN[1]}"\nsource_ports = "20000-20002"\n'
    text = configuration(f"{transport}://0.0.0.0:15000", f"{SERVER}:7000", upstream=upstream)
    async with housed(text) as lab:
        for _ in range(4):
            await knock(network, transport)
        while not (ended := await lab.ended()):
            await trio.sleep(0.002)
        (row,) = ended
        assert (row["close_reason"], row["close_side"]) == ("no_source", "proxy")
        assert len(await lab.live()) == 3
        (counters,) = (await lab.counters())["endpoints"]
        assert counters["up"]
        assert not any(counters["failures"].values())
    endpoint.close()


async def test_one_source_address_reaches_two_endpoints_from_the_same_port(
    network: Network,
) -> None:
    first = listening(network, "server", SERVER, 7000)
    second = listening(network, "server", SERVER, 7001)
    text = configuration(
        "tcp://0.0.0.0:15000",
        f'{SERVER}:7000", "{SERVER}:7001',
        upstream=f'source = "{OWN[1]}"\nsource_ports = "20000"\n',
    )
    async with housed(text):
        for endpoint in (first, second):
            await connecting(network, "client", CLIENT, ("10.0.1.1", 15000))
            assert (await accept(endpoint)).getpeername() == (OWN[1], 20000)


@BOTH
async def test_dscp_of_streams_on_both_sides(
    network: Network, client_host: str, server_host: str
) -> None:
    endpoint = listening(network, "server", server_host, 7000)
    at_server, at_client = sniffing(network, "server"), sniffing(network, "client")
    text = configuration(
        endpoint=format_address(endpoint.getsockname()),
        listener='dscp = "af41"',
        upstream='dscp = "ef"',
    )
    async with housed(text) as lab:
        to = ("fd01::1" if ":" in client_host else "10.0.1.1", 15000)
        client = await connecting(network, "client", client_host, to)
        accepted = await accept(endpoint)
        await send_all(accepted, b"x")
        assert await receive_exactly(client, 1) == b"x"
        row = await lab.wait_live("established")
        local = row["endpoint"]["local"]
        assert local is not None
        port = int(local.rpartition(":")[2])
        assert await traffic_class(at_server, port) >> 2 == EF
        assert await traffic_class(at_client, 15000) >> 2 == 34  # of the SYN and ACK
        assert await traffic_class(at_client, 15000) >> 2 == 34


async def test_dscp_of_datagrams_on_both_sides(network: Network) -> None:
    server = network.socket("server", SERVER, 7000)
    server.setsockopt(std.IPPROTO_IP, std.IP_RECVTOS, 1)
    text = configuration(
        "udp://0.0.0.0:15000", f"{SERVER}:7000", listener="dscp = 34", upstream='dscp = "ef"'
    )
    async with housed(text):
        client = datagrams(network, "client", CLIENT, ("10.0.1.1", 15000))
        client.setsockopt(std.IPPROTO_IP, std.IP_RECVTOS, 1)
        await client.send(b"q")
        _, [(_, _, tos)], _, peer = await server.recvmsg(10, 64)
        assert tos[0] >> 2 == EF
        await server.sendto(b"a", peer)
        _, [(_, _, tos)], _, _ = await client.recvmsg(10, 64)
        assert tos[0] >> 2 == 34


async def test_dscp_leaves_by_the_exits_too(network: Network) -> None:
    divert(network, "udp")
    server = network.socket("server", SERVER, 53)
    listener = "transparent = true\ndscp = 34"
    async with housed(configuration("udp://0.0.0.0:15000", listener=listener)):
        client = datagrams(network, "client", CLIENT, (SERVER, 53))
        client.setsockopt(std.IPPROTO_IP, std.IP_RECVTOS, 1)
        await client.send(b"q")
        _, peer = await server.recvfrom(10)
        await server.sendto(b"a", peer)
        _, [(_, _, tos)], _, _ = await client.recvmsg(10, 64)
        assert tos[0] >> 2 == 34


def counters_of_nft() -> str:
    command = ["nft", "list", "counters"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_marks_are_seen_by_nft(network: Network) -> None:
    network.run(
        "proxy",
        "nft",
        "table inet count {\n counter near { }\n counter far { }\n"
        "chain out {\n type filter hook output priority 0\n"
        'oifname "eth0" meta mark 7 counter name near\n'
        'oifname "eth1" meta mark 0xffffffff counter name far\n}\n}',
    )
    endpoint = listening(network, "server", SERVER, 7000)
    text = configuration(
        "tcp://0.0.0.0:15000",
        f"{SERVER}:7000",
        listener="mark = 7",
        upstream="mark = 0xffffffff",
    )
    async with housed(text):
        client = await connecting(network, "client", CLIENT, ("10.0.1.1", 15000))
        accepted = await accept(endpoint)
        await send_all(accepted, b"x")
        assert await receive_exactly(client, 1) == b"x"
    listing = counters_of_nft()
    assert listing.count("packets") == 2
    assert "packets 0" not in listing


async def test_a_listener_bound_to_an_interface_hears_no_other(network: Network) -> None:
    endpoint = listening(network, "server", SERVER, 7000)
    text = configuration("tcp://0.0.0.0:15000", f"{SERVER}:7000", listener='interface = "eth0"')
    async with housed(text):
        await connecting(network, "client", CLIENT, ("10.0.1.1", 15000))
        await accept(endpoint)
        with pytest.raises(ConnectionRefusedError):
            await connecting(network, "server", SERVER, (OWN[0], 15000))


@pytest.mark.parametrize(("interface", "reason"), [("eth1", None), ("eth0", "connect_timeout")])
async def test_an_upstream_bound_to_an_interface_leaves_by_no_other(
    network: Network, interface: str, reason: str | None
) -> None:
    endpoint = listening(network, "server", SERVER, 7000)
    text = configuration(
        "tcp://0.0.0.0:15000",
        f"{SERVER}:7000",
        listener='limits.per_flow.connect = "100ms"',
        upstream=f'interface = "{interface}"',
    )
    async with housed(text) as lab:
        await knock(network, "tcp")
        if reason is None:
            await accept(endpoint)
        else:
            (row,) = await lab.wait_ended()
            assert row["close_reason"] in {reason, "unreachable"}


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_an_interface_that_has_gone_gives_no_source(network: Network, transport: str) -> None:
    network.run("proxy", "ip", "link", "add", "dummy7", "type", "veth", "peer", "name", "dummy8")
    text = configuration(
        f"{transport}://0.0.0.0:15000", f"{SERVER}:7000", upstream='interface = "dummy7"'
    )
    async with housed(text) as lab:
        network.run("proxy", "ip", "link", "delete", "dummy7")
        await knock(network, transport)
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "no_source"


@pytest.mark.parametrize(
    ("listener", "upstream", "message"),
    [
        ("transparent = true", "", "listener.a.transparent: cannot be used: Operation not "
         "permitted; it needs CAP_NET_ADMIN or CAP_NET_RAW"),
        ("mark = 7", "", "listener.a.mark: cannot be used: Operation not permitted; it needs "
         "CAP_NET_ADMIN"),
        ("", "mark = 7", "upstream.b.mark: cannot be used: Operation not permitted; it needs "
         "CAP_NET_ADMIN"),
    ],
)  # fmt: skip
async def test_a_missing_privilege_is_named_at_the_start(
    network: Network, listener: str, upstream: str, message: str
) -> None:
    config = parse(configuration("tcp://0.0.0.0:15000", "10.0.2.20:1", listener, upstream), "f")
    try_side = outbounds if upstream or "transparent" in listener else bind_listeners
    with unprivileged(), pytest.raises(OptionError) as caught:
        try_side(config)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        ('interface = "nowhere0"', 'upstream.b.interface: cannot be used: No such device; this host'
         ' has no such interface; "ip link" lists those it has'),
        ('source = ["10.0.2.1", "203.0.113.9"]', "upstream.b.source: cannot be used: Cannot assign "
         'requested address; this host has no such address; "ip address" lists those'),
    ],
)  # fmt: skip
async def test_what_this_host_has_not_is_named_at_the_start(
    network: Network, upstream: str, message: str
) -> None:
    config = parse(configuration("tcp://0.0.0.0:15000", "10.0.2.20:1", "", upstream), "f")
    with pytest.raises(OptionError) as caught:
        outbounds(config)
    assert str(caught.value) == message
