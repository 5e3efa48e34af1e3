"""The admin server: accepts people and scrapers, and lets no more in than it can serve.

Strategy: one task a listening socket accepts; one task a connection serves. Who connects to a Unix
socket has passed its file permissions and may change things; who connects by TCP may only read.

Invariants: a listener serves ``Bounds.connections`` clients at once. When there are as many, a new
one takes the place of whoever has kept us waiting longest, for a request or to take an answer, so
that a thousand who say nothing keep nobody out; if nobody does that, the new one is closed. Both
are counted.
Accepting survives the named errors of a process that is out of descriptors or memory, and
no others; a client's fault never ends the server.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from proxy.core.address import format_address
from proxy.engine.port import RelayPort, StewardPort
from proxy.observe.api import NOBODY_ELSE, Api
from proxy.observe.http import Bounds, HttpConnection
from proxy.observe.trust import Trust

ACCEPT_PAUSES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What accept(2) says when the process or the host has run out; the connection stays queued."""

PAUSE_SECONDS: Final = 0.2

TAKING_SECONDS: Final = 1.0
"""For a piece of an answer, while others want the place; the pieces are of tens of kilobytes."""

LEAVING_SECONDS: Final = 1.0
"""For answers that are under way, the one to whoever asked for the upgrade among them."""

DEFAULT_BOUNDS: Final = Bounds()

log = structlog.get_logger()


async def serve_admin(
    port: RelayPort,
    steward: StewardPort,
    listeners: Sequence[trio.SocketListener],
    *,
    log_dropped: Callable[[], int] = lambda: 0,
    trust: Trust = NOBODY_ELSE,
    max_series: int = 1000,
    bounds: Bounds = DEFAULT_BOUNDS,
    leaving: trio.Event | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve metrics and the API, until cancelled.

    Args:
        port: the relay.
        steward: reloads and drains the house.
        listeners: sockets that listen; a Unix socket gives full control, TCP is read-only.
        log_dropped: log lines that the log sink has thrown away so far, for the metrics.
        max_series: flows that ``/metrics/flows`` shows at most.
        trust: which names are our own, and who may change something at the Unix socket.
        bounds: what a client may cost.
        leaving: when it is set, others serve the sockets: nobody is let in any more, and who is
            inside is let go, after what was asked has been answered.
        task_status: started when everything accepts.

    Resource handling: takes the listeners over and closes them. A Unix socket's path is left to
    whoever made it.

    """
    api = Api(port, steward, log_dropped, max_series, trust)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(api.hub.run)
        entrances = [_Entrance(listener, api, bounds, trust) for listener in listeners]
        for entrance in entrances:
            nursery.start_soon(entrance.accept_forever)
        task_status.started()
        if leaving is not None:
            await leaving.wait()
            for entrance in entrances:
                entrance.accepting.cancel()
            await trio.sleep(LEAVING_SECONDS)
            nursery.cancel_scope.cancel()


@dataclass(slots=True)
class _Entrance:
    """One listening socket, and how many of its clients are inside."""

    listener: trio.SocketListener
    api: Api
    bounds: Bounds
    trust: Trust
    inside: dict[HttpConnection, trio.CancelScope] = field(default_factory=dict)
    accepting: trio.CancelScope = field(default_factory=trio.CancelScope)
    full: bool = False  # the last client was refused; so that a flood is one log line
    paused: bool = False

    async def accept_forever(self) -> None:
        async with trio.open_nursery() as nursery:
            with self.accepting:
                await self._accept_all(nursery)

    async def _accept_all(self, nursery: trio.Nursery) -> None:
        async with self.listener:
            while True:
                stream = await self._accept()
                inside = len(self.inside)
                self.full = self.full and inside > self.bounds.connections // 2
                if inside >= self.bounds.connections and not self._make_room():
                    await trio.aclose_forcefully(stream)
                    continue
                connection = self._connection(stream)
                self.inside[connection] = trio.CancelScope()
                nursery.start_soon(self._serve, connection)

    async def _accept(self) -> trio.SocketStream:
        while True:
            try:
                stream = await self.listener.accept()
            except OSError as exc:
                if exc.errno not in ACCEPT_PAUSES:
                    raise
                if not self.paused:
                    log.warning("admin_accept_paused", error=str(exc))
                self.paused = True
                await trio.sleep(PAUSE_SECONDS)
            else:
                self.paused = False
                return stream

    def _connection(self, stream: trio.SocketStream) -> HttpConnection:
        if stream.socket.family != socket.AF_UNIX:
            return HttpConnection(stream, self.api, _remote(stream), False, self.bounds)
        pid, uid = _credentials(stream)
        control = self.trust.may_change(uid)
        peer = f"pid {pid} uid {uid}"
        return HttpConnection(stream, self.api, peer, control, self.bounds, local=True)

    async def _serve(self, connection: HttpConnection) -> None:
        try:
            with self.inside[connection]:
                await connection.serve()
        finally:
            self.inside.pop(connection, None)

    def _make_room(self) -> bool:
        """End whoever has kept us waiting longest; false if nobody does."""
        self.api.admin_refused += 1
        if not self.full:
            log.warning("admin_connections_full", limit=self.bounds.connections)
        self.full = True
        idlest = longest_waited_for(self.inside, trio.current_time())
        if idlest is not None:
            self.inside.pop(idlest).cancel()
        return idlest is not None


def longest_waited_for(connections: Iterable[HttpConnection], now: float) -> HttpConnection | None:
    """Who keeps us waiting longest; None if nobody does.

    Taking a piece of an answer keeps nobody waiting before ``TAKING_SECONDS`` are over.
    """
    since: dict[HttpConnection, float] = {}
    for each in connections:
        if each.asking_since is not None:
            since[each] = each.asking_since
        elif each.taking_since is not None and now - each.taking_since >= TAKING_SECONDS:
            since[each] = each.taking_since
    return min(since, key=since.__getitem__, default=None)


def _credentials(stream: trio.SocketStream) -> tuple[int, int]:
    """The process and user that opened the Unix connection, as the kernel knows them.

    SO_PEERCRED, unix(7).
    """
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return pid, uid


def _remote(stream: trio.SocketStream) -> str:
    try:
        return format_address(stream.socket.getpeername())
    except OSError:  # it has left already
        return "unknown"
