"""Clients that wait at a listener that is full: their sockets, their time, and how it ends.

Who is next is decided in ``proxy.core.waiting``. Here the clients are held: accepted, and not read,
so that what they sent waits in the kernel and is served first thing when they become flows. One who
goes away is forgotten; one whose time is over is refused, as it would have been at once.

A room looks for the next when a flow has ended, when a bucket has a token (an alarm), and, where
there are other workers, at each tick. It does so in the pump's rounds, never inside the end of a
flow, which has not given its descriptors back yet.

Several workers. Each tells since when the first waits whom the listener keeps out, and lets nobody
in who has come ``AHEAD`` after the first of another: his worker finds the place at its next tick.
So nobody starves because the places are all at another worker, whose own clients are there first.
Not less than ``AHEAD``, as each place that changes its worker is empty until a tick.
"""

from __future__ import annotations

from math import inf
from select import EPOLLERR, EPOLLET, EPOLLRDHUP
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

import structlog

from proxy.core.admission import Limit
from proxy.core.flow import Refusal
from proxy.core.waiting import WaitingLines, WaitLimits
from proxy.engine.tcp import has_data, reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.core.address import Address
    from proxy.core.counters import ListenerCounters
    from proxy.core.identity import Identity
    from proxy.core.sources import Source, SourceKey
    from proxy.core.wheel import Slot
    from proxy.engine.accept import StreamListener
    from proxy.engine.relay import Relay

ENTRIES_PER_TURN: Final = 16
"""Clients that enter until the other sockets get their turn."""

LONGEST_ALARM: Final = 1.0
"""Seconds; alarms are for moments that are near."""

AHEAD: Final = 1.0
"""Seconds, or a quarter of the time that clients wait, if that is less."""

GONE: Final = EPOLLRDHUP | EPOLLET
"""What is watched for; errors and hang-ups are always told."""

log = structlog.get_logger()


