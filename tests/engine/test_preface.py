"""PROXY protocol, in: whom a trusted peer declares is the client; without a header nobody is."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from socket import MSG_OOB, SHUT_WR, SO_OOBINLINE, SOL_SOCKET
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.access import AccessList
from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.proxy_block import AUTHORITY, LOCAL_BLOCK, NOOP, write_block
from proxy.core.proxy_header import Tlv
from proxy.core.proxy_protocol import HeaderStyle, write_header
from proxy.core.unix import UnixAddress
from proxy.core.waiting import WaitLimits
from proxy.engine import preface
from proxy.engine.preface import ProxyTerms
from tests.engine.lab import (
    UPSTREAMS,
    Lab,
    accept,
    change,
    connect,
    is_refused,
    is_reset,
    listening,
    open_listener,
    pair,
    receive_all,
    receive_exactly,
    relaying,
    reset,
    send_all,
)

LOOPBACK = ProxyTerms(
    AccessList([ipaddress.ip_network("127.0.0.1/32")], (), others=False), False, 5
)
CLIENT = ("192.0.2.1", 56324)
EDGE = ("198.51.100.2", 443)
LINE = write_header(HeaderStyle(1), CLIENT, EDGE, 0)
BLOCK = write_block(
    CLIENT, EDGE, tlvs=(Tlv(NOOP, b""), Tlv(AUTHORITY, b"a.example")), checksum=True
)


@asynccontextmanager
async def proxied(
    endpoint: SocketType, proxied: ProxyTerms = LOOPBACK, **parts: Any
) -> AsyncIterator[Lab]:
    async with relaying([endpoint.getsockname()], proxied=proxied, **parts) as lab:
        yield lab


def waiting(lab: Lab) -> int:
    """How many are waited for."""
    room = lab.worker._roster.terms["lab"].prefaces
    assert room is not None
    return len(room)


async def refused(lab: Lab) -> dict[str, int]:
    (listener,) = (await lab.counters())["listeners"]
    return {word: count for word, count in listener["refused"].items() if count}


async def until_refused(lab: Lab, **counts: int) -> None:
    while await refused(lab) != counts:
        await trio.sleep(0.002)


@pytest.mark.parametrize("header", [LINE, BLOCK], ids=["v1", "v2"])
@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_the_declared_client_has_the_flow(header: bytes, step: int) -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab:
        client = await connect(lab.address)
        data = header + b"GET /"
        for at in range(0, len(data), step):
            await client.send(data[at : at + step])
            await trio.lowlevel.checkpoint()
        inside = await accept(endpoint)
        assert await receive_exactly(inside, 5) == b"GET /"
        await send_all(inside, b"200")
        assert await receive_exactly(client, 3) == b"200"
        (row,) = await lab.live()
        assert row["client"] == {
            "local": "198.51.100.2:443",
            "remote": "192.0.2.1:56324",
            "via": {
                "local": "{}:{}".format(*lab.address),
                "remote": "{}:{}".format(*client.getsockname()),
            },
        }
        assert row["source"] == "192.0.2.1/32"
        authority = {"type": 2, "name": "authority", "text": "a.example", "hex": b"a.example".hex()}
        assert row["tlvs"] == ([authority] if header is BLOCK else [])
        assert row["original"]["bytes"] == 5
        assert lab.worker._relay.files.used == 2


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        LOCAL_BLOCK,
        write_block(CLIENT, UnixAddress("")),
        write_block(UnixAddress("/run/x"), UnixAddress("/run/y")),
    ],
    ids=["unknown", "local", "unspecified", "unix"],
)
async def test_who_speaks_for_itself_is_the_client(header: bytes) -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab:
        client = await connect(lab.address)
        await client.send(header + b"x")
        await receive_exactly(await accept(endpoint), 1)
        (row,) = await lab.live()
        assert row["client"]["remote"] == "{}:{}".format(*client.getsockname())
        assert row["client"]["via"] is not None


async def test_no_header_is_looked_for_from_others() -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab:
        client = await connect(lab.address, "127.0.0.2")
        await client.send(LINE)
        assert await receive_exactly(await accept(endpoint), len(LINE)) == LINE
        (row,) = await lab.live()
        assert row["client"]["remote"].startswith("127.0.0.2:")
        assert row["client"]["via"] is row["tlvs"] is None


async def test_others_are_refused_where_nobody_comes_by_himself() -> None:
    async with proxied(listening(), LOOPBACK._replace(alone=True)) as lab:
        assert await is_refused(lab.address, "127.0.0.2")
        assert await refused(lab) == {"access": 1}


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"PROXY TCP4 x\r\n", BLOCK[:-1] + b"?"])
async def test_a_wrong_header_is_refused_and_reaches_nobody(data: bytes) -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab:
        client = await connect(lab.address)
        await client.send(data)
        assert await is_reset(client)
        assert await refused(lab) == {"bad_header": 1}
        assert lab.worker._relay.files.used == waiting(lab) == 0
        assert await lab.ended() == []
        with trio.move_on_after(0.02):
            await accept(endpoint)
            raise AssertionError("it was connected to the endpoint")


@pytest.mark.parametrize("end", ["fin", "fin at once", "reset"])
async def test_who_ends_before_its_header_is_refused(end: str) -> None:
    async with proxied(listening(), LOOPBACK._replace(time=60.0)) as lab:
        client = await connect(lab.address)
        if end != "fin at once":
            await client.send(LINE[:20])
            while not waiting(lab):
                await trio.sleep(0.002)
        if end == "reset":
            reset(client)
        else:
            client.shutdown(SHUT_WR)
            assert await is_reset(client)
        await until_refused(lab, bad_header=1)
        assert lab.worker._relay.files.used == waiting(lab) == 0


async def test_a_header_has_its_time() -> None:
    async with proxied(listening(), LOOPBACK._replace(time=0.05)) as lab:
        client = await connect(lab.address)
        await client.send(LINE[:-1])
        assert await is_reset(client)
        await until_refused(lab, bad_header=1)


async def test_of_too_many_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preface, "CROWD", 2)
    endpoint = listening()
    async with proxied(endpoint) as lab:
        clients = [await connect(lab.address) for _ in range(3)]
        assert await is_reset(clients[0])
        assert waiting(lab) == 2
        await clients[1].send(LINE + b"x")
        await receive_exactly(await accept(endpoint), 1)
        assert await refused(lab) == {"bad_header": 1}


async def test_the_end_of_the_stream_may_come_with_the_header() -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab:
        client = await connect(lab.address)
        await client.send(LINE + b"all")
        client.shutdown(SHUT_WR)
        inside = await accept(endpoint)
        assert await receive_all(inside) == b"all"
        await send_all(inside, b"answer")
        inside.shutdown(SHUT_WR)
        assert await receive_all(client) == b"answer"
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "finished"


async def test_urgent_data_may_follow_the_header() -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab:
        client = await connect(lab.address)
        await client.send(LINE + b"ab")
        await client.send(b"!", MSG_OOB)
        await client.send(b"cd")
        inside = await accept(endpoint)
        inside.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
        assert await receive_exactly(inside, 5) == b"ab!cd"


async def test_ceilings_hold_for_declared_clients() -> None:
    endpoint = listening()
    limits = AdmissionLimits(source_flows=1)
    async with proxied(endpoint, admission=limits) as lab:
        first = await connect(lab.address)
        await first.send(LINE)
        await accept(endpoint)
        second = await connect(lab.address)
        await second.send(LINE)
        assert await is_reset(second)
        other = await connect(lab.address)
        await other.send(write_header(HeaderStyle(1), ("192.0.2.9", 1), EDGE, 0))
        await accept(endpoint)
        assert await refused(lab) == {"source_flows": 1}


async def test_access_is_that_of_the_declared_client() -> None:
    access = AccessList([], [ipaddress.ip_network("192.0.2.0/24")])
    async with proxied(listening(), access=access) as lab:
        client = await connect(lab.address)
        await client.send(LINE)
        assert await is_reset(client)
        assert await refused(lab) == {"access": 1}


async def test_a_declared_client_may_wait_to_be_admitted() -> None:
    endpoint = listening()
    parts = {"admission": AdmissionLimits(flows=1), "waiting": WaitLimits(5.0, 10)}
    async with proxied(endpoint, **parts) as lab:
        first = await connect(lab.address)
        await first.send(LINE)
        inside = await accept(endpoint)
        second = await connect(lab.address)
        await second.send(write_header(HeaderStyle(1), ("192.0.2.9", 1), EDGE, 0) + b"late")
        while not (await lab.counters())["listeners"][0]["waiting"]:
            await trio.sleep(0.002)
        for end in (first, inside):
            end.close()
        assert await receive_exactly(await accept(endpoint), 4) == b"late"
        (row,) = await lab.live()
        assert row["client"]["remote"] == "192.0.2.9:1"
        assert row["client"]["via"] is not None


async def test_who_waits_when_the_listener_closes_is_refused() -> None:
    async with proxied(listening()) as lab:
        client = await connect(lab.address)
        while not waiting(lab):
            await trio.sleep(0.002)
        lab.worker._roster.retire("lab", 0.0)
        assert await is_reset(client)
        assert await refused(lab) == {"draining": 1}


async def test_who_waits_since_before_a_reload_does_not_enter_a_listener_that_is_closed() -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab:
        client = await connect(lab.address)
        while not waiting(lab):
            await trio.sleep(0.002)
        spec = replace(lab.worker._roster.specs["lab"], proxied=None)
        await lab.worker.apply(change(*UPSTREAMS[lab.worker].values(), changed=(spec,)))
        lab.worker._roster.retire("lab", trio.current_time())
        await client.send(LINE)
        assert await is_reset(client)
        assert await refused(lab) == {"draining": 1}


async def test_a_proxy_that_is_ourselves_is_refused() -> None:
    """A flow that leaves for its own listener, which trusts it, would be declared for ever."""
    async with proxied(listening()) as lab:
        upstream = lab.worker._roster.upstreams["lab"].upstream
        upstream.endpoints[0].address = lab.address
        client = await connect(lab.address)
        await client.send(LINE)
        assert await is_reset(client)
        assert await refused(lab) == {"loop": 1}


async def test_a_reload_may_begin_and_end_it() -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab:
        spec = lab.worker._roster.specs["lab"]
        waits = await connect(lab.address)
        while not waiting(lab):
            await trio.sleep(0.002)
        for terms, said in ((None, LINE + b"x"), (LOOPBACK, b"x")):
            changed = (replace(spec, proxied=terms),)
            await lab.worker.apply(change(*UPSTREAMS[lab.worker].values(), changed=changed))
            client = await connect(lab.address)
            await client.send(LINE + b"x")
            assert await receive_exactly(await accept(endpoint), len(said)) == said
        await waits.send(LINE + b"late")
        assert await receive_exactly(await accept(endpoint), 4) == b"late"


async def test_a_circle_through_a_listener_that_believes_us_ends() -> None:
    """Its flows show as those of the client, who is none of ours."""
    async with proxied(listening(), LOOPBACK._replace(time=60.0)) as lab:
        socket = bind_socket(ListenAddress(Transport.TCP, "127.0.0.1", 0))
        await open_listener(lab.worker, "first", socket, [lab.address])
        routes = lab.worker._roster.upstreams
        routes["lab"].upstream.endpoints[0].address = socket.getsockname()
        terms = lab.worker._roster.terms
        (first,) = lab.worker._roster._listeners["first"]
        first.terms = replace(terms["first"], style=HeaderStyle(1))
        client = await connect(socket.getsockname())
        assert await is_reset(client)
        assert len(await lab.wait_ended(2)) == 2
        counters = (await lab.counters())["listeners"]
        assert sum(each["refused"]["loop"] for each in counters) == 1


async def test_other_listeners_pay_nothing() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        await pair(lab, endpoint)
        (flow,) = lab.worker._relay.table
        assert type(flow).__name__ == "StreamFlow"
