"""The pump: one Trio task that serves every relay socket.

All relay sockets live in one epoll instance of our own, nested in Trio's: Trio sees a single
descriptor, which is readable while any of them has news. When it wakes us we poll our epoll
ourselves and call a plain method on whatever owns each ready socket. Two Trio tasks per flow
would cost three times the CPU per request and five times per connection.

Between two calls to Trio the pump *stays* with its sockets as long as news keeps coming: after a
round it waits up to ``LINGER_MS`` inside our epoll, which burns no CPU, and answers the next event
without a turn through Trio's scheduler. A stay ends when it grew quiet, or after ``STAY`` seconds,
so that admin, timers and signals always get their turn. While another task is ready to run (a
scrape or a listing in slices) the pump does not linger, and stays for one round.

Closing is deferred to the end of a round. A descriptor that is closed inside a round can come back
as the number of a new socket within the same round, and an event that was polled for the old one
would then be served to the new one.

Handlers are called with the event mask and the round's time (monotonic seconds, read once a
round). A handler that raises is a fault of ours: it is told by ``crashed`` and the pump goes on.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from socket import SocketType as Socket
from time import monotonic
from typing import Final, Protocol

import trio

MAX_EVENTS: Final = 256
"""Events of one round: bounds the time until timers and deferred closes are seen to."""

STAY: Final = 0.005
"""Seconds the pump may go on before the rest of the house gets a turn."""

LINGER_MS: Final = 1
"""Milliseconds to wait for more news before giving way; the finest grain epoll_wait knows."""


class Handler(Protocol):
    """Owns a socket in the pump."""

    def ready(self, mask: int, now: float) -> None:
        """Serve the socket; never blocks. ``mask`` is made of EPOLL constants."""
        ...

    def crashed(self, error: Exception, now: float) -> None:
        """Take the consequences: ``ready`` raised."""
        ...


class Pump:
    """Serves the sockets registered with it. Closes them, once they have been handed to it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._again: list[tuple[Handler, int]] = []
        self._after_round: list[Callable[[float], None]] = []
        self._graves: list[Socket] = []
        self._in_round = False
        self.rounds = 0

    def register(self, fd: int, handler: Handler, mask: int) -> None:
        """Serve a socket from now on."""
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        """Ask for other events; what is pending already is told anew."""
        self._epoll.modify(fd, mask)

    def hand_over(self, fd: int, handler: Handler) -> None:
        """Let another handler serve a registered socket."""
        self._handlers[fd] = handler

    def again(self, handler: Handler, mask: int) -> None:
        """Serve a handler again in the next round, as if these events came then.

        For one that had more to do than its turn allowed.
        """
        self._again.append((handler, mask))

    def after_round(self, call: Callable[[float], None]) -> None:
        """Call once at the end of this round, before closing: for work gathered over a round."""
        self._after_round.append(call)

    def bury(self, socket: Socket) -> None:
        """Stop serving a socket, and close it when no event of this round can mean it any more."""
        if self._handlers.pop(socket.fileno(), None) is None or not self._in_round:
            socket.close()
        else:
            self._graves.append(socket)

    async def run(self) -> None:
        """Serve until cancelled."""
        with self._epoll:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                while not self._stay(0 if others_are_ready() else STAY):
                    await trio.lowlevel.checkpoint()

    def _stay(self, longest: float) -> bool:
        """Serve rounds until it is quiet (true), or until the time is up (false)."""
        poll = self._epoll.poll
        timeout: float = 0
        entered = monotonic()
        while True:
            events = poll(timeout, MAX_EVENTS)
            now = monotonic()
            if not events and not self._again:
                return True
            self._round(events, now)
            if now - entered >= longest:
                return False
            timeout = 0 if self._again else LINGER_MS / 1000

    def _round(self, events: list[tuple[int, int]], now: float) -> None:
        self.rounds += 1
        self._in_round = True
        if self._again:
            self._serve_again(now)
        handlers = self._handlers
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler.ready(mask, now)
                except Exception as error:
                    handler.crashed(error, now)
        if self._after_round:
            self._finish_round(now)
        self._in_round = False
        if self._graves:
            self._close_graves()

    def _serve_again(self, now: float) -> None:
        again, self._again = self._again, []
        for handler, mask in again:
            try:
                handler.ready(mask, now)
            except Exception as error:
                handler.crashed(error, now)

    def _finish_round(self, now: float) -> None:
        calls, self._after_round = self._after_round, []
        for call in calls:
            call(now)

    def _close_graves(self) -> None:
        for socket in self._graves:
            socket.close()
        self._graves.clear()


def others_are_ready() -> bool:
    """Whether some other task is ready to run now."""
    return trio.lowlevel.current_statistics().tasks_runnable > 0
