"""Routes by server name: where flows go by their ClientHello, which arrives as it was sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from socket import MSG_OOB, SHUT_WR, SO_OOBINLINE, SOL_SOCKET
from time import monotonic
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.client_hello import HELLO_MAX, Hello
from proxy.core.expiry import FlowLimits
from proxy.core.proxy_protocol import HeaderStyle, write_header
from proxy.core.query import FlowQuery
from proxy.core.server_names import parse_pattern
from proxy.core.waiting import WaitLimits
from proxy.engine.specs import ListenerSpec, OpenListener, RoutesSpec
from proxy.engine.worker import Worker
from tests.core.hellos import (
    POST_QUANTUM,
    alpn_extension,
    message,
    name_extension,
    real_hello,
    records,
)
from tests.engine.lab import (
    PATIENCE,
    Lab,
    accept,
    change,
    closed_port,
    connect,
    is_refused,
    is_reset,
    listening,
    receive_all,
    receive_exactly,
    reset,
    send_all,
    upstream_spec,
)
from tests.engine.test_preface import LINE, LOOPBACK

HELLO = real_hello("www.example.org", ["h2"])
ROUTES = {"www.example.org": "web", ".example.org": "others", "/acme-tls/1": "acme"}


@dataclass
class Routed(Lab):
    """A worker with one listener and an endpoint for each of its upstreams."""

    endpoints: Mapping[str, SocketType]

    async def arrival(self, name: str) -> SocketType:
        """The next connection of an upstream's endpoint, while the others have none."""
        return await accept(self.endpoints[name])


@asynccontextmanager
async def routing(
    routes: Mapping[str, str] = ROUTES,
    time: float = 5.0,
    style: HeaderStyle | None = None,
    limits: FlowLimits | None = None,
    *,
    counted: bool = False,
    **parts: Any,
) -> AsyncIterator[Routed]:
    endpoints = {name: listening() for name in ("default", *routes.values())}
    upstreams = [upstream_spec(name, [each.getsockname()]) for name, each in endpoints.items()]
    upstreams[1:] = [replace(each, style=style) for each in upstreams[1:]]
    spec = ListenerSpec(
        name="lab",
        transport=Transport.TCP,
        upstream="default",
        limits=limits or FlowLimits(),
        routes=RoutesSpec(
            tuple((parse_pattern(text), name) for text, name in routes.items()), time, counted
        ),
        **parts,
    )
    worker = Worker(10_000, recent=10_000)
    socket = bind_socket(ListenAddress(Transport.TCP, "127.0.0.1", 0))
    await worker.apply(change(*upstreams, opened=(OpenListener(spec, (socket,)),)))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            try:
                yield Routed(worker, socket.getsockname(), Transport.TCP, endpoints)
            finally:
                worker.stop()
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("step", [1, 100, 10_000])
@pytest.mark.parametrize(
    ("name", "alpn", "upstream"),
    [
        ("www.example.org", ["h2"], "web"),
        ("WWW.EXAMPLE.ORG", [], "web"),
        ("a.b.example.org", [], "others"),
        ("example.com", ["acme-tls/1"], "acme"),
        ("example.com", ["h2"], "default"),
        (None, [], "default"),
    ],
)
async def test_the_name_decides(
    name: str | None, alpn: list[str], upstream: str, step: int
) -> None:
    hello = real_hello(name, alpn)
    async with routing() as lab:
        client = await connect(lab.address)
        for at in range(0, len(hello), step):
            await client.send(hello[at : at + step])
            await trio.lowlevel.checkpoint()
        inside = await lab.arrival(upstream)
        assert await receive_exactly(inside, len(hello)) == hello
        await send_all(inside, b"server hello")
        assert await receive_exactly(client, 12) == b"server hello"
        (row,) = await lab.live()
        assert row["upstream"] == upstream
        assert row["server_name"] == (name and name.lower())
        assert row["alpn"] == alpn
        assert row["state"] == "established"
        assert row["original"]["bytes"] == len(hello)


async def test_a_large_hello_in_many_records_and_segments() -> None:
    hello = records(message(POST_QUANTUM, POST_QUANTUM[:0], name_extension(b"www.example.org")), 97)
    assert len(hello) > 1300
    async with routing() as lab:
        client = await connect(lab.address)
        await client.send(hello[:1000])
        await lab.wait_live("connecting")
        await client.send(hello[1000:] + b"early data")
        inside = await lab.arrival("web")
        assert await receive_exactly(inside, len(hello) + 10) == hello + b"early data"


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"S", b"\x16\3\1\0\4\2\0\0\0", records(message(b"\0"))],
    ids=["http", "a byte", "no hello", "malformed"],
)
async def test_what_is_not_tls_goes_the_default_way_at_once(data: bytes) -> None:
    async with routing() as lab:
        client = await connect(lab.address)
        await client.send(data)
        inside = await lab.arrival("default")
        assert await receive_exactly(inside, len(data)) == data
        (row,) = await lab.live()
        assert row["server_name"] is row["alpn"] is None
        assert row["upstream"] == "default"


