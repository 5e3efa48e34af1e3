"""PROXY protocol, out: the endpoint is told who the client is, before the client's first byte."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from select import EPOLLOUT
from socket import SHUT_WR
from socket import SocketType as Socket

import pytest
import trio

from proxy.core.address import Address
from proxy.core.expiry import FlowLimits
from proxy.core.proxy_block import UNIQUE_ID
from proxy.core.proxy_header import Header, Tlv
from proxy.core.proxy_protocol import HeaderStyle, read_header, write_header
from proxy.core.unix import UNNAMED, UnixAddress
from proxy.core.upstream import MulticastPath
from proxy.engine import identified
from proxy.engine.specs import UpstreamSpec
from tests.engine import lab
from tests.engine.lab import (
    accept,
    connect,
    is_reset,
    listening,
    receive_all,
    receive_exactly,
    relaying,
    reset,
    send_all,
)
from tests.engine.test_preface import CLIENT, EDGE, LINE, LOOPBACK
from tests.engine.test_unix import relaying as relaying_unix

STYLES = [HeaderStyle(1), HeaderStyle(2), HeaderStyle(2, checksum=True)]


@pytest.fixture(params=STYLES, ids=["v1", "v2", "v2-crc32c"])
def style(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HeaderStyle:
    """Have the lab's upstream send such headers."""
    return use(request.param, monkeypatch)


def use(style: HeaderStyle, monkeypatch: pytest.MonkeyPatch) -> HeaderStyle:
    plain = lab.upstream_spec

    def styled(name: str, endpoints: Sequence[Address], multicast: MulticastPath) -> UpstreamSpec:
        return replace(plain(name, endpoints, multicast), style=style)

    monkeypatch.setattr(lab, "upstream_spec", styled)
    return style


def expected(style: HeaderStyle, source: Address, destination: Address, id: int = 1) -> bytes:
    return write_header(style, source, destination, id)


async def test_the_header_comes_before_the_first_byte(style: HeaderStyle) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as worker:
        client = await connect(worker.address)
        await client.send(b"GET /")
        inside = await accept(endpoint)
        header = expected(style, client.getsockname(), worker.address)
        assert await receive_exactly(inside, len(header) + 5) == header + b"GET /"
        answer = read_header(header)
        assert isinstance(answer, Header)
        assert (Tlv(UNIQUE_ID, b"1") in answer.tlvs) is (style.version == 2)
        (row,) = await worker.live()
        assert row["original"]["bytes"] == 5
        (counters,) = (await worker.counters())["listeners"]
        assert counters["original"]["sent"] == counters["original"]["received"] == 5


async def test_an_endpoint_that_speaks_first_has_it_at_once(style: HeaderStyle) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as worker:
        client = await connect(worker.address)
        inside = await accept(endpoint)
        header = expected(style, client.getsockname(), worker.address)
        assert await receive_exactly(inside, len(header)) == header
        await send_all(inside, b"220 ready")
        assert await receive_exactly(client, 9) == b"220 ready"


async def test_a_declared_client_is_declared_again(style: HeaderStyle) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], proxied=LOOPBACK) as worker:
        client = await connect(worker.address)
        await client.send(LINE + b"x")
        inside = await accept(endpoint)
        header = expected(style, CLIENT, EDGE)
        assert await receive_exactly(inside, len(header) + 1) == header + b"x"


async def test_ipv6(style: HeaderStyle) -> None:
    endpoint = listening("::1")
    async with relaying([endpoint.getsockname()], host="::1") as worker:
        client = await connect(worker.address)
        inside = await accept(endpoint)
        header = expected(style, client.getsockname(), worker.address)
        assert await receive_exactly(inside, len(header)) == header


async def test_a_client_of_a_unix_socket(style: HeaderStyle, tmp_path: Path) -> None:
    endpoint = listening()
    path = str(tmp_path / "lab.sock")
    async with relaying_unix(f"unix://{path}", [endpoint.getsockname()]):
        with trio.socket.socket(trio.socket.AF_UNIX) as client:
            await client.connect(path)
            await client.send(b"x")
            inside = await accept(endpoint)
            header = expected(style, UNNAMED, UnixAddress(path))
            assert await receive_exactly(inside, len(header) + 1) == header + b"x"


async def test_an_endpoint_at_a_unix_socket(style: HeaderStyle, tmp_path: Path) -> None:
    path = str(tmp_path / "endpoint.sock")
    with trio.socket.socket(trio.socket.AF_UNIX) as endpoint:
        await endpoint.bind(path)
        endpoint.listen()
        async with relaying([UnixAddress(path)]) as worker:
            client = await connect(worker.address)
            await client.send(b"x")
            inside, _ = await endpoint.accept()
            with closing(inside):
                header = expected(style, client.getsockname(), worker.address)
                assert await receive_exactly(inside, len(header) + 1) == header + b"x"
                await inside.send(b"y")
                assert await receive_exactly(client, 1) == b"y"


class Slow:
    """Takes so many bytes at a time, and none every second time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = 0

    def send(self, socket: Socket, data: bytes) -> bytes:
        self.calls += 1
        if self.calls % 2:
            return data
        return SEND(socket, data[: self.size]) + data[self.size :]


SEND = identified.send


@pytest.mark.parametrize("size", [1, 20])
async def test_a_header_that_is_not_taken_at_once(
    style: HeaderStyle, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which needs a kernel without memory; whose edges are made here."""
    slow = Slow(size)
    monkeypatch.setattr(identified, "send", slow.send)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as worker:
        client = await connect(worker.address)
        await client.send(b"GET /")
        inside = await accept(endpoint)
        await send_all(inside, b"220 ready")
        header = expected(style, client.getsockname(), worker.address)
        (flow,) = worker.worker._relay.table
        assert isinstance(flow, identified.IdentifiedFlow)
        while isinstance(flow.attempt, identified.HeaderSend):
            flow.relay.pump.again(flow.attempt, EPOLLOUT)
            await trio.lowlevel.checkpoint()
        assert await receive_exactly(inside, len(header) + 5) == header + b"GET /"
        assert await receive_exactly(client, 9) == b"220 ready"
        client.shutdown(SHUT_WR)
        assert await receive_all(inside) == b""
        inside.close()
        (row,) = await worker.wait_ended()
        assert row["close_reason"] == "finished"
        assert worker.worker._relay.files.used == 0


async def test_a_header_that_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    use(HeaderStyle(2), monkeypatch)
    monkeypatch.setattr(identified, "send", lambda socket, data: data)
    endpoint = listening()
    limits = FlowLimits(connect=0.05)
    async with relaying([endpoint.getsockname()], limits=limits) as worker:
        client = await connect(worker.address)
        assert await is_reset(client)
        (row,) = await worker.wait_ended()
        assert (row["close_reason"], row["close_side"]) == ("connect_timeout", "endpoint")
        assert worker.worker._relay.files.used == 0


async def test_an_endpoint_that_spoke_and_reset(style: HeaderStyle) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as worker:
        client = await connect(worker.address)
        inside = await accept(endpoint)
        await send_all(inside, b"go away")
        reset(inside)
        assert await is_reset(client)
        (row,) = await worker.wait_ended()
        assert row["close_reason"] == "endpoint_reset"
