"""The admin server: accepts people and scrapers, and lets no more in than it can serve.

Strategy: one task a listening socket accepts; one task a connection serves. Who connects to a Unix
socket has passed its file permissions and may change things; who connects by TCP may only read.

Invariants: a listener serves ``Bounds.connections`` clients at once, the next are closed and
counted; accepting survives the named errors of a process that is out of descriptors or memory, and
no others; a client's fault never ends the server.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from proxy.core.address import format_address
from proxy.engine.port import RelayPort, StewardPort
from proxy.observe.api import Api
from proxy.observe.http import Bounds, HttpConnection

ACCEPT_PAUSES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What accept(2) says when the process or the host has run out; the connection stays queued."""

PAUSE_SECONDS: Final = 0.2

DEFAULT_BOUNDS: Final = Bounds()

log = structlog.get_logger()


async def serve_admin(
    port: RelayPort,
    steward: StewardPort,
    listeners: Sequence[trio.SocketListener],
    *,
    log_dropped: Callable[[], int] = lambda: 0,
    max_series: int = 1000,
    bounds: Bounds = DEFAULT_BOUNDS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve metrics and the API, until cancelled.

    Args:
        port: the relay.
        steward: reloads and drains the house.
        listeners: sockets that listen; a Unix socket gives full control, TCP is read-only.
        log_dropped: log lines that the log sink has thrown away so far, for the metrics.
        max_series: flows that ``/metrics/flows`` shows at most.
        bounds: what a client may cost.
        task_status: started when everything accepts.

    Resource handling: takes the listeners over and closes them. A Unix socket's path is left to
    whoever made it.

    """
    api = Api(port, steward, log_dropped, max_series)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(api.hub.run)
        for listener in listeners:
            nursery.start_soon(_Entrance(listener, api, bounds).accept_forever)
        task_status.started()


@dataclass(slots=True)
class _Entrance:
    """One listening socket, and how many of its clients are inside."""

    listener: trio.SocketListener
    api: Api
    bounds: Bounds
    inside: int = 0
    full: bool = False  # the last client was refused; so that a flood is one log line
    paused: bool = False

    async def accept_forever(self) -> None:
        async with self.listener, trio.open_nursery() as nursery:
            while True:
                stream = await self._accept()
                if self.inside < self.bounds.connections:
                    self.full = False
                    self.inside += 1
                    nursery.start_soon(self._serve, stream)
                else:
                    await self._refuse(stream)

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

    async def _serve(self, stream: trio.SocketStream) -> None:
        control = stream.socket.family == socket.AF_UNIX
        peer = _credentials(stream) if control else _remote(stream)
        try:
            await HttpConnection(stream, self.api, peer, control, self.bounds).serve()
        finally:
            self.inside -= 1

    async def _refuse(self, stream: trio.SocketStream) -> None:
        self.api.admin_refused += 1
        if not self.full:
            log.warning("admin_connections_full", limit=self.bounds.connections)
        self.full = True
        await trio.aclose_forcefully(stream)


def _credentials(stream: trio.SocketStream) -> str:
    """Who opened the Unix connection, as the kernel knows it (SO_PEERCRED, unix(7))."""
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return f"pid {pid} uid {uid}"


def _remote(stream: trio.SocketStream) -> str:
    try:
        return format_address(stream.socket.getpeername())
    except OSError:  # it has left already
        return "unknown"
