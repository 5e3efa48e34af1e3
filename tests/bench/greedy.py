"""A flow that takes what it can get, and an origin that serves it beside small flows.

``python -m tests.bench.greedy serve PORT`` is the origin. A connection that begins with an order is
served by a process of its own: ``take`` receives and throws away, ``give`` sends without end, at
a rate in bytes a second or, with 0, as fast as it goes. All others are echoed, with the times that
``paced`` wants, by a process with real-time priority, so that bulk does not hold it up.

``python -m tests.bench.greedy take|give PORT RATE`` is the client: it says when bytes flow, goes on
until SIGTERM, and prints the bytes that it moved and the seconds.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from time import clock_gettime_ns, monotonic
from typing import Final, NoReturn

from tests.bench.paced import CLOCK, SMALL, TIMES, prompt, receive_stamped, stamped
from tests.bench.pingpong import connect
from tests.bench.programs import LOCAL

BACKLOG: Final = 4096

CHUNK: Final = 256 * 1024
"""Bytes sent or thrown away at a time."""

ORDERS: Final = (b"take ", b"give ")


class Stopped(Exception):  # noqa: N818 - no error
    """SIGTERM has come."""


def serve(port: int) -> None:
    """Echo small messages, and let a child serve whoever orders bulk."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets children that have ended
    prompt()
    poll = select.epoll()
    listening = socket.create_server((LOCAL, port), backlog=BACKLOG)
    poll.register(listening, select.EPOLLIN)
    streams: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listening.fileno():
                stream, _ = listening.accept()
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                stamped(stream)
                streams[stream.fileno()] = stream
                poll.register(stream, select.EPOLLIN)
            elif not _answer(streams[fd]):
                poll.unregister(fd)  # a child may hold it open
                streams.pop(fd).close()


def _answer(stream: socket.socket) -> bool:
    """Answer one message; false if the connection is no longer ours."""
    try:
        message, arrived = receive_stamped(stream)
        if message.startswith(ORDERS):
            _obey(stream, message)
            return False
        if message:
            sent = TIMES.unpack_from(message)[0]
            times = TIMES.pack(sent, arrived, clock_gettime_ns(CLOCK))
            stream.send(times + message[TIMES.size :])
    except OSError:
        return False
    return bool(message)


def _obey(stream: socket.socket, order: bytes) -> None:
    """Serve an order in a child, at ordinary priority."""
    if os.fork():
        return
    os.closerange(3, stream.fileno())  # the other flows shall end when the origin ends them
    os.closerange(stream.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    word, rate = order.split()
    with suppress(OSError):
        stream.send(order)
        if word == b"take":
            _take(stream)
        else:
            _give(stream, float(rate))
    os._exit(0)


def _take(stream: socket.socket) -> int:
    """Receive and throw away until the end, or until stopped; the bytes."""
    waste = bytearray(CHUNK)
    taken = 0
    with suppress(Stopped):
        # MSG_TRUNC throws away without copying (tcp(7)), so that the taker is not the bottleneck
        while size := stream.recv_into(waste, CHUNK, socket.MSG_TRUNC):
            taken += size
    return taken


def _give(stream: socket.socket, rate: float) -> int:
    """Send without end, or until stopped; the bytes."""
    chunk = bytes(CHUNK)
    given, began = 0, monotonic()
    with suppress(Stopped):
        while True:
            given += stream.send(chunk)
            if rate and (ahead := began + given / rate - monotonic()) > 0:
                select.select([], [], [], ahead)
    return given


def client(order: str, port: int, rate: float) -> None:
    """Order bulk, say when it flows, and tell how much it was when stopped."""
    signal.signal(signal.SIGTERM, _stop)
    with connect(port) as tcp:
        tcp.send(f"{order} {rate:.0f}".encode().ljust(SMALL))
        tcp.recv(SMALL, socket.MSG_WAITALL)
        print('{"flows": 1}', flush=True)
        began = monotonic()
        moved = _give(tcp, rate) if order == "take" else _take(tcp)
        print(json.dumps({"units": moved, "seconds": monotonic() - began}), flush=True)


def _stop(_number: int, _frame: object) -> NoReturn:
    raise Stopped


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        client(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
