"""The floor: the cheapest relay that plain Python can be, on the benchmark's happy path, no more.

Run as ``python -m tests.bench.floor tcp|udp LISTEN ORIGIN``. It does to the same bytes what
sockpair does, with as few system calls as we know, and nothing else: no table, counters, limits,
log, timers, drain or admin side, and an error ends a flow without a word. What it costs is what the
kernel and the interpreter cost. A goal below it is out of reach of a relay in this language, and
the distance from it to sockpair is the price of what a user gets.

What makes it cheap is what nobody should copy: one loop in which everything is written out, and
descriptors that are closed at once, whatever events for them are still to come.
"""

from __future__ import annotations

import gc
import select
import sys
from collections.abc import Callable
from select import EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from socket import (
    AF_INET,
    IPPROTO_TCP,
    SHUT_WR,
    SO_REUSEADDR,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
)
from socket import SocketType as Socket
from typing import Final

from proxy.engine.mmsg import BATCH, LENGTH, DatagramBatch
from proxy.engine.splice import Pipe, make_nonblocking
from tests.bench.programs import LOCAL

BACKLOG: Final = 4096
EVENTS: Final = 256
ACCEPTS: Final = 16

CHUNK: Final = 64 * 1024
"""Bytes of a receive; a direction that fills it is bulk, and has a pipe from then on."""

TURNS: Final = 2
"""Fillings of a pipe until the others get their turn."""

DONTWAIT: Final = 0x40  # MSG_DONTWAIT as a plain int, which costs less than a member of an enum

WITH_END: Final = DONTWAIT | 0x8000  # MSG_MORE: FIN, which follows at once, goes with the bytes

WATCH: Final = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
# EPOLLOUT costs nothing: the kernel tells it only of a socket that would not take more.


class Leg:
    """One socket of a stream flow, and the direction that begins at it."""

    __slots__ = ("blocked", "ended", "other", "pipe", "receive", "rest", "send", "socket")

    other: Leg

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.receive = socket.recv_into
        self.blocked = False
        self.rest = b""
        self.pipe: Pipe | None = None
        self.ended = False


