"""A whole configuration at work on a router between a client and a server, in namespaces.

``client`` (10.0.1.2, fd01::2) - ``proxy`` (10.0.1.1 and 10.0.2.1 to .9) - ``server`` (10.0.2.20).
Whatever the two send each other goes through the proxy's host, so nft there may divert it.
"""

from __future__ import annotations

import ctypes
import socket as std
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio
from trio.socket import SocketType

from proxy.config.load import parse
from proxy.control.opening import open_house
from proxy.core.address import Address
from tests.engine import lab
from tests.engine.lab import PATIENCE, Lab
from tests.engine.udp_network import Network, require_namespaces

CLIENT, CLIENT_V6 = "10.0.1.2", "fd01::2"
SERVER, SERVER_V6 = "10.0.2.20", "fd02::20"
OWN = [f"10.0.2.{number}" for number in range(1, 10)]

RECIPE = Path(__file__).parents[2] / "config/transparent.toml"


def shipped_rules() -> str:
    """The rules of nft as users copy them, which suit these hosts; with those for IPv6 added."""
    text = RECIPE.read_text().partition("nft -f - <<'EOF'\n")[2].partition("#   EOF\n")[0]
    lines = [line.removeprefix("#   ") for line in text.splitlines()]
    for line in [line for line in lines if "tproxy ip " in line]:
        sixth = line.replace(" ip daddr 10.0.2.0/24", " ip6 daddr fd02::/64")
        lines.insert(lines.index(line), sixth.replace("tproxy ip ", "tproxy ip6 "))
    return "\n".join(lines)


def _to_our_sockets() -> str:
    """Of these the one that delivers here, and routes not, what is for a transparent socket."""
    (rule,) = [line for line in shipped_rules().splitlines() if "socket transparent 1" in line]
    return rule.strip()


DIVERT = f"""
table inet sockpair {{
    chain divert {{
        type filter hook prerouting priority mangle
        {_to_our_sockets()}
        iifname != "eth0" accept
        meta l4proto PROTOCOLS ip daddr 10.0.2.0/24 tproxy ip to :15000 meta mark set 1
        meta l4proto PROTOCOLS ip6 daddr fd02::/64 tproxy ip6 to :15000 meta mark set 1
    }}
}}
"""
REDIRECT = """
table inet sockpair {
    chain nat {
        type nat hook prerouting priority dstnat
        iifname "eth0" tcp dport 7000 redirect to :15000
    }
}
"""


@contextmanager
def routed() -> Iterator[Network]:
    """The network; whoever has it is on ``proxy``."""
    require_namespaces()
    network = Network()
    try:
        for host in ("client", "proxy", "server"):
            network.add(host)
        network.join("near", "client", "eth0", f"{CLIENT}/24", f"{CLIENT_V6}/64")
        network.join("near", "proxy", "eth0", "10.0.1.1/24", "fd01::1/64", "fe80::1/64")
        far = [f"{host}/24" for host in OWN]
        # Without a link-local address an interface cannot ask for neighbours in the client's name.
        network.join("far", "proxy", "eth1", *far, "fd02::1/64", "fe80::21/64")
        network.join("far", "server", "eth0", f"{SERVER}/24", f"{SERVER_V6}/64")
        for host, gateway in (("client", "1"), ("server", "2")):
            network.run(host, "ip", "route", "add", "default", "via", f"10.0.{gateway}.1")
            network.run(host, "ip", "-6", "route", "add", "default", "via", f"fd0{gateway}::1")
        for version in ("-4", "-6"):
            network.run("proxy", "ip", version, "rule", "add", "fwmark", "1", "lookup", "100")
            local = ("local", "default", "dev", "lo", "table", "100")
            network.run("proxy", "ip", version, "route", "add", *local)
        with network.inside("proxy"):
            yield network
    finally:
        network.close()


@asynccontextmanager
async def housed(text: str) -> AsyncIterator[Lab]:
    """The configuration at work; its first listener is the lab's."""
    config = parse(f'[admin]\nsocket = ""\nhttp = ""\n{text}', "lab.toml")
    with await open_house(config) as house, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.worker.run)
            ((listener,), *_) = house.worker._roster._listeners.values()
            try:
                yield Lab(house.worker, listener.socket.getsockname(), listener.counters.transport)
            finally:
                house.worker.stop()
                nursery.cancel_scope.cancel()


def listening(network: Network, host: str, address: str, port: int = 0) -> SocketType:
    """A TCP socket of a host that listens."""
    with network.inside(host):
        socket = std.socket(lab.family_of((address, 0)), std.SOCK_STREAM | std.SOCK_NONBLOCK)
        socket.bind((address, port))
        socket.listen(64)
    return noted(socket)


async def connecting(network: Network, host: str, source: str, to: Address) -> SocketType:
    """A TCP socket of a host that has connected."""
    with network.inside(host):
        socket = std.socket(lab.family_of(to), std.SOCK_STREAM | std.SOCK_NONBLOCK)
        socket.bind((source, 0))
    wrapped = noted(socket)
    await wrapped.connect(to)
    return wrapped


def sniffing(network: Network, host: str) -> SocketType:
    """A packet socket that sees what a host receives on eth0."""
    with network.inside(host):
        every = std.htons(3)  # ETH_P_ALL
        socket = std.socket(std.AF_PACKET, std.SOCK_DGRAM | std.SOCK_NONBLOCK, every)
        socket.bind(("eth0", 0))
    return noted(socket)


async def traffic_class(sniffer: SocketType, source_port: int) -> int:
    """The traffic class of the next TCP segment from this port."""
    while True:
        packet, (_, _, kind, *_rest) = await sniffer.recvfrom(2048)
        if kind == 4:  # PACKET_OUTGOING
            continue
        if packet[0] >> 4 == 4 and packet[9] == 6:
            header, seen = 4 * (packet[0] & 15), packet[1]
        elif packet[0] >> 4 == 6 and packet[6] == 6:
            header, seen = 40, struct.unpack_from("!H", packet)[0] >> 4 & 0xFF
        else:
            continue
        if struct.unpack_from("!H", packet, header)[0] == source_port:
            return seen


def noted(socket: std.socket) -> SocketType:
    wrapped = trio.socket.from_stdlib_socket(socket)
    lab.opened.append(wrapped)
    return wrapped


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be without capabilities for a while: they are the thread's own, capabilities(7)."""
    header = struct.pack("=Ii", 0x20080522, 0)
    held = ctypes.create_string_buffer(24)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, held) == 0
    low = struct.unpack("=6I", held.raw)
    none = struct.pack("=6I", 0, low[1], low[2], 0, low[4], low[5])
    assert libc.capset(header, none) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held.raw) == 0
