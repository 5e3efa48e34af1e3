"""A worker on loopback with one listener, and the peers that try it: polite and hostile ones.

Peers are plain Trio sockets, so that a test decides on every FIN and RST itself. Conditions are
awaited, never slept for; every wait ends with ``PATIENCE``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from socket import (
    AF_INET,
    AF_INET6,
    SHUT_WR,
    SO_LINGER,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
)
from socket import socket as Socket
from typing import Any
from weakref import WeakKeyDictionary

import trio
from trio.socket import SocketType

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.address import Address, Transport
from proxy.core.expiry import FlowLimits
from proxy.core.pace import Pace
from proxy.core.query import FlowQuery, FlowRow
from proxy.core.upstream import HOME, MulticastPath
from proxy.engine.datagram_listener import DatagramListener
from proxy.engine.datagram_options import ORDINARY, DatagramOptions
from proxy.engine.options import NODELAY, SocketOptions
from proxy.engine.port import RelayCounters
from proxy.engine.specs import Change, EndpointSpec, ListenerSpec, OpenListener, UpstreamSpec
from proxy.engine.worker import Worker

opened: list[SocketType | Socket] = []
"""Sockets that peers of a test opened, or an heir; the fixture in conftest.py closes them."""

PATIENCE = 30.0 * float(os.environ.get("SOCKPAIR_TEST_SLOWNESS", "1"))


PACE = Pace(timeout=30.0, rate=1000.0, spread=10.0)

UPSTREAMS: WeakKeyDictionary[Worker, dict[str, UpstreamSpec]] = WeakKeyDictionary()
"""What each worker has been given so far: a change names all of them."""


@dataclass
class Lab:
    """One running worker.

    Attributes:
        worker: the relay under test.
        address: where its listener listens.

    """

    worker: Worker
    address: Address
    transport: Transport

    @property
    def listener(self) -> DatagramListener:
        """The first, if it is one of datagrams."""
        ((listener,), *_) = self.worker._roster._listeners.values()
        assert isinstance(listener, DatagramListener)
        return listener

    async def live(self) -> list[FlowRow]:
        return (await self.worker.flows(FlowQuery()))["rows"]

    async def ended(self) -> list[FlowRow]:
        return (await self.worker.flows(FlowQuery(recent=True)))["rows"]

    async def counters(self) -> RelayCounters:
        return await self.worker.counters()

    async def wait_live(self, state: str) -> FlowRow:
        """Wait until some flow is in this state."""
        while True:
            for row in await self.live():
                if row["state"] == state:
                    return row
            await trio.sleep(0.002)

    async def wait_ended(self, count: int = 1) -> list[FlowRow]:
        """Wait until so many flows have ended and none is left."""
        while len(rows := await self.ended()) < count or await self.live():
            await trio.sleep(0.002)
        return rows

    async def wait_counter(self, read: Callable[[RelayCounters], int], least: int) -> None:
        while read(await self.counters()) < least:
            await trio.sleep(0.002)


@asynccontextmanager
async def relaying(
    endpoints: Sequence[Address],
    transport: Transport = Transport.TCP,
    host: str = "127.0.0.1",
    limits: FlowLimits | None = None,
    table_limit: int = 10_000,
    datagrams: DatagramOptions = ORDINARY,
    **parts: Any,
) -> AsyncIterator[Lab]:
    """A worker with one listener in front of these endpoints, for as long as ``PATIENCE``."""
    worker = Worker(table_limit, recent=10_000)
    socket = bind_socket(ListenAddress(transport, host, 0))
    await open_listener(
        worker, "lab", socket, endpoints, transport, limits, datagrams=datagrams, **parts
    )
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            try:
                yield Lab(worker, socket.getsockname(), transport)
            finally:
                worker.stop()
                nursery.cancel_scope.cancel()


async def open_listener(
    worker: Worker,
    name: str,
    socket: Socket,
    endpoints: Sequence[Address],
    transport: Transport = Transport.TCP,
    limits: FlowLimits | None = None,
    options: SocketOptions = NODELAY,
    datagrams: DatagramOptions = ORDINARY,
    multicast: MulticastPath = HOME,
    **parts: Any,
) -> None:
    """One more listener, with an upstream of its own; the endpoints are called e0, e1 and so on."""
    upstream = upstream_spec(name, endpoints, multicast)
    known = UPSTREAMS.setdefault(worker, {})
    known[name] = upstream
    spec = ListenerSpec(
        name=name,
        transport=transport,
        upstream=name,
        limits=limits or FlowLimits(),
        options=options,
        datagrams=datagrams,
        **parts,
    )
    opened = OpenListener(spec, (socket,))
    table = worker._relay.table
    bounds = {"table_limit": table.limit, "recent": table.recent.maxlen}
    await worker.apply(change(*known.values(), opened=(opened,), **bounds))


def upstream_spec(
    name: str, endpoints: Sequence[Address], multicast: MulticastPath = HOME
) -> UpstreamSpec:
    named = tuple(EndpointSpec(f"e{n}", endpoint) for n, endpoint in enumerate(endpoints))
    return UpstreamSpec(name=name, endpoints=named, multicast=multicast)


def change(*upstreams: UpstreamSpec, **parts: Any) -> Change:
    """A change; what is not named is as the lab has it."""
    whole = {"pace": PACE, "table_limit": 10_000, "recent": 10_000, **parts}
    return Change(upstreams=upstreams, **whole)


def family_of(address: Address) -> int:
    return AF_INET6 if ":" in address[0] else AF_INET


def listening(host: str = "127.0.0.1", backlog: int = 128) -> SocketType:
    """An endpoint that listens; the test accepts."""
    socket = Socket(AF_INET6 if ":" in host else AF_INET, SOCK_STREAM | SOCK_NONBLOCK)
    socket.bind((host, 0))
    socket.listen(backlog)
    return _noted(trio.socket.from_stdlib_socket(socket))


def datagram_socket(host: str = "127.0.0.1") -> SocketType:
    """A bound UDP socket, for an endpoint or a client."""
    socket = Socket(AF_INET6 if ":" in host else AF_INET, SOCK_DGRAM | SOCK_NONBLOCK)
    socket.bind((host, 0))
    return _noted(trio.socket.from_stdlib_socket(socket))


def closed_port() -> Address:
    """An address on which nobody listens."""
    with Socket() as socket:
        socket.bind(("127.0.0.1", 0))
        address: Address = socket.getsockname()
    return address


async def connect(address: Address, source: str | None = None) -> SocketType:
    """A client of the lab's listener, from any address of this host, or from this one."""
    socket = _noted(trio.socket.socket(family_of(address), SOCK_STREAM))
    if source is not None:
        await socket.bind((source, 0))
    await socket.connect(address)
    return socket


