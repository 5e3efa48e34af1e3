"""Datagrams of flows that are served, beside a flood of unknown sources.

``python -m tests.bench.flood origin PORT`` answers the datagrams of served flows and no others, so
that flows of the flood stay unreplied. Asked directly, it tells how many it has had.

``flood.py served PORT ORIGIN SECONDS FLOWS RATE`` opens flows, has an answer on each, says so, and
then sends RATE numbered datagrams a second in all (an open loop, see ``paced``). It prints how many
it sent, how many reached the origin, how many answers came, and what the kernel dropped at the
sockets here, which is no loss of the proxy's.

``flood.py sources PORT SECONDS RATE`` sends datagrams through a raw socket, each from another
address and port of 127.0.0.0/8, 16 million of them before one comes again. All headers are made
beforehand and sent 64 a call; only one byte of each changes from one pass to the next.
"""

from __future__ import annotations

import ctypes
import json
import select
import socket
import struct
import sys
from random import Random
from time import monotonic, monotonic_ns
from typing import Final

from proxy.engine.drops import kernel_drops
from tests.bench.origins import BATCH, Header, IoVec, Message
from tests.bench.paced import LAST_WORDS, SEED, prompt
from tests.bench.pingpong import percentile
from tests.bench.programs import LOCAL

SERVED: Final = b"served"
HOW_MANY: Final = b"how many"
UNKNOWN: Final = b"unknown source.."

NUMBER: Final = struct.Struct("=8sQQ")
"""A datagram of a served flow: the word, its number, when it was sent in nanoseconds."""

BUFFER: Final = 4 * 1024 * 1024
"""Bytes; the origin shall lose nothing while it waits for its turn."""

PASS: Final = 65536
"""Sources that are made beforehand."""

IP_UDP: Final = struct.Struct("!BBHHHBBH4s4sHHHH")
"""The headers of IP and UDP, without options."""

CHANGES_AT: Final = 13
"""The second byte of the source address: 127.*.x.y."""


def origin(port: int) -> None:
    """Answer served flows, and count."""
    prompt()
    count = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        udp.bind((LOCAL, port))
        while True:
            data, client = udp.recvfrom(2048)
            if data.startswith(SERVED):
                count += 1
                udp.sendto(data, client)
            elif data == HOW_MANY:
                udp.sendto(f"{count} {kernel_drops(udp)}".encode(), client)
            elif data != UNKNOWN:
                udp.sendto(data, client)  # who looks whether we are ready


class Served:
    """Flows that are served: their sockets, and what came of their datagrams."""

    def __init__(self, port: int, flows: int) -> None:
        self.sockets = [connected(port) for _ in range(flows)]
        self.poll = select.epoll()
        self.by_fd = {udp.fileno(): udp for udp in self.sockets}
        self.times: list[int] = []
        self.sent = 0
        for fd, udp in self.by_fd.items():
            self.poll.register(fd, select.EPOLLIN)
            self._send(udp)
            self._receive_until(monotonic() + LAST_WORDS, enough=self.sent)

    def run(self, seconds: float, rate: float) -> None:
        """Send at this rate for so long, and wait for the last answers."""
        gap = Random(SEED).expovariate
        end = monotonic() + seconds
        due = monotonic()
        while due < end:
            self._receive_until(due)
            self._send(self.sockets[self.sent % len(self.sockets)])
            due += gap(rate)
        self._receive_until(monotonic() + LAST_WORDS)

    def _send(self, udp: socket.socket) -> None:
        udp.send(NUMBER.pack(SERVED, self.sent, monotonic_ns()))
        self.sent += 1

    def _receive_until(self, due: float, enough: int | None = None) -> None:
        while len(self.times) != enough and (left := due - monotonic()) > 0:
            if select.select([self.poll], [], [], left)[0]:
                for fd, _ in self.poll.poll(0):
                    data = self.by_fd[fd].recv(2048)
                    self.times.append(monotonic_ns() - NUMBER.unpack(data)[2])