async def test_a_hello_that_is_too_long() -> None:
    data = records(b"\1\0\x3f\0" + bytes(HELLO_MAX), 50)[:HELLO_MAX]
    async with routing() as lab:
        client = await connect(lab.address)
        await send_all(client, data)
        inside = await lab.arrival("default")
        assert await receive_exactly(inside, len(data)) == data


@pytest.mark.parametrize("said", [b"", HELLO[:50]], ids=["nothing", "half"])
async def test_who_speaks_late_goes_the_default_way(said: bytes) -> None:
    async with routing(time=0.05) as lab:
        client = await connect(lab.address)
        if said:
            await client.send(said)
        inside = await lab.arrival("default")
        await send_all(inside, b"220 ready")
        assert await receive_exactly(client, 9) == b"220 ready"
        await client.send(HELLO[len(said) :])
        assert await receive_exactly(inside, len(HELLO)) == HELLO


async def test_the_clock_of_connecting_may_be_shorter() -> None:
    async with routing(limits=FlowLimits(connect=0.05)) as lab:
        await connect(lab.address)
        await lab.arrival("default")
        (row,) = await lab.live()
        assert row["state"] == "established"


async def test_both_clocks_may_strike_in_the_same_tick() -> None:
    """Then the flow goes its way once, and has one socket to one endpoint."""
    async with routing(time=0.15, limits=FlowLimits(connect=0.1)) as lab:
        client = await connect(lab.address)
        await lab.wait_live("connecting")
        began = monotonic()
        while monotonic() < began + 0.2:  # nobody else has a turn, as on a busy host
            pass
        await lab.arrival("default")
        await lab.wait_live("established")
        assert (await lab.counters())["endpoints"][0]["attempts"] == 1
        reset(client)
        await lab.wait_ended()
        assert not any(
            endpoint.flows for each in lab.worker._roster.upstreams for endpoint in each.endpoints
        )


@pytest.mark.parametrize("said", [b"", HELLO[:50], HELLO], ids=["nothing", "half", "all"])
async def test_a_client_that_has_ended_already(said: bytes) -> None:
    async with routing() as lab:
        client = await connect(lab.address)
        if said:
            await client.send(said)
        client.shutdown(SHUT_WR)
        inside = await lab.arrival("web" if said == HELLO else "default")
        assert await receive_all(inside) == said
        await send_all(inside, b"alert")
        inside.shutdown(SHUT_WR)
        assert await receive_all(client) == b"alert"
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "finished"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("www.example.org", ["www.example.org"]),
        ("*.example.org", ["www.example.org"]),
        (".example.org", ["www.example.org", "a.b.example.org"]),
        ("example.org", []),
    ],
)
async def test_flows_are_found_by_what_they_asked_for(asked: str, found: list[str]) -> None:
    async with routing() as lab:
        await greet(lab, "web", HELLO)
        await greet(lab, "others", real_hello("a.b.example.org", []))
        await greet(lab, "default", b"no hello")
        rows = (await lab.worker.flows(FlowQuery(server_name=asked)))["rows"]
        assert [row["server_name"] for row in rows] == found


@pytest.mark.parametrize(("name", "alpn"), [("a.b.example.org", ["h2"]), ("x.example.org", [])])
async def test_the_endpoint_is_told_what_the_client_asked_for(name: str, alpn: list[str]) -> None:
    style = HeaderStyle(2, checksum=True)
    async with routing(style=style) as lab:
        hello = real_hello(name, alpn)
        client = await connect(lab.address)
        await client.send(hello)
        inside = await lab.arrival("others")
        source, asked = client.getsockname(), Hello(name, tuple(alpn))
        header = write_header(style, source, lab.address, 1, hello=asked)
        assert await receive_exactly(inside, len(header) + len(hello)) == header + hello


async def took(lab: Lab) -> dict[str, int]:
    """How many flows took each route, as it is told."""
    return {row["route"]: row["flows"] for row in (await lab.counters())["routes"]}


async def greet(lab: Routed, upstream: str, *hello: bytes) -> None:
    """A flow that comes to an upstream by what it says first."""
    client = await connect(lab.address)
    for part in hello:
        await client.send(part)
    await lab.arrival(upstream)


async def test_flows_are_counted_by_the_routes_that_are_configured_alone() -> None:
    async with routing(counted=True) as lab:
        assert await took(lab) == dict.fromkeys((*ROUTES, "*"), 0)
        await greet(lab, "web", HELLO)
        for name in ("a.example.org", "b.example.org", "c.b.example.org"):
            await greet(lab, "others", real_hello(name, []))
        await greet(lab, "default", real_hello("elsewhere.example.com", []))
        await greet(lab, "default", b"no hello")
        counts = {"www.example.org": 1, ".example.org": 3, "/acme-tls/1": 0, "*": 2}
        assert await took(lab) == counts


