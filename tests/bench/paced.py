"""Many small flows at a fixed rate, timed by the kernel: what a request waits for in the proxy.

Run as ``python -m tests.bench.paced PORT SECONDS FLOWS RATE``, beside a ``greedy`` origin. It opens
so many flows, then sends RATE messages a second in all, each on the flow that has been silent for
longest, at random distances as independent clients do. It never waits for an answer before it sends
the next message (an open loop), so that a proxy which stalls is not spared the messages of that
time.

The core of the load has other work: the greedy flow's two ends. So a message is not timed by the
clock of whoever is woken, but by what the kernel wrote on it (SO_TIMESTAMPNS): on loopback a
message reaches the receiver's socket within the sender's ``send``. What the proxy is given is told
by our clock just before ``send``, and what it gives back by the kernel's stamp, at the origin and
here. The two spans together are a *delay*: waking the proxy, waiting in it, and its work; no
program of ours is in it. That we too are not held up shows in ``late``, the time from when a
message was due until it was sent. Both ends run with real-time priority where that is allowed.

Prints one line of JSON: messages answered (``units``), ``seconds``, percentiles of the delay and of
the lateness in microseconds, and ``errors``: messages that were not answered.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
from array import array
from contextlib import suppress
from random import Random
from time import clock_gettime_ns, monotonic
from typing import Final

from tests.bench.pingpong import connect, exchange, percentile

SO_TIMESTAMPNS: Final = 35  # asm-generic/socket.h, the one of 64-bit machines
STAMP: Final = struct.Struct("=qq")  # struct timespec
ANCILLARY: Final = socket.CMSG_SPACE(STAMP.size)

TIMES: Final = struct.Struct("=qqq")
"""In a message: sent by the client, arrived at the origin, sent by the origin. Nanoseconds."""

CLOCK: Final = 0
"""CLOCK_REALTIME, which is what the kernel stamps with."""

SMALL: Final = 64
"""Bytes of a message."""

LAST_WORDS: Final = 0.5
"""Seconds that the last answers get."""

SETTLE: Final = 0.2
"""Seconds for what the opening of flows has left to do."""

SEED: Final = 7
"""The same distances between messages for every proxy."""


class Small:
    """A small flow: its socket, and whether an answer is on its way."""

    def __init__(self, port: int) -> None:
        self.socket = connect(port)
        exchange(self.socket)
        stamped(self.socket)
        self.waiting = False


class Paced:
    """The load: its flows, and what it has measured."""

    def __init__(self, port: int, flows: int) -> None:
        self.poll = select.epoll()
        self.flows = [Small(port) for _ in range(flows)]
        self.by_fd = {flow.socket.fileno(): flow for flow in self.flows}
        for fd in self.by_fd:
            self.poll.register(fd, select.EPOLLIN)
        self.delays = array("q")
        self.late = array("d")
        self.unanswered = 0

    def run(self, seconds: float, rate: float) -> float:
        """Send at this rate for so long; return the seconds that it took."""
        gap = Random(SEED).expovariate
        began = due = monotonic()
        turn = 0
        while due < began + seconds:
            self._receive_until(due)
            self._send(self.flows[turn % len(self.flows)], due)
            turn += 1
            due += gap(rate)
        took = monotonic() - began
        self._receive_until(monotonic() + LAST_WORDS)
        self.unanswered += sum(flow.waiting for flow in self.flows)
        return took

    def figures(self, seconds: float) -> dict[str, float]:
        """What it amounts to."""
        delays, late = sorted(self.delays), sorted(self.late)
        return {
            "units": len(delays),
            "seconds": seconds,
            "p50": percentile(delays, 0.5) / 1e3,
            "p99": percentile(delays, 0.99) / 1e3,
            "most": percentile(delays, 1.0) / 1e3,
            "late": percentile(late, 0.99) * 1e6,
            "errors": self.unanswered,
        }

    def _send(self, flow: Small, due: float) -> None:
        if flow.waiting:
            self.unanswered += 1
            return
        flow.waiting = True
        self.late.append(monotonic() - due)
        flow.socket.send(TIMES.pack(clock_gettime_ns(CLOCK), 0, 0).ljust(SMALL))

    def _receive_until(self, due: float) -> None:
        while (left := due - monotonic()) > 0:
            # select, because epoll cannot wait for less than a millisecond
            if select.select([self.poll], [], [], left)[0]:
                for fd, _ in self.poll.poll(0):
                    self._receive(self.by_fd[fd])

    def _receive(self, flow: Small) -> None:
        message, arrived = receive_stamped(flow.socket)
        if not message:
            raise ConnectionResetError("the flow was closed")
        sent, reached, answered = TIMES.unpack_from(message)
        self.delays.append((reached - sent) + (arrived - answered))
        flow.waiting = False


def stamped(stream: socket.socket) -> None:
    """Let the kernel tell when a message came."""
    stream.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


def receive_stamped(stream: socket.socket) -> tuple[bytes, int]:
    """A message, and when it reached the socket, in nanoseconds; 0 if the kernel does not say."""
    message, ancillary, _, _ = stream.recvmsg(65536, ANCILLARY)
    for _, _, data in ancillary:
        seconds, nanoseconds = STAMP.unpack(data)
        return message, seconds * 1_000_000_000 + nanoseconds
    return message, 0


def prompt() -> None:
    """Run before all ordinary programs on this core, where we may."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def main(port: int, seconds: float, flows: int, rate: float) -> None:
    """Measure and print."""
    load = Paced(port, flows)
    select.select([], [], [], SETTLE)
    prompt()
    print(json.dumps(load.figures(load.run(seconds, rate))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(float(sys.argv[3])), float(sys.argv[4]))