def served(port: int, origin_port: int, seconds: float, flows: int, rate: float) -> None:
    """Open flows, load them, and print what came of it."""
    load = Served(port, flows)
    prompt()
    print('{"flows"}', flush=True)
    load.run(seconds, rate)
    with connected(origin_port) as direct:
        direct.settimeout(5)
        direct.send(HOW_MANY)
        reached, dropped_there = map(int, direct.recv(64).split())
    times = sorted(load.times)
    found = {
        "sent": load.sent,
        "reached": reached,
        "answered": len(times),
        "dropped_there": dropped_there,
        "dropped_here": sum(kernel_drops(udp) for udp in load.sockets),
        "p50": percentile(times, 0.5) / 1e3,
        "p99": percentile(times, 0.99) / 1e3,
    }
    print(json.dumps(found), flush=True)


def sources(port: int, seconds: float, rate: float) -> None:
    """Send from ever new sources at this rate, and print how many were sent."""
    libc = ctypes.CDLL(None)
    packets = Packets(port)
    sent = turn = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.connect((LOCAL, 0))
        fd, began = raw.fileno(), monotonic()
        while (now := monotonic()) < began + seconds:
            ahead = began + sent / rate - now
            if ahead > 0:
                select.select([], [], [], ahead)
            first = turn * BATCH % PASS
            if not first:
                packets.change(turn * BATCH // PASS)
            sent += max(0, libc.sendmmsg(fd, packets.address(first), BATCH, 0))
            turn += 1
        took = monotonic() - began
    print(json.dumps({"sent": sent, "seconds": took}), flush=True)


class Packets:
    """A pass of packets, ready to be sent."""

    def __init__(self, port: int) -> None:
        packets = [packet(port, index) for index in range(PASS)]
        self.size = len(packets[0])
        self.data = bytearray(b"".join(packets))
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.data))
        self.vectors = (IoVec * PASS)()
        self.messages = (Message * PASS)()
        vectors = ctypes.addressof(self.vectors)
        for index in range(PASS):
            self.vectors[index] = IoVec(base + index * self.size, self.size)
            vector = IoVec.from_address(vectors + index * ctypes.sizeof(IoVec))
            header = Header(None, 0, ctypes.pointer(vector), 1, None, 0, 0)
            self.messages[index] = Message(header, 0)

    def address(self, first: int) -> ctypes.c_void_p:
        """Where the headers from this one on are."""
        start = ctypes.addressof(self.messages)
        return ctypes.c_void_p(start + first * ctypes.sizeof(Message))

    def change(self, number: int) -> None:
        """Make all sources other ones."""
        self.data[CHANGES_AT :: self.size] = bytes([number % 256]) * PASS


def packet(port: int, index: int) -> bytes:
    """A whole packet of the source 127.0.x.y; the kernel writes the sum, and UDP needs none."""
    size = 8 + len(UNKNOWN)
    source = bytes([127, 0, index >> 8, index & 255])
    target = socket.inet_aton(LOCAL)
    ports = 1024 + index % 60000, port
    head = 0x45, 0, IP_UDP.size - 8 + size, 0, 0, 64, socket.IPPROTO_UDP, 0
    return IP_UDP.pack(*head, source, target, *ports, size, 0) + UNKNOWN


def connected(port: int) -> socket.socket:
    """A socket that sends there and hears from there."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect((LOCAL, port))
    return udp


def main(mode: str, numbers: list[float]) -> None:
    """Do one of the three."""
    if mode == "origin":
        origin(int(numbers[0]))
    elif mode == "served":
        port, origin_port, seconds, flows, rate = numbers
        served(int(port), int(origin_port), seconds, int(flows), rate)
    else:
        sources(int(numbers[0]), numbers[1], numbers[2])


if __name__ == "__main__":
    main(sys.argv[1], [float(number) for number in sys.argv[2:]])
