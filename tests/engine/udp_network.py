"""Hosts in network namespaces of their own, joined by bridges: what loopback cannot show.

The relay runs in the test's own thread, which stays inside the proxy's namespace; peers' sockets
are made by entering theirs for a moment (``Network.inside``), since a socket belongs for ever to
the namespace it was made in. Nothing outside these namespaces is touched.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import AF_INET6, SO_BROADCAST, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET
from socket import socket as Socket

import pytest
import trio
from trio.socket import SocketType

from tests.engine import lab

CLONE_NEWNET = 0x40000000
HERE = Path("/proc/thread-self/ns/net")

_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()


def require_namespaces() -> None:
    """Skip where no namespace can be made, and say so."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    missing = [name for name in ("ip", "nft") if shutil.which(name, path=PLACES) is None]
    if missing:
        absent = pytest.fail if os.environ.get("SOCKPAIR_REQUIRE_PEERS") else pytest.skip
        absent(f"not installed: {', '.join(missing)}; as root tests/run installs it")


PLACES = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class Network:
    """Namespaces, by the names of their hosts; gone when closed."""

    def __init__(self) -> None:
        self._prefix = f"sockpair-{os.getpid()}-{next(_serial)}-"
        self._hosts: list[str] = []
        self._links = itertools.count()
        self._ports: dict[tuple[str, str], str] = {}
        self._home = os.open(HERE, os.O_RDONLY)

    def close(self) -> None:
        self._enter(self._home)
        os.close(self._home)
        for host in self._hosts:
            run("ip", "netns", "delete", self._prefix + host)

    def add(self, host: str) -> None:
        """A host without any link."""
        run("ip", "netns", "add", self._prefix + host)
        self._hosts.append(host)
        self.run(host, "ip", "link", "set", "lo", "up")
        self.run(host, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")

    def join(self, bridge: str, host: str, link: str, *addresses: str) -> None:
        """Plug a host's link into a bridge, which is made when it is first named."""
        if bridge not in self._hosts:
            self.add(bridge)
            self.run(
                bridge,
                "ip",
                "link",
                "add",
                "name",
                "switch",
                "type",
                "bridge",
                "mcast_snooping",
                "0",
            )
            self.run(bridge, "ip", "link", "set", "switch", "up")
        port = self._ports[bridge, host] = f"port{next(self._links)}"
        peer = ("peer", "name", link, "netns", self._prefix + host)
        self.run(bridge, "ip", "link", "add", port, "type", "veth", *peer)
        self.run(bridge, "ip", "link", "set", port, "master", "switch", "up")
        self.run(host, "ip", "link", "set", link, "addrgenmode", "none")
        self.run(host, "ip", "link", "set", link, "up")
        for address in addresses:
            more = ("nodad",) if ":" in address else ("broadcast", "+")
            self.run(host, "ip", "address", "add", address, "dev", link, *more)

    def unplug(self, bridge: str, host: str) -> None:
        """Pull out the link that was plugged in last; the host itself sees no difference."""
        self.run(bridge, "ip", "link", "set", self._ports[bridge, host], "nomaster")

    def name(self, host: str) -> str:
        """What a host's namespace is called, for ``ip netns exec``."""
        return self._prefix + host

    def run(self, host: str, *command: str) -> None:
        run("ip", "netns", "exec", self.name(host), *command)

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Be in a host's namespace; without any await inside, but around a whole test."""
        before = os.open(HERE, os.O_RDONLY)
        there = os.open(f"/run/netns/{self._prefix}{host}", os.O_RDONLY)
        try:
            self._enter(there)
            yield
        finally:
            self._enter(before)
            os.close(there)
            os.close(before)

    def socket(self, host: str, address: str, port: int = 0, scope: str = "") -> SocketType:
        """A bound UDP socket of a host, which may send broadcasts."""
        family = AF_INET6 if ":" in address else 2
        with self.inside(host):
            socket = Socket(family, SOCK_DGRAM | SOCK_NONBLOCK)
            socket.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)
            if scope:
                socket.bind((address, port, 0, index_of(scope)))
            else:
                socket.bind((address, port))
        wrapped = trio.socket.from_stdlib_socket(socket)
        lab.opened.append(wrapped)
        return wrapped

    def _enter(self, namespace: int) -> None:
        if _libc.setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def index_of(link: str) -> int:
    """The number of a link in the namespace we are in."""
    from socket import if_nametoindex

    return if_nametoindex(link)


def run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": PLACES}
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