class Streams:
    """Relays streams."""

    def __init__(self, listen: int, origin: int) -> None:
        self.poll = select.epoll()
        self.listening = Socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK)
        self.listening.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        self.listening.bind((LOCAL, listen))
        self.listening.listen(BACKLOG)
        self.poll.register(self.listening.fileno(), EPOLLIN)
        self.origin = (LOCAL, origin)
        self.legs: dict[int, Leg] = {}
        self.again: dict[int, int] = {}
        self.nobody = Leg(Socket())
        self.nobody.socket.close()

    def run(self) -> None:  # noqa: PLR0912 - the hot loop, in one piece
        """Relay for ever."""
        wait, get, again = self.poll.poll, self.legs.get, self.again
        buffer = memoryview(bytearray(CHUNK))
        while True:
            events = wait(0 if again else -1, EVENTS)
            if again:
                events = list((again | dict(events)).items())
                again.clear()
            for fd, mask in events:
                leg = get(fd)
                if leg is None:
                    self.accept()
                    continue
                try:
                    if leg.other.blocked:
                        self.unblock(leg.other)
                    if leg.blocked:
                        continue
                    if leg.pipe is not None:
                        self.splice(leg, leg.pipe)
                        continue
                    size = leg.receive(buffer, CHUNK, DONTWAIT)
                    if not size:
                        self.end(leg)
                        continue
                    is_last = mask & EPOLLRDHUP and size < CHUNK
                    try:
                        sent = leg.send(buffer[:size], WITH_END if is_last else DONTWAIT)
                    except BlockingIOError:
                        sent = 0
                    if sent < size:
                        leg.rest = bytes(buffer[sent:size])
                        leg.blocked = True
                    elif size == CHUNK:
                        self.use_pipe(leg)
                    elif mask & EPOLLRDHUP:  # it was there before, so nothing comes after this
                        self.end(leg)
                except BlockingIOError:
                    pass
                except OSError:
                    self.close(leg)

    def accept(self) -> None:
        """Accept who waits, within a turn; the others are told again in the next round."""
        for _ in range(ACCEPTS):
            try:
                fd, _ = self.listening._accept()  # type: ignore[attr-defined]
            except BlockingIOError:  # or it was an event of a socket that has been closed
                return
            self.connect(Leg(Socket(AF_INET, SOCK_STREAM, 0, fd)))

    def connect(self, client: Leg) -> None:
        """Connect for a client; on loopback that is done when the call returns."""
        endpoint = Leg(Socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK))
        client.other, endpoint.other = endpoint, client
        client.send, endpoint.send = endpoint.socket.send, client.socket.send
        endpoint.socket.connect_ex(self.origin)
        for leg in (client, endpoint):
            leg.socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            number = leg.socket.fileno()
            self.legs[number] = leg
            self.poll.register(number, WATCH)

    def use_pipe(self, leg: Leg) -> None:
        """Splice from now on."""
        leg.pipe = Pipe()
        make_nonblocking(leg.socket)
        make_nonblocking(leg.other.socket)
        self.again[leg.socket.fileno()] = 0

    def splice(self, leg: Leg, pipe: Pipe) -> None:
        """Move bulk until there is no more, it is not taken, or the turn is up."""
        source, target = leg.socket.fileno(), leg.other.socket.fileno()
        for _ in range(TURNS):
            if not pipe.fill(source):
                self.end(leg)
                return
            self.drain(leg, pipe, target)
            if leg.blocked:
                return
        self.again[source] = 0

    def drain(self, leg: Leg, pipe: Pipe, target: int) -> None:
        """Send what a pipe holds."""
        try:
            while pipe.held:
                pipe.drain(target)
            leg.blocked = False
        except BlockingIOError:
            leg.blocked = True

    def unblock(self, leg: Leg) -> None:
        """Send what was not taken before, and then go on."""
        if leg.pipe is not None:
            self.drain(leg, leg.pipe, leg.other.socket.fileno())
        else:
            try:
                leg.rest = leg.rest[leg.send(leg.rest, DONTWAIT) :]
            except BlockingIOError:
                return
            leg.blocked = bool(leg.rest)
        if not leg.blocked:
            self.again[leg.socket.fileno()] = EPOLLIN

    def end(self, leg: Leg) -> None:
        """Pass on the end of a direction; close when both have ended."""
        if leg.other.ended:
            self.close(leg)
        elif not leg.ended:
            leg.ended = True
            leg.other.socket.shutdown(SHUT_WR)

    def close(self, leg: Leg) -> None:
        """Close both sockets of a flow."""
        for each in (leg, leg.other):
            if each is not self.nobody:
                self.legs.pop(each.socket.fileno(), None)
                each.socket.close()
                if each.pipe is not None:
                    each.pipe.close()
                each.other = self.nobody


def relay_datagrams(listen: int, origin: int) -> None:
    """Relay datagrams for ever; the sockets are level-triggered, as those of sockpair."""
    poll = select.epoll()
    listening = Socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK)
    listening.bind((LOCAL, listen))
    door = listening.fileno()
    poll.register(door, EPOLLIN)
    requests, answers = DatagramBatch(), DatagramBatch()
    data, names, word = requests.data, requests.names_of(AF_INET), requests.word
    room = answers.data
    sends: dict[bytes, Callable[[memoryview, int], int]] = {}
    flows: dict[int, tuple[Callable[[memoryview, int, int], int], bytes]] = {}
    while True:
        count = 0
        for fd, _ in poll.poll(-1, BATCH):
            if fd != door:
                receive, name = flows[fd]
                answers.prepare(count, receive(room[count], 0, DONTWAIT), name, b"")
                count += 1
                continue
            for index in range(requests.receive(door)):
                name = bytes(names[index])
                if name not in sends:
                    socket = Socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK)
                    socket.connect((LOCAL, origin))
                    poll.register(socket.fileno(), EPOLLIN)
                    sends[name] = socket.send
                    flows[socket.fileno()] = socket.recv_into, name
                sends[name](data[index][: word[16 * index + LENGTH]], DONTWAIT)
        if count:
            answers.send(door, 0, count)


if __name__ == "__main__":
    gc.freeze()
    gc.disable()
    if sys.argv[1] == "tcp":
        Streams(int(sys.argv[2]), int(sys.argv[3])).run()
    else:
        relay_datagrams(int(sys.argv[2]), int(sys.argv[3]))
