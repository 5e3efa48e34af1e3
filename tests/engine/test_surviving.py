"""Killed at every line: whatever the worker was doing, no byte is lost, repeated or guessed.

A flow moves bytes between real sockets, and the interpreter is made to raise at the n-th line of
the code that moves them, for every n. What is left then is what a killed process leaves, because
nothing but the will, the buffer, the mark and the kernel is looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from select import EPOLLIN, EPOLLOUT, EPOLLPRI
from socket import MSG_DONTWAIT, MSG_OOB, SHUT_WR, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from socket import socket as Socket
from time import monotonic
from types import FrameType
from typing import Any, Final

import pytest
import trio

import proxy.engine
from proxy.core.address import Transport
from proxy.core.counters import ListenerCounters
from proxy.core.endpoint import Endpoint
from proxy.core.expiry import FlowLimits
from proxy.core.flow_state import FlowState
from proxy.engine.leg import WATCH, WATCH_BOTH
from proxy.engine.options import IN_LINE, set_options
from proxy.engine.relay import Relay
from proxy.engine.survival.executor import NOBODY, _stream_state
from proxy.engine.survival.reading import read_socket
from proxy.engine.survival.shared import BUFFER, read_mark, take_mark
from proxy.engine.survival.surviving import Surviving
from proxy.engine.survival.will import STREAM, Will
from tests.engine.lab import PATIENCE

FOLDER: Final = Path(proxy.engine.__file__).parent
WATCHED: Final = {
    str(FOLDER / name)
    for name in (
        "leg.py",
        "surviving.py",
        "will.py",
        "ways.py",
        "deposit.py",
        "splice.py",
        "tcp.py",
    )
}

URGENT: Final = b"!"

MOVED: Final = bytes(range(256)) * 4096
"""A MiB; more than the small buffers take."""


class KilledError(BaseException):
    """The worker is no more."""


class Scene:
    """A flow with both its peers. What a peer was sent it reads by itself."""

    def __init__(self, small: bool = False) -> None:
        self.will = Will(1)
        self.relay = Relay(10, 10, monotonic())
        self.relay.will = self.will
        take_mark(1)
        self.client, accepted = pair(small=False)
        connected, self.endpoint = pair(small=small)
        for socket in (accepted, connected, self.endpoint):
            set_options(socket, IN_LINE)
        counters = ListenerCounters("lab", Transport.TCP, "lab")
        here = ("127.0.0.1", 1)
        self.flow = Surviving(self.relay, counters, FlowLimits(), accepted, here, here, 0.0)
        self.relay.table.add(self.flow)
        self.relay.table.set_endpoint(self.flow, here, here)
        self.relay.pump.register(accepted.fileno(), self.flow.original, WATCH)
        self.relay.pump.register(connected.fileno(), self.flow.reply, WATCH_BOTH)
        self.sockets = accepted, connected
        self.flow.connected(connected, Endpoint("lab", "e", here), 0.0)
        self.got = self.said = b""

    def say(self, *parts: bytes) -> None:
        """Be a client that says something, and wait until it is there."""
        for part in parts:
            self.client.send(part, MSG_OOB if part == URGENT else 0)
            self.said += part
        until = monotonic() + PATIENCE
        while monotonic() < until:
            reading = read_socket(self.sockets[0], is_ours=False)
            if reading is not None and reading.consumed + reading.unread == len(self.said):
                return
        raise AssertionError(reading)

    def pull(self, mask: int = EPOLLIN) -> None:
        """Serve the client's socket."""
        self.flow.original.ready(mask, 1.0)

    def flush(self) -> None:
        """Serve the endpoint's socket, to which something was pending."""
        self.flow.reply.ready(EPOLLOUT, 1.0)

    def read(self) -> None:
        """Be an endpoint that reads what there is."""
        with suppress(BlockingIOError):
            while part := self.endpoint.recv(1 << 16, MSG_DONTWAIT):
                self.got += part

    def state(self) -> FlowState | None:
        """What an executor makes of what is left; None if the flow is not proven."""
        (record,) = (record for record in self.will.records() if record.kind == STREAM)
        mark = read_mark()
        is_marked = (mark.will, mark.record) == (1, record.number)
        return _stream_state(record, mark if is_marked else NOBODY, *self.sockets, 2.0)

    def close(self) -> None:
        for socket in (self.client, self.endpoint, *self.sockets):
            socket.close()
        self.relay.pipes.close()
        pipe = self.flow.original.pipe
        if pipe is not None:
            with suppress(OSError):  # it was just given back
                pipe.close()
        self.relay.pump._epoll.close()


