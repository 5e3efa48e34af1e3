"""An admin server on real sockets, and the least of a client."""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import h11
import trio

from proxy.observe.api import NOBODY_ELSE
from proxy.observe.http import Bounds
from proxy.observe.server import serve_admin
from tests.e2e.patience import PATIENCE
from tests.observe.fake_relay import FakeSteward

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.engine.port import RelayPort, StewardPort
    from proxy.observe.trust import Trust


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Admin(NamedTuple):
    tcp: tuple[str, int]
    unix: str

    async def by_tcp(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.tcp)

    async def by_unix(self) -> trio.SocketStream:
        return await trio.open_unix_socket(self.unix)

    async def get(self, target: str, **headers: str) -> Answer:
        async with await self.by_tcp() as stream:
            return await ask(stream, "GET", target, **headers)

    async def control(self, method: str, target: str) -> Answer:
        async with await self.by_unix() as stream:
            return await ask(stream, method, target)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes, then read until the server closes."""
        async with await self.by_tcp() as stream:
            await stream.send_all(data)
            return await read_all(stream)


@asynccontextmanager
async def admin_server(
    relay: RelayPort,
    folder: Path,
    bounds: Bounds | None = None,
    steward: StewardPort | None = None,
    trust: Trust = NOBODY_ELSE,
) -> AsyncIterator[Admin]:
    path = str(folder / "admin.sock")
    tcp = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with trio.open_nursery() as nursery:
        listeners = [tcp, unix_listener(path)]
        address = tcp.socket.getsockname()
        asked = steward or FakeSteward()
        await nursery.start(
            lambda **kwargs: _serve(relay, asked, listeners, bounds, {**kwargs, "trust": trust})
        )
        with trio.fail_after(PATIENCE):
            yield Admin(address, path)
        nursery.cancel_scope.cancel()


async def _serve(
    relay: RelayPort,
    steward: StewardPort,
    listeners: list[trio.SocketListener],
    bounds: Bounds | None,
    kwargs: dict[str, Any],
) -> None:
    await serve_admin(
        relay, steward, listeners, bounds=bounds or Bounds(), log_dropped=lambda: 4, **kwargs
    )


def unix_listener(path: str) -> trio.SocketListener:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


async def ask(
    stream: trio.SocketStream, method: str, target: str, *, body: bytes = b"", **headers: str
) -> Answer:
    """One request and its answer; the connection stays open."""
    client = h11.Connection(h11.CLIENT)
    fields = {"Host": "127.0.0.1", **headers}
    if body:
        fields["Content-Length"] = str(len(body))
    request = h11.Request(method=method, target=target, headers=list(fields.items()))
    await stream.send_all(client.send(request))
    if body:
        await stream.send_all(client.send(h11.Data(data=body)))
    client.send(h11.EndOfMessage())
    return await read_answer(stream, client)


async def read_answer(stream: trio.SocketStream, client: h11.Connection) -> Answer:
    response, body = None, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
    assert response is not None
    headers = {name.decode(): value.decode() for name, value in response.headers}
    return Answer(response.status_code, headers, body)


async def read_all(stream: trio.SocketStream) -> bytes:
    """Everything until the server closes; a reset counts as closing."""
    data = b""
    try:
        async for piece in stream:
            data += piece
    except trio.BrokenResourceError:
        pass
    return data
