"""Datagram flows of every kind change their worker: each lives on exactly as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from socket import SO_RCVBUF, SOCK_DGRAM, SOL_SOCKET
from socket import socket as Socket
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.expiry import FlowLimits
from proxy.core.proxy_protocol import HeaderStyle
from proxy.engine.datagram_options import DatagramOptions
from proxy.engine.drops import kernel_drops
from proxy.engine.handover.transfer import Bequeather, Moving, Papers
from proxy.engine.limited import LimitedFlow
from proxy.engine.specs import LeaveOrder, OpenListener
from proxy.engine.trains import TrainReader
from tests.engine.heirs import again, no_samples, nothing_left, successor_of
from tests.engine.lab import UPSTREAMS, Lab, change, datagram_socket, relaying
from tests.engine.test_datagram import client_of, exchange
from tests.engine.test_declared import CLIENT, EDGE, OTHER, block, udp
from tests.engine.test_identified import expected, use
from tests.engine.test_limited import bandwidth
from tests.engine.test_orders import matched, order
from tests.engine.test_trains import _until_read_by as until_read_by
from tests.engine.test_trains import cut, numbered, reader_of, send_train, the_flow
from tests.engine.test_unix import ME, bound_client, unix, unix_client, unix_socket
from tests.engine.test_unix import exchange as unix_exchange
from tests.engine.test_unix import relaying as unix_relaying

UDP = Transport.UDP


@pytest.fixture(autouse=True)
def _no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    no_samples(monkeypatch)


async def end_all(lab: Lab) -> None:
    """Have all flows end, and see that the books are those of a worker without any."""
    lab.worker.stop()
    assert nothing_left(lab)


@pytest.mark.parametrize(
    ("host", "reach"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.2"),
        ("::1", "::1"),
        ("::", "::1"),
    ],
)
async def test_answers_leave_from_the_address_that_was_hit(host: str, reach: str) -> None:
    local = "::1" if ":" in host else "127.0.0.1"
    endpoint = datagram_socket(local)
    async with relaying([endpoint.getsockname()], UDP, host=host) as lab:
        client = await client_of(lab, reach)
        outbound = await exchange(client, endpoint, b"one")
        before = await lab.live()
        async with successor_of(lab) as (heir, left):
            assert left.handed == 1
            assert await heir.live() == before
            await endpoint.sendto(b"unasked", outbound)
            assert await client.recv(100) == b"unasked"
            assert await exchange(client, endpoint, b"two") == outbound
            assert len(await heir.live()) == 1
            await end_all(heir)
        assert nothing_left(lab)


@pytest.mark.parametrize("front", ["udp", "unixgram"])
@pytest.mark.parametrize("back", ["udp", "unixgram"])
async def test_unix_sockets_on_either_side(front: str, back: str, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    endpoint = datagram_socket() if back == "udp" else await unix_socket(SOCK_DGRAM, origin)
    target = endpoint.getsockname() if back == "udp" else unix(origin)
    url = "udp://127.0.0.1:0" if front == "udp" else f"unixgram://{tmp_path}/door"
    async with unix_relaying(url, [target], admission=AdmissionLimits(source_flows=1)) as lab:
        client = await (client_of(lab) if front == "udp" else bound_client(tmp_path))
        outbound = await unix_exchange(client, endpoint, b"one")
        before = await lab.live()
        assert before[0]["credentials"] == (None if front == "udp" else ME)
        async with successor_of(lab) as (heir, _):
            assert await heir.live() == before
            assert await unix_exchange(client, endpoint, b"two" * 9000) == outbound
            if front == "unixgram":  # of the same user
                await (await bound_client(tmp_path, "second")).send(b"x")
            else:
                await (await client_of(lab)).send(b"x")
            await heir.wait_counter(lambda read: read["listeners"][0]["refused"]["source_flows"], 1)
            assert len(await heir.live()) == 1
            await end_all(heir)
        assert nothing_left(lab)


async def test_an_endpoint_at_a_unix_socket_is_found_again(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    endpoint = await unix_socket(SOCK_DGRAM, origin)
    async with unix_relaying("udp://127.0.0.1:0", [unix(origin)]) as lab:
        client = await client_of(lab)
        outbound = await unix_exchange(client, endpoint, b"one")
        async with successor_of(lab):
            endpoint.close()
            origin.unlink()
            endpoint = await unix_socket(SOCK_DGRAM, origin)
            assert await unix_exchange(client, endpoint, b"two") == outbound


async def test_clients_without_a_name_still_share_a_flow(tmp_path: Path) -> None:
    endpoint = datagram_socket()
    async with unix_relaying(f"unixgram://{tmp_path}/door", [endpoint.getsockname()]) as lab:
        client = await unix_client(tmp_path / "door", SOCK_DGRAM)
        await client.send(b"log line")
        _, outbound = await endpoint.recvfrom(100)
        async with successor_of(lab) as (heir, _):
            await (await unix_client(tmp_path / "door", SOCK_DGRAM)).send(b"another")
            assert await endpoint.recvfrom(100) == (b"another", outbound)
            await endpoint.sendto(b"answer", outbound)
            await heir.wait_counter(lambda read: read["listeners"][0]["dropped"]["unnamed"], 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_who_a_proxy_declared_is_known_again(host: str) -> None:
    endpoint, peer, other = datagram_socket(), datagram_socket(), datagram_socket()
    async with udp([endpoint.getsockname()], host) as lab:
        address = "127.0.0.1", lab.address[1]
        outbound = []
        for client in (CLIENT, OTHER):
            await peer.sendto(block(client) + b"one", address)
            data, sender = await endpoint.recvfrom(100)
            assert data == b"one"
            outbound.append(sender)
        before = await lab.live()
        async with successor_of(lab) as (heir, left):
            assert left.handed == 2
            assert await heir.live() == before
            await endpoint.sendto(b"answer", outbound[1])
            assert await peer.recv(100) == b"answer"
            await other.sendto(block(CLIENT) + b"two", address)  # the proxy has another port now
            assert await endpoint.recvfrom(100) == (b"two", outbound[0])
            await endpoint.sendto(b"answer", outbound[0])
            assert await other.recv(100) == b"answer"
            assert len(await heir.live()) == 2
            assert (await heir.live())[0]["client"]["local"] == "{}:{}".format(*EDGE)
            await end_all(heir)
        assert nothing_left(lab)


@pytest.mark.parametrize("back", ["udp", "unixgram"])
async def test_the_header_before_each_datagram_stays_the_same(
    back: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = use(HeaderStyle(2), monkeypatch)
    origin = tmp_path / "origin"
    endpoint = datagram_socket() if back == "udp" else await unix_socket(SOCK_DGRAM, origin)
    target = endpoint.getsockname() if back == "udp" else unix(origin)
    async with relaying([target], UDP) as lab:
        client = await client_of(lab)
        await client.send(b"one")
        first, outbound = await endpoint.recvfrom(1000)
        header = first.removesuffix(b"one")
        assert len(header) > 16
        assert header != expected(style, client.getsockname(), lab.address)  # that is of streams
        async with successor_of(lab) as (heir, _):
            await client.send(b"two")
            assert await endpoint.recvfrom(1000) == (header + b"two", outbound)
            await endpoint.sendto(b"answer", outbound)
            assert await client.recv(100) == b"answer"
            await end_all(heir)


async def test_a_stranger_gets_no_more_than_before() -> None:
    endpoint = datagram_socket()
    limits = FlowLimits(amplification=3.0)
    async with relaying([endpoint.getsockname()], UDP, limits=limits) as lab:
        client = await client_of(lab)
        await client.send(b"x" * 10)
        _, outbound = await endpoint.recvfrom(100)
        await endpoint.sendto(b"y" * 20, outbound)
        assert await client.recv(100) == b"y" * 20
        async with successor_of(lab) as (heir, _):
            await endpoint.sendto(b"y" * 20, outbound)
            await heir.wait_counter(lambda read: read["listeners"][0]["dropped"]["limited"], 1)
            await client.send(b"x")  # it is no stranger any more
            await endpoint.recvfrom(100)
            async with successor_of(heir) as (third, _):
                await endpoint.sendto(b"y" * 1000, outbound)
                assert await client.recv(2000) == b"y" * 1000
                await end_all(third)


async def test_a_rate_of_datagrams_and_a_byte_budget_go_on() -> None:
    endpoint = datagram_socket()
    limits = FlowLimits(datagram_rate=0.01, bytes=10)
    async with relaying([endpoint.getsockname()], UDP, limits=limits) as lab:
        client = await client_of(lab)
        burst = 0
        for _ in range(3):
            await client.send(b"x")
            with trio.move_on_after(0.2):
                await endpoint.recv(10)
                burst += 1
        assert burst < 3
        async with successor_of(lab) as (heir, _):
            await client.send(b"x")
            await heir.wait_counter(lambda read: read["listeners"][0]["dropped"]["limited"], 1)
            await client.send(b"x" * 10)
            (row,) = await heir.wait_ended()
            assert row["close_reason"] == "byte_budget"
            assert nothing_left(heir)
        assert nothing_left(lab)


async def test_bandwidth_is_shared_by_those_who_came_too() -> None:
    endpoint = datagram_socket()
    limits = bandwidth("flow", 1000)
    async with relaying([endpoint.getsockname()], UDP, bandwidth=limits) as lab:
        client = await client_of(lab)
        await exchange(client, endpoint, b"x" * 600)
        async with successor_of(lab) as (heir, _):
            flow = await the_flow(heir)
            assert isinstance(flow, LimitedFlow)
            for _ in range(2):
                await client.send(b"x" * 600)
            await heir.wait_counter(lambda read: read["listeners"][0]["dropped"]["limited"], 1)
            await end_all(heir)
        assert nothing_left(lab)


async def test_an_order_for_a_flow_holds_at_the_heir() -> None:
    endpoint = datagram_socket()
    given = order(bytes=10)
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        await exchange(client, endpoint, b"four")
        await lab.worker.limit([given])
        async with successor_of(lab, orders=[given]) as (heir, _):
            assert await matched(heir) == {1: 1}
            await client.send(b"abc")
            (row,) = await heir.wait_ended()
            assert row["close_reason"] == "byte_budget"
            assert nothing_left(heir)
        assert nothing_left(lab)


async def test_a_spent_flow_is_not_found_by_its_client() -> None:
    endpoint = datagram_socket()
    options = DatagramOptions(datagrams=1, responses=1)
    async with relaying([endpoint.getsockname()], UDP, datagrams=options) as lab:
        client = await client_of(lab)
        await client.send(b"one")
        _, outbound = await endpoint.recvfrom(100)
        async with successor_of(lab) as (heir, _):
            await client.send(b"two")
            data, second = await endpoint.recvfrom(100)
            assert (data, second != outbound) == (b"two", True)
            await endpoint.sendto(b"answer", outbound)
            assert await client.recv(100) == b"answer"
            await endpoint.sendto(b"another", second)
            assert await client.recv(100) == b"another"
            rows = await heir.wait_ended(2)
            assert {row["close_reason"] for row in rows} == {"finished"}
            assert nothing_left(heir)
        assert nothing_left(lab)


async def test_a_flow_that_is_half_spent_is_found() -> None:
    endpoint = datagram_socket()
    options = DatagramOptions(datagrams=2)
    async with relaying([endpoint.getsockname()], UDP, datagrams=options) as lab:
        client = await client_of(lab)
        outbound = await exchange(client, endpoint, b"one")
        async with successor_of(lab):
            assert await exchange(client, endpoint, b"two") == outbound
            assert await exchange(client, endpoint, b"three") != outbound


@pytest.mark.parametrize("limits", [{}, {"bandwidth": bandwidth("flow", 3000, "reply")}])
async def test_a_flow_that_is_read_by_trains(limits: dict[str, Any]) -> None:
    """Where the heir looks at each datagram, none slips through in a train."""
    endpoint, client = datagram_socket(), datagram_socket()
    client.setsockopt(SOL_SOCKET, SO_RCVBUF, 1 << 20)
    async with relaying([endpoint.getsockname()], UDP) as lab:
        await client.connect(lab.address)
        outbound = await exchange(client, endpoint, b"one")
        flow = await the_flow(lab)
        await until_read_by(TrainReader, lab, flow, endpoint, client, outbound)
        async with successor_of(lab, **limits) as (heir, _):
            there = await the_flow(heir)
            assert isinstance(reader_of(heir, there), TrainReader) is not bool(limits)
            train = numbered(7, 1000, 1000)
            await send_train(endpoint, train, 1000, outbound)
            if limits:
                await heir.wait_counter(lambda read: read["listeners"][0]["dropped"]["limited"], 4)
            else:
                assert [await client.recv(70000) for _ in range(7)] == cut(train, 1000)
            await end_all(heir)


async def test_a_flow_of_a_former_socket_stays_where_it_is() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        outbound = await exchange(client, endpoint, b"one")
        other = datagram_socket()
        moved = lab.worker._roster.specs["lab"]
        socket = Socket(fileno=other._sock.dup().detach())
        opened = OpenListener(moved, (socket,))
        await lab.worker.apply(change(*UPSTREAMS[lab.worker].values(), opened=(opened,)))
        second = datagram_socket()
        await second.connect(other.getsockname())
        await exchange(second, endpoint, b"two")
        async with successor_of(lab, patience=0.1) as (heir, left):
            assert left.handed == 1
            assert await exchange(client, endpoint, b"three") == outbound
            await exchange(second, endpoint, b"four")
            assert [row["id"] for row in await lab.live()] == [1]
            assert [row["id"] for row in await heir.live()] == [2]


@pytest.mark.parametrize("order", [None, {}], ids=["goes", "stays"])
async def test_what_the_kernel_drops_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, order: LeaveOrder | None
) -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        await exchange(client, endpoint, b"one")
        socket = lab.listener.socket
        socket.setsockopt(SOL_SOCKET, SO_RCVBUF, 2048)
        flood(client)  # at the listener, whose worker has no turn yet
        assert kernel_drops(socket) > 0
        dup = again(socket)
        give = Bequeather.give_datagrams

        async def in_a_flood(self: Bequeather, flows: Sequence[Moving], papers: Papers) -> None:
            before = kernel_drops(dup)
            flood(client)
            assert kernel_drops(dup) > before
            await give(self, flows, papers)

        monkeypatch.setattr(Bequeather, "give_datagrams", in_a_flood)
        async with successor_of(lab, order) as (heir, _):
            dropped = await kernel_dropped(lab) + await kernel_dropped(heir)
            assert dropped == kernel_drops(dup)
            flood(client)
            assert kernel_drops(dup) > dropped
            dropped = await kernel_dropped(lab) + await kernel_dropped(heir)
            assert dropped == kernel_drops(dup)
        dup.close()


def flood(client: SocketType) -> None:
    for _ in range(50):
        client._sock.send(b"x" * 1000)


async def kernel_dropped(lab: Lab) -> int:
    (row,) = (await lab.counters())["listeners"]
    return row["dropped"]["kernel"]