def pair(*, small: bool) -> tuple[Socket, Socket]:
    with Socket() as listener:
        if small:
            listener.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        socket = Socket()
        if small:
            socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 8192)
        socket.connect(listener.getsockname())
        return socket, listener.accept()[0]


def request(scene: Scene) -> Iterator[Callable[[], None]]:
    """A few bytes, twice."""
    for text in (b"first", b"second, longer"):
        scene.say(text)
        yield scene.pull


def blocked(scene: Scene) -> Iterator[Callable[[], None]]:
    """More than the endpoint takes; then it reads, again and again."""
    scene.say(MOVED[:60_000])
    yield scene.pull
    for _ in range(6):
        scene.read()
        yield scene.flush


def urgent(scene: Scene) -> Iterator[Callable[[], None]]:
    """An urgent byte in the middle."""
    scene.say(b"before", URGENT, b"behind")
    for _ in range(2):
        yield lambda: scene.pull(EPOLLIN | EPOLLPRI)


def spliced(scene: Scene) -> Iterator[Callable[[], None]]:
    """Bulk through a pipe, to an endpoint that is slow."""
    scene.say(MOVED[:40_000])
    yield scene.flow.original._borrow_pipe
    yield scene.pull
    for _ in range(6):
        scene.read()
        yield scene.flush
    yield scene.pull


SCENES: Final[dict[str, tuple[Callable[[Scene], Iterator[Callable[[], None]]], bool]]] = {
    "request": (request, False),
    "blocked": (blocked, True),
    "urgent": (urgent, False),
    "spliced": (spliced, True),
}


class Killer:
    """Raises at the n-th line of what is watched."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        return self._line

    def _line(self, _frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self.left -= 1
            if self.left < 0:
                raise KilledError
        return self._line


def run_until_killed(scene: Scene, name: str, line: int) -> bool:
    """Play a scene; return whether it was killed before its end."""
    play, _ = SCENES[name]
    killer = Killer(line)
    for step in play(scene):
        sys.settrace(killer)
        try:
            step()
        except KilledError:
            return True
        finally:
            sys.settrace(None)
        BUFFER[:] = bytes(len(BUFFER))  # another flow has its turn
        take_mark(1)
    return False


@pytest.mark.parametrize("name", SCENES)
async def test_no_byte_is_lost_at_whatever_line_it_is_killed(name: str) -> None:
    line, found = 0, set[str]()
    while True:
        scene = Scene(small=SCENES[name][1])
        try:
            is_killed = run_until_killed(scene, name, line)
            check(scene, found)
        except AssertionError as error:
            raise AssertionError(f"killed at line {line}") from error
        finally:
            scene.close()
        if not is_killed:
            break
        line += 1
        await trio.lowlevel.checkpoint()
    assert line > 30
    assert len(found) > 1  # it was killed with bytes in flight, and without


def check(scene: Scene, found: set[str]) -> None:
    """All that the client has sent is at the endpoint, in flight, or unread; in this order."""
    state = scene.state()
    assert state is not None
    scene.client.shutdown(SHUT_WR)
    scene.read()
    scene.sockets[1].shutdown(SHUT_WR)
    sent = scene.got + rest_of(scene.endpoint)
    left = rest_of(scene.sockets[0])
    original = state.original
    assert original.received == len(sent) + len(original.pending)
    assert sent + original.pending + left == scene.said
    assert original.urgent == (original.pending == b"!")
    found.add("in flight" if original.pending else "none")


def rest_of(socket: Socket) -> bytes:
    """All that comes before the end; the worker is no more, so the end comes."""
    parts = []
    while part := socket.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)