async def test_routes_are_not_counted_unless_that_is_wanted() -> None:
    async with routing() as lab:
        await greet(lab, "web", HELLO)
        assert await took(lab) == {}


async def test_a_route_that_comes_again_goes_on_counting() -> None:
    async with routing(counted=True) as lab:
        await greet(lab, "web", HELLO)
        upstreams = [route.spec for route in lab.worker._roster.upstreams._routes.values()]
        spec = lab.worker._roster.specs["lab"]
        assert spec.routes is not None
        fewer = replace(spec, routes=spec.routes._replace(upstreams=spec.routes.upstreams[1:]))
        await lab.worker.apply(change(*upstreams, changed=(fewer,)))
        await greet(lab, "others", HELLO)
        assert await took(lab) == {".example.org": 1, "/acme-tls/1": 0, "*": 0}
        await lab.worker.apply(change(*upstreams, changed=(spec,)))
        await greet(lab, "web", HELLO)
        assert (await took(lab))["www.example.org"] == 2


async def test_a_client_that_has_left_does_not_wait_for_an_endpoint() -> None:
    async with routing() as lab:
        roster = lab.worker._roster
        specs = [route.spec for route in roster.upstreams._routes.values()]
        (endpoint,) = specs[0].endpoints
        waits = WaitLimits(3600.0, 10)
        full = replace(specs[0], endpoints=(endpoint._replace(ceiling=1),), waiting=waits)
        await lab.worker.apply(change(full, *specs[1:]))
        first = await connect(lab.address)
        await first.send(b"no hello")
        await lab.arrival("default")
        (await connect(lab.address)).close()
        while not (ended := await lab.ended()):
            await trio.sleep(0.002)
        assert ended[0]["close_reason"] == "client_reset"
        assert not next(iter(roster.upstreams)).queue


async def test_a_client_that_resets() -> None:
    async with routing() as lab:
        client = await connect(lab.address)
        await client.send(HELLO[:50])
        await lab.wait_live("connecting")
        reset(client)
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "client_reset"
        assert lab.worker._relay.files.used == 0


async def test_urgent_data_behind_the_hello() -> None:
    async with routing() as lab:
        client = await connect(lab.address)
        await client.send(HELLO[:100])
        await lab.wait_live("connecting")
        await client.send(HELLO[100:] + b"ab")
        await client.send(b"!", MSG_OOB)
        await client.send(b"cd")
        inside = await lab.arrival("web")
        inside.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
        assert await receive_exactly(inside, len(HELLO) + 5) == HELLO + b"ab!cd"


async def test_who_is_silent_counts_as_a_flow() -> None:
    async with routing(admission=AdmissionLimits(source_flows=1)) as lab:
        await connect(lab.address)
        await lab.wait_live("connecting")
        assert await is_refused(lab.address)


async def test_a_silent_flow_can_be_killed() -> None:
    async with routing() as lab:
        client = await connect(lab.address)
        await lab.wait_live("connecting")
        assert lab.worker.stop() == 1
        assert await is_reset(client)
        (row,) = await lab.ended()
        assert (row["close_reason"], row["upstream"]) == ("drained", "default")
        assert lab.worker._relay.files.used == 0


async def test_an_upstream_that_nobody_serves_is_the_one_in_the_table() -> None:
    async with routing() as lab:
        (endpoint,) = lab.worker._roster.upstreams["web"].upstream.endpoints
        endpoint.address = closed_port()
        client = await connect(lab.address)
        await client.send(HELLO)
        assert await is_reset(client)
        (row,) = await lab.wait_ended()
        assert (row["upstream"], row["close_reason"]) == ("web", "connect_refused")
        assert row["server_name"] == "www.example.org"


async def test_headers_in_and_out_and_a_hello_between() -> None:
    """Each upstream has its own style; the default has none."""
    async with routing(style=HeaderStyle(1), proxied=LOOPBACK) as lab:
        client = await connect(lab.address)
        await client.send(LINE + HELLO)
        inside = await lab.arrival("web")
        assert await receive_exactly(inside, len(LINE) + len(HELLO)) == LINE + HELLO
        other = await connect(lab.address)
        await other.send(write_header(HeaderStyle(1), ("192.0.2.9", 1), lab.address, 0) + b"x")
        inside = await lab.arrival("default")
        assert await receive_exactly(inside, 1) == b"x"
        rows = await lab.live()
        assert [row["client"]["remote"] for row in rows] == ["192.0.2.1:56324", "192.0.2.9:1"]
        assert [row["server_name"] for row in rows] == ["www.example.org", None]


async def test_protocols_may_decide_between_upstreams_of_one_name() -> None:
    async with routing({"a.example": "web", "a.example/h2": "others"}) as lab:
        for alpn, upstream in ((b"h2", "others"), (b"h3", "web")):
            client = await connect(lab.address)
            await client.send(records(message(name_extension(b"a.example"), alpn_extension(alpn))))
            await lab.arrival(upstream)