async def pair(lab: Lab, endpoint: SocketType) -> tuple[SocketType, SocketType]:
    """A flow: the client's socket, and the endpoint's end of it."""
    client = await connect(lab.address)
    return client, await accept(endpoint)


async def accept(endpoint: SocketType) -> SocketType:
    """The endpoint's end of the next flow."""
    accepted, _ = await endpoint.accept()
    return _noted(accepted)


def reset(socket: SocketType) -> None:
    """Close with RST."""
    socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    socket.close()


async def send_all(socket: SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await socket.send(view) :]


async def send_and_end(socket: SocketType, data: bytes) -> None:
    """The last words of a side."""
    await send_all(socket, data)
    socket.shutdown(SHUT_WR)


async def pass_both_ways(client: SocketType, accepted: SocketType, data: bytes) -> None:
    """Have both sides say all they have at once, and see that it comes as it was sent."""
    received = {}

    async def receive(name: str, socket: SocketType) -> None:
        received[name] = await receive_all(socket)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, client, data)
        nursery.start_soon(send_and_end, accepted, data[::-1])
        nursery.start_soon(receive, "client", client)
        nursery.start_soon(receive, "endpoint", accepted)
    assert received["endpoint"] == data
    assert received["client"] == data[::-1]


async def receive_all(socket: SocketType) -> bytes:
    """Everything up to FIN."""
    parts = []
    while part := await socket.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


async def receive_exactly(socket: SocketType, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await socket.recv(size - len(data))
        assert part, f"ended after {len(data)} of {size} bytes"
        data += part
    return data


async def is_reset(socket: SocketType) -> bool:
    """Read on until the end, and tell whether it was RST."""
    try:
        await receive_all(socket)
    except ConnectionResetError:
        return True
    return False


async def is_refused(address: Address, source: str | None = None) -> bool:
    """Connect, and tell whether RST was the answer, be it at once or a moment later."""
    try:
        return await is_reset(await connect(address, source))
    except ConnectionResetError:
        return True


def _noted(socket: SocketType) -> SocketType:
    opened.append(socket)
    return socket
