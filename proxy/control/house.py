"""The house: puts a configuration to work, and takes it down again.

Opening goes in an order that leaves nothing half done: names first, because they may fail slowly;
then every socket, all or none; then the worker, which cannot fail. Whatever the house opened, it
closes.
"""

from __future__ import annotations

import resource
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from socket import socket as Socket
from typing import TYPE_CHECKING

import structlog
import trio

from proxy.control.listen import bind_admin_http, bind_admin_socket, bind_listeners
from proxy.control.names import resolve_upstreams
from proxy.control.outbound import outbounds
from proxy.control.unix import SocketFile, socket_files
from proxy.core.expiry import FlowLimits
from proxy.engine.datagram_options import DatagramOptions, Pmtu
from proxy.engine.options import stream_options
from proxy.engine.worker import Worker

if TYPE_CHECKING:
    from proxy.config.model import Config, Listener

log = structlog.get_logger()


class House:
    """A configuration at work: the worker, and the sockets of the admin.

    Made by ``open_house``; used as a context manager, which closes what it owns.
    """

    def __init__(
        self, config: Config, worker: Worker, admin: list[Socket], files: list[SocketFile]
    ) -> None:
        self.config = config
        self.worker = worker
        self.admin = admin
        self.files = files

    def __enter__(self) -> House:
        return self

    def __exit__(self, *_: object) -> None:
        for socket in self.admin:
            socket.close()
        if self.config.admin.socket:
            Path(self.config.admin.socket).unlink(missing_ok=True)
        for file in self.files:
            file.remove()


async def open_house(config: Config) -> House:
    """Resolve, bind and set up everything that the configuration names.

    Raises:
        ResolveError: an endpoint's name has no address.
        BindError: a socket could not be bound; none is left open then.
        OptionError: a socket option, or a source, is not to be had; the same.

    """
    raise_file_limit()
    upstreams = await resolve_upstreams(config)
    ways = outbounds(config)
    with ExitStack() as undo:
        admin = []
        if config.admin.socket:
            admin.append(undo.enter_context(bind_admin_socket(config.admin.socket)))
            undo.callback(Path(config.admin.socket).unlink, missing_ok=True)
        if config.admin.http is not None:
            admin.append(undo.enter_context(bind_admin_http(config.admin.http)))
        sockets = bind_listeners(config)
        undo.pop_all()
    worker = Worker(config.engine.table_limit, config.engine.recent)
    for name, listener in config.listener.items():
        worker.open_listener(
            name,
            listener.listen.transport,
            upstreams[listener.upstream],
            limits_of(listener),
            [sockets[name]],
            stream_options(listener.tcp),
            ways[name],
            datagrams=datagram_options(listener),
            transparent=listener.transparent,
        )
    return House(config, worker, admin, socket_files(sockets.values()))


async def wait_stop_signal() -> signal.Signals:
    """Wait for SIGTERM or SIGINT. SIGHUP, which asks others to reload, is answered in the log."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number != signal.SIGHUP:
                return signal.Signals(number)
            log.warning("reload_not_supported", remedy="restart to apply a changed file")
    raise AssertionError("the receiver never ends by itself")


def limits_of(listener: Listener) -> FlowLimits:
    """The clocks of a listener's flows, as the configuration sets them."""
    per_flow = listener.limits.per_flow
    clocks = FlowLimits(
        connect=per_flow.connect,
        idle=listener.idle,
        half_closed=per_flow.half_closed,
        unreplied=per_flow.unreplied,
        linger=per_flow.linger,
    )
    if per_flow.duration is None:
        return clocks
    return replace(clocks, duration=per_flow.duration)


def datagram_options(listener: Listener) -> DatagramOptions:
    """How a listener's datagram flows are treated."""
    return DatagramOptions(
        pmtu=Pmtu(listener.pmtu),
        responses=listener.responses or 0,
        datagrams=listener.datagrams or 0,
        broadcast=listener.broadcast,
        multicast=bool(listener.multicast),
    )


def raise_file_limit() -> None:
    """Allow this process as many descriptors as the system lets it have; flows need them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
