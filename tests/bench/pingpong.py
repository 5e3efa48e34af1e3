"""Loads of our own: closed loops with one message under way per flow, and flows held open.

Run as ``python -m tests.bench.pingpong MODE PORT NUMBER...``, a process of its own. Prints one line
of JSON: messages answered (``units``), ``seconds``, and the percentiles of their round-trip times
in microseconds.

A closed loop offers as much as the proxy answers, so nothing is lost to full buffers. A datagram
that is lost all the same would end its flow's loop; after ``LOST_AFTER`` it is sent again and
counted.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import sys
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from http.client import HTTPConnection
from time import monotonic, monotonic_ns
from typing import Final

from tests.bench.programs import LOCAL, PAYLOAD

LOST_AFTER: Final = 0.2
"""Seconds without any answer."""

HELLO: Final = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"


class Laps:
    """Round-trip times in nanoseconds, taken since it was made."""

    def __init__(self) -> None:
        self.began = monotonic()
        self.times = array("Q")
        self.lost = 0

    def print(self) -> None:
        """Print what they amount to."""
        seconds = monotonic() - self.began
        times = sorted(self.times)
        figures = {"units": len(times), "seconds": seconds, "errors": self.lost}
        figures |= {name: percentile(times, share) / 1e3 for name, share in PERCENTILES.items()}
        print(json.dumps(figures), flush=True)


PERCENTILES: Final = {"p50": 0.5, "p99": 0.99, "most": 1.0}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least of the ordered values that so large a share of them does not exceed; 0 of none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def stream(port: int, seconds: float, pause: float) -> None:
    """Ping-pong on one connection, with so many milliseconds between an answer and what follows."""
    with connect(port) as tcp:
        gap = select.poll()
        gap.register(tcp, select.POLLIN)
        laps = Laps()
        end = monotonic() + seconds
        while monotonic() < end:
            if pause:
                gap.poll(pause)
            sent = monotonic_ns()
            exchange(tcp)
            laps.times.append(monotonic_ns() - sent)
        laps.print()


def datagrams(port: int, seconds: float, flows: float) -> None:
    """Ping-pong on so many flows at once, each from its own port."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(int(flows))]
    poll = select.epoll()
    for udp in sockets:
        udp.setblocking(False)
        udp.connect((LOCAL, port))
        poll.register(udp, select.EPOLLIN)
    laps = Laps()
    by_fd = {udp.fileno(): udp for udp in sockets}
    sent = dict.fromkeys(by_fd, 0)
    _send_again(by_fd, sent, LOST_AFTER)
    end = laps.began + seconds
    while monotonic() < end:
        ready = poll.poll(LOST_AFTER)
        for fd, _ in ready:
            udp = by_fd[fd]
            udp.recv(2048)
            now = monotonic_ns()
            laps.times.append(now - sent[fd])
            udp.send(PAYLOAD)
            sent[fd] = now
        if not ready:
            laps.lost += _send_again(by_fd, sent, LOST_AFTER)
    laps.print()


def hold(port: int, flows: float, http: float = 0) -> None:
    """Open flows, exchange one message on each, say so, and hold them until stopped."""
    held = []
    for _ in range(int(flows)):
        tcp = connect(port)
        if http:
            tcp.send(HELLO)
            tcp.recv(2048)
        else:
            exchange(tcp)
        held.append(tcp)
    print(json.dumps({"flows": len(held)}), flush=True)
    signal.pause()


def read(port: int, seconds: float, pause: float, path: str) -> None:
    """Read a page again and again, with so many milliseconds between two readings."""
    laps = Laps()
    end = monotonic() + seconds
    while monotonic() < end:
        began = monotonic_ns()
        http = HTTPConnection(LOCAL, port, timeout=10)
        http.request("GET", path)
        answer = http.getresponse()
        answer.read()
        laps.times.append(monotonic_ns() - began)
        laps.lost += answer.status != 200
        http.close()
        select.poll().poll(pause)
    laps.print()


def connect(port: int) -> socket.socket:
    """A blocking connection that sends at once."""
    tcp = socket.socket()
    tcp.settimeout(10)
    tcp.connect((LOCAL, port))
    tcp.settimeout(None)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tcp


def exchange(tcp: socket.socket) -> None:
    """Send one message and wait until all of it has come back."""
    tcp.send(PAYLOAD)
    missing = len(PAYLOAD)
    while missing:
        data = tcp.recv(missing)
        if not data:
            raise ConnectionResetError("the flow was closed")
        missing -= len(data)


def _send_again(by_fd: dict[int, socket.socket], sent: dict[int, int], age: float) -> int:
    """Send on every flow whose last message is older than this, and return how many."""
    now = monotonic_ns()
    late = [fd for fd, when in sent.items() if now - when > age * 1e9]
    for fd in late:
        sent[fd] = now
        by_fd[fd].send(PAYLOAD)
    return len(late)


MODES: Final[dict[str, Callable[..., None]]] = {
    "stream": stream,
    "datagrams": datagrams,
    "hold": hold,
    "scrape": partial(read, path="/metrics"),
    "list": partial(read, path="/api/v1/flows?limit=0"),
}

if __name__ == "__main__":
    MODES[sys.argv[1]](int(sys.argv[2]), *map(float, sys.argv[3:]))
