"""The real servers that sockpair stands in front of, on loopback, with ports of their own."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tests.e2e.patience import PATIENCE
from tests.e2e.program import Command, Program, accepts, free_port, peer, program

ZONE: Final = "sockpair.test"
RECORDS: Final = 400
HOST: Final = "127.0.0.1"


@dataclass(frozen=True)
class Origin:
    """A server that runs."""

    program: Program
    port: int
    folder: Path

    @property
    def text(self) -> str:
        return f"{HOST}:{self.port}"


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[Origin]:
    """Serve the files below ``folder``/html; the access log has the bytes of each request."""
    port = free_port()
    (folder / "html").mkdir(exist_ok=True)
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    file.write_text(
        f"""daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{
    {places}
    log_format sizes '$request_length $bytes_sent';
    access_log {folder}/access.log sizes;
    server {{ listen {HOST}:{port}; root {folder}/html; }}
}}
"""
    )
    command: Command = [peer("nginx"), "-p", folder, "-e", "stderr", "-c", file]
    async with program(command, folder, accepts(port), name="nginx") as started:
        yield Origin(started, port, folder)


@asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[Origin]:
    """Serve redis, in memory only."""
    port = free_port()
    command: Command = [
        *(peer("redis-server"), "--port", str(port), "--bind", HOST, "--dir", folder),
        *("--save", "", "--appendonly", "no"),
    ]
    async with program(command, folder, accepts(port), name="redis") as started:
        yield Origin(started, port, folder)


@dataclass(frozen=True)
class RedisTraffic:
    """What redis has received from and sent to its clients so far."""

    received: int
    sent: int


class RedisBooks:
    """Asks redis, directly, what it has received and sent, and leaves its own questions out."""

    QUESTION: Final = b"INFO stats\r\n"

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._asked = 0
        self._answered = 0

    async def read(self) -> RedisTraffic:
        await self._stream.send_all(self.QUESTION)
        self._asked += len(self.QUESTION)
        answer = await self._answer()
        stats = dict(line.split(":", 1) for line in answer.decode().split("\r\n") if ":" in line)
        traffic = RedisTraffic(
            int(stats["total_net_input_bytes"]) - self._asked,
            int(stats["total_net_output_bytes"]) - self._answered,
        )
        self._answered += len(answer)
        return traffic

    async def _answer(self) -> bytes:
        """A bulk string: ``$LENGTH``, then so many bytes, each part ended by CRLF."""
        answer = b""
        while b"\r\n" not in answer or len(answer) < self._length(answer):
            answer += await self._stream.receive_some()
        return answer

    @staticmethod
    def _length(answer: bytes) -> int:
        head = answer.partition(b"\r\n")[0]
        return len(head) + 2 + int(head[1:]) + 2


@asynccontextmanager
async def nsd(
    folder: Path, host: str = HOST, port: int = 0, records: str | None = None
) -> AsyncIterator[Origin]:
    """Serve one zone over UDP and TCP, on IPv4 and IPv6; or at this address alone."""
    addresses = [f"{host}@{port}"] if port else [f"{host}@{(port := free_port())}", f"::1@{port}"]
    (folder / "zone").write_text(zone_text(records or many_records()))
    file = folder / "nsd.conf"
    file.write_text(nsd_settings(str(folder), *addresses))
    command: Command = [peer("nsd"), "-d", "-c", file]
    async with program(command, folder, lambda: answers(port, host), name="nsd") as started:
        yield Origin(started, port, folder)


def nsd_settings(folder: str, *addresses: str) -> str:
    """The configuration of a server that has one zone, with all its files in a folder."""
    places = "".join(f"    ip-address: {address}\n" for address in addresses)
    return f"""server:
{places}    server-count: 1
    username: ""
    chroot: ""
    database: ""
    zonesdir: "{folder}"
    pidfile: "{folder}/nsd.pid"
    xfrdfile: "{folder}/xfrd.state"
    zonelistfile: "{folder}/zone.list"
    xfrdir: "{folder}"
    logfile: "{folder}/nsd.log"
    rrl-ratelimit: 0
    ipv4-edns-size: 4096
remote-control:
    control-enable: no
zone:
    name: {ZONE}
    zonefile: zone
"""


def zone_text(records: str, serial: int = 1) -> str:
    """A zone file with these records beside those that it must have."""
    return f"""$ORIGIN {ZONE}.
$TTL 3600
@ SOA ns hostmaster {serial} 3600 600 86400 1
@ NS ns
ns A 192.0.2.53
{records}"""


def many_records() -> str:
    """Records of every length."""
    long = " ".join('"' + "x" * 200 + '"' for _ in range(15))
    numbered = (f"{name} A 192.0.2.{number % 256}\n" for number, name in enumerate(names()))
    return f"local A {HOST}\nlong TXT {long}\n" + "".join(numbered)


def names() -> list[str]:
    """Host names of the zone, all of one length."""
    return [f"r{number:04}" for number in range(RECORDS)]


def dns_query(name: str) -> bytes:
    """A plain question for an A record (RFC 1035 section 4.1), recursion desired."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 4711, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, 1, 1)


async def dns_answer(port: int, query: bytes, host: str = HOST) -> bytes:
    """Ask a DNS server directly."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        await asking.connect((host, port))
        await asking.send(query)
        with trio.fail_after(PATIENCE):
            return await asking.recv(65535)


async def answers(port: int, host: str = HOST) -> bool:
    """Whether a DNS server answers already."""
    with trio.move_on_after(0.2):
        try:
            return bool(await dns_answer(port, dns_query(f"ns.{ZONE}"), host))
        except OSError:
            return False
    return False


@asynccontextmanager
async def iperf3(folder: Path) -> AsyncIterator[Origin]:
    """Serve iperf3 measurements, one after the other."""
    port = free_port()
    command = [peer("iperf3"), "--server", "--bind", HOST, "--port", str(port), "--forceflush"]
    file = folder / "iperf3.out"

    def listens() -> bool:
        return "Server listening" in file.read_text()

    async with program(command, folder, listens, name="iperf3") as started:
        yield Origin(started, port, folder)
