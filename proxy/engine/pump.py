"""The pump: one Trio task that serves every relay socket, and in which the process sleeps.

All relay sockets live in one epoll instance of our own. The task polls it and calls a plain method
on whatever owns each ready socket. Two Trio tasks per flow would cost three times the CPU per
request and five times per connection.

The pump never waits by Trio's means. It *stays* with its sockets, asleep in our epoll while there
is no news, and gives way for one turn of Trio's scheduler when another task is ready to run; see
``scheduler``. So an event on a relay socket never passes through Trio. Rejected: our epoll inside
Trio's, which costs a turn through the scheduler each time it grew quiet, and has the kernel wake
two instances for every event.

Closing is deferred to the end of a round. A descriptor that is closed inside a round can come back
as the number of a new socket within the same round, and an event that was polled for the old one
would then be served to the new one.

Handlers are called with the event mask and the round's time (monotonic seconds, read once a
round). A handler that raises is a fault of ours: it is told by ``crashed`` and the pump goes on.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import EPOLLIN
from socket import SocketType as Socket
from time import monotonic
from typing import Final, Protocol

import structlog
import trio

from proxy.engine.alarms import Alarms
from proxy.engine.scheduler import Scheduler, next_deadline

MAX_EVENTS: Final = 256
"""Events of one round: bounds the time until timers and deferred closes are seen to."""

FEW_EVENTS: Final = 32
"""Events of a short round: below a millisecond, and Trio's own turn costs a tenth of that."""

LONGEST_SLEEP: Final = 10.0
"""Seconds; nothing needs a turn as often, but a bound is easier to trust than none."""

SHORT_SLEEP: Final = 0.001
"""Seconds, where Trio's epoll instance cannot be found: what the rest of the house may wait."""

NOBODY: Final[dict[Handler, int]] = {}
"""Who is served again in most rounds; nothing is ever entered."""

log = structlog.get_logger()


class Handler(Protocol):
    """Owns a socket in the pump."""

    def ready(self, mask: int, now: float) -> None:
        """Serve the socket; never blocks. ``mask`` is made of EPOLL constants."""
        ...

    def crashed(self, error: Exception, now: float) -> None:
        """Take the consequences: ``ready`` raised."""
        ...


class Pump:
    """Serves the sockets registered with it. Closes them, once they have been handed to it.

    Attributes:
        rounds: made so far.
        giving_way: whether others get a turn after this round.
        alarms: rung after a round in which their moment came.

    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._again: dict[Handler, int] = {}
        self._after_round: list[Callable[[float], None]] = []
        self._graves: list[Socket] = []
        self._in_round = False
        self._hurried = 0
        self.alarms = Alarms()
        self.giving_way = False
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

    def release(self, fd: int) -> None:
        """Stop serving a socket, which stays open."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def serves(self, fd: int, handler: Handler) -> bool:
        """Whether a socket is served by this handler."""
        return self._handlers.get(fd) is handler

    def again(self, handler: Handler, mask: int) -> None:
        """Serve a handler again in the next round, as if these events came then.

        For one that had more to do than its turn allowed. It has one turn a round however often it
        asks, and whether or not news comes for it too: a bulk flow has both, all the time.
        """
        self._again[handler] = self._again.get(handler, 0) | mask

    def forget(self, handler: Handler) -> None:
        """Serve a handler no more that had asked for it."""
        self._again.pop(handler, None)

    @property
    def buried(self) -> int:
        """Sockets that are open still, and will be closed at the end of this round."""
        return len(self._graves)

    def after_round(self, call: Callable[[float], None]) -> None:
        """Call once at the end of this round, before closing: for work gathered over a round."""
        self._after_round.append(call)

    def bury(self, socket: Socket) -> None:
        """Stop serving a socket, and close it when no event of this round can mean it any more."""
        if self._handlers.pop(socket.fileno(), None) is None or not self._in_round:
            socket.close()
        else:
            self._graves.append(socket)

    @contextmanager
    def short_rounds(self) -> Iterator[None]:
        """Give way after a few events each, for as long as this lasts: flows wait for some task.

        Else that would wait, for each message that it is to hear, until every socket that is ready
        has been served once: news for Trio come in turn with theirs.
        """
        self._hurried += 1
        try:
            yield
        finally:
            self._hurried -= 1

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        scheduler = Scheduler()
        trio.lowlevel.add_instrument(scheduler)
        with self._epoll:
            try:
                longest = await self._listen_to(scheduler)
                task_status.started()
                while True:
                    await trio.lowlevel.checkpoint()
                    self._stay(scheduler.runnable, longest)
            finally:
                trio.lowlevel.remove_instrument(scheduler)

    async def _listen_to(self, scheduler: Scheduler) -> float:
        """Wake up when Trio has news; return how long we may sleep in spite of it."""
        epoll = await scheduler.find_epoll()
        if epoll is None:
            log.warning("trio_epoll_not_found", effect="the relay wakes up every millisecond")
            return SHORT_SLEEP
        self.register(epoll, _GiveWay(self), EPOLLIN)
        return LONGEST_SLEEP

    def _stay(self, others: set[trio.lowlevel.Task], longest: float) -> None:
        """Serve rounds until another task is ready, or for ``longest`` seconds."""
        poll = self._epoll.poll
        most = FEW_EVENTS if self._hurried else MAX_EVENTS
        self.giving_way = self._hurried > 0
        now = monotonic()
        until = min(next_deadline(), now + longest)
        alarms = self.alarms
        while True:
            timeout = 0.0
            if not (self._again or others):
                # min() and max() are slow calls, and this is paid with each sleep.
                timeout = (until if until < alarms.next else alarms.next) - now  # noqa: FURB136
                if timeout < 0:
                    timeout = 0.0
            events = poll(timeout, most)
            now = monotonic()
            self._round(events, now)
            if others or self.giving_way or now >= until:
                return

    def _round(self, events: list[tuple[int, int]], now: float) -> None:
        self.rounds += 1
        self._in_round = True

        again = NOBODY
        if self._again:
            again, self._again = self._again, {}
        handlers = self._handlers
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler.ready(mask | again.pop(handler, 0) if again else mask, now)
                except Exception as error:
                    handler.crashed(error, now)
        if again:
            self._serve_again(again, now)
        if self.alarms.next <= now:
            self.alarms.ring(now)
        if self._after_round:
            self._finish_round(now)
        self._in_round = False
        if self._graves:
            self._close_graves()

    def _serve_again(self, again: dict[Handler, int], now: float) -> None:
        for handler, mask in again.items():
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


class _GiveWay:
    """Stands in the pump for all that Trio waits for."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump

    def ready(self, mask: int, now: float) -> None:
        """Something of theirs is ready."""
        self._pump.giving_way = True

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours."""
        log.error("give_way_crashed", exc_info=error)