class WaitingClient:
    """A client that may have to wait; a ``Handler``, and ``Timed``.

    Owns its socket until it enters.

    Attributes:
        since: when it came.
        identity: what is known of it beside its address.
        limit: what keeps it waiting.

    """

    __slots__ = (
        "identity",
        "limit",
        "listener",
        "local",
        "remote",
        "room",
        "since",
        "slot",
        "socket",
    )

    room: WaitingRoom
    limit: Limit

    def __init__(
        self,
        listener: StreamListener,
        socket: Socket,
        remote: Address,
        local: Address,
        now: float,
        identity: Identity | None = None,
    ) -> None:
        self.listener = listener
        self.socket = socket
        self.remote = remote
        self.local = local
        self.since = now
        self.identity = identity
        self.slot: Slot | None = None

    @property
    def key(self) -> SourceKey:
        """Of its source, by the limits in force."""
        return self.listener.source_of(self.socket, self.remote)

    def refusal(self, now: float) -> Refusal | None:
        """Why it is not let in, whatever the gate says; or None."""
        return self.listener.refusal(self.socket, self.remote, self.local, now)

    def open(self, key: SourceKey, now: float) -> None:
        """Open its flow: the gate has admitted it."""
        self.listener.open(self.socket, self.remote, self.local, key, now, self.identity)

    def ready(self, mask: int, now: float) -> None:
        """See whether it has gone: who has sent something, and then ended, waits for an answer."""
        if mask & EPOLLERR or not has_data(self.socket):
            self.room.abandoned(self)

    def expire(self, now: float) -> None:
        """Its time is over."""
        self.room.refuse(self, self.room.counters.hit(self.limit))

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours, and let it go."""
        log.error("waiting_crashed", listener=self.room.counters.listener, exc_info=error)
        self.room.refuse(self, self.room.counters.hit(self.limit))


class WaitingRoom:
    """The clients that wait at one listener; a ``Sleeper``, and a ``Handler`` without a socket.

    Args:
        relay: where flows live.
        counters: of the listener, and its gate.
        limits: how many may wait, and how long.

    """

    def __init__(self, relay: Relay, counters: ListenerCounters, limits: WaitLimits) -> None:
        self.counters = counters
        self.alarm = inf
        self._relay = relay
        self._limits = limits
        self._lines: WaitingLines[WaitingClient] = WaitingLines(counters.gate)
        counters.gate.on_leave = self._freed

    def __len__(self) -> int:
        return len(self._lines)

    def arrive(self, client: WaitingClient, now: float) -> None:
        """Let a client in, hold it, or refuse it; who came before it comes first."""
        client.room = self
        key = client.key
        if self._lines:
            self.serve(now, inf)  # all who may, so that nobody is overtaken
        refusal = client.refusal(now)
        if refusal is not None:
            client.listener.refuse(client.socket, refusal)
            return
        gate = self.counters.gate
        limit = gate.refusal(key, now)
        if limit is None and (self._lines.kept or self._later(now)(client)):
            gate.tell()
            limit = Limit.LISTENER_FLOWS
        if limit is None:
            client.open(key, now)
        elif len(self._lines) >= self._limits.flows:
            client.listener.refuse(client.socket, self.counters.hit(limit))
        else:
            self._hold(client, key, limit, now)

    def serve(self, now: float, most: float = ENTRIES_PER_TURN) -> None:
        """Let those enter who may, in their order."""
        lines, gate = self._lines, self.counters.gate
        is_later = self._later(now)
        while most and (client := lines.next(now, is_later)) is not None:
            most -= 1
            self._let_go(client)
            refusal = client.refusal(now)
            if refusal is not None:
                gate.tell()
                self._reset(client, refusal)
                continue
            self._relay.pump.release(client.socket.fileno())
            client.open(client.key, now)
        if not most and lines:
            self._relay.pump.again(self, 0)
        self._tell()
        when = min(lines.look_at, now + LONGEST_ALARM) if lines else inf
        self._relay.pump.alarms.set(self, when)

    def ready(self, mask: int, now: float) -> None:
        """A flow has ended, or there was more to do than a turn allows."""
        self.serve(now)

    def wake(self, now: float) -> None:
        """A bucket has a token."""
        if self._lines:
            self.serve(now)

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours, and go on."""
        log.error("waiting_crashed", listener=self.counters.listener, exc_info=error)
        self._relay.pump.alarms.set(self, now + LONGEST_ALARM)

    def refuse(self, client: WaitingClient, refusal: Refusal) -> None:
        """Have a client wait no more, and refuse it."""
        self._let_go(client)
        self._reset(client, refusal)

    def abandoned(self, client: WaitingClient) -> None:
        """Forget a client that has gone away."""
        self._let_go(client)
        self.counters.abandoned += 1
        reset_on_close(client.socket)
        self._relay.pump.bury(client.socket)

    def close(self, listener: StreamListener) -> None:
        """Refuse all that came by a socket which accepts no more."""
        for client in self._lines:
            if client.listener is listener:
                self.refuse(client, Refusal.DRAINING)

    def take_out(self) -> list[WaitingClient]:
        """Have nobody wait here any more; the sockets are the caller's."""
        clients = list(self._lines)
        for client in clients:
            self._let_go(client)
            self._relay.pump.release(client.socket.fileno())
        return clients

    def become(self, limits: WaitLimits, now: float) -> None:
        """Go by other limits, the gate's too, for those who wait already."""
        self._limits = limits
        if not self._lines:
            return
        self._lines.settle(lambda client: client.key)
        for client in self._lines:
            self._relay.wheel.schedule(client, client.since + limits.time)
        self.serve(now)

    def dissolve(self, now: float) -> None:
        """Have nobody wait any more: who may not enter now is refused."""
        self._lines.settle(lambda client: client.key)
        self.serve(now, inf)
        for client in self._lines:
            client.expire(now)
        self.counters.gate.on_leave = None

    def _hold(self, client: WaitingClient, key: SourceKey, limit: Limit, now: float) -> None:
        relay = self._relay
        client.limit = limit
        self._lines.join(client, key)
        self.counters.waited += 1
        self.counters.waiting += 1
        relay.files.used += 1
        relay.wheel.schedule(client, now + self._limits.time)
        relay.pump.register(client.socket.fileno(), client, GONE)
        self.serve(now)  # which sets the alarm

    def _later(self, now: float) -> Callable[[WaitingClient], bool]:
        """Whether a client has come after the first who waits at another worker.

        Whose time is over there is not waited for: that worker stands still.
        """
        time = self._limits.time
        since = self.counters.gate.others_wait_since(now - time) + min(AHEAD, time / 4)
        return lambda client: client.since > since

    def _tell(self) -> None:
        """Tell the other workers of the first who waits for the listener as a whole."""
        kept = self._lines.kept
        self.counters.gate.tell_waiting(inf if kept is None else kept.since)

    def _reset(self, client: WaitingClient, refusal: Refusal) -> None:
        self.counters.refused[refusal] += 1
        reset_on_close(client.socket)
        self._relay.pump.bury(client.socket)

    def _let_go(self, client: WaitingClient) -> None:
        """Take a client out of the books; the lines may have done so already."""
        self._lines.discard(client)
        self._tell()
        self.counters.waiting -= 1
        self._relay.files.used -= 1
        self._relay.wheel.cancel(client)

    def _freed(self, source: Source) -> None:
        if self._lines:
            self._lines.freed(source)
            self._relay.pump.again(self, 0)
