"""Trains of datagrams: taken as one, passed on as one, and never mistaken for one datagram."""

from __future__ import annotations

import struct
from socket import AF_INET, IPPROTO_UDP, SO_RCVBUF, SOL_SOCKET

import pytest
import trio
from trio.socket import SocketType

from proxy.core.address import Transport
from proxy.engine import datagram_listener, runs
from proxy.engine.datagram import DatagramFlow
from proxy.engine.mmsg import DatagramBatch
from proxy.engine.replies import BUSY_ROUNDS
from proxy.engine.runs import UDP_SEGMENT, can_segment
from proxy.engine.trains import LONE_TURNS, TrainReader
from tests.engine.lab import Lab, datagram_socket, relaying
from tests.engine.test_datagram import client_of, exchange

UDP = Transport.UDP

pytestmark = pytest.mark.skipif(not can_segment(), reason="this kernel has no UDP_SEGMENT")


async def send_train(sender: SocketType, data: bytes, segment: int, *to: object) -> None:
    control = [(IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", segment))]
    await sender.sendmsg([data], control, 0, *to)


def cut(data: bytes, segment: int) -> list[bytes]:
    return [data[start : start + segment] for start in range(0, len(data), segment)]


def numbered(count: int, size: int, last: int) -> bytes:
    """A train whose datagrams can be told apart."""
    parts = [bytes([number]) * size for number in range(count)]
    return b"".join(parts)[: (count - 1) * size + last]


async def the_flow(lab: Lab) -> DatagramFlow:
    (row,) = await lab.live()
    flow = lab.worker._relay.table.get(row["id"])
    assert isinstance(flow, DatagramFlow)
    return flow


def reader_of(lab: Lab, flow: DatagramFlow) -> object:
    return lab.worker._relay.pump._handlers[flow.socket.fileno()]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize(("size", "last"), [(1200, 1200), (1200, 7), (1, 1), (9000, 8999)])
async def test_a_train_of_a_client_arrives_datagram_by_datagram(
    host: str, size: int, last: int
) -> None:
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    endpoint, client = datagram_socket(local), datagram_socket(local)
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 1 << 20)
    train = numbered(7, size, last)
    async with relaying([endpoint.getsockname()], UDP, host=host) as lab:
        await client.connect((local, lab.address[1]))
        await client.send(b"first")
        assert await endpoint.recv(100) == b"first"
        for _ in range(3):
            await send_train(client, train, size)
        assert [await endpoint.recv(70000) for _ in range(21)] == 3 * cut(train, size)
        (row,) = await lab.live()
        assert row["original"] == {"bytes": 5 + 3 * len(train), "packets": 22}
        counters = (await lab.counters())["listeners"][0]
        assert counters["original"]["packets_sent"] == 22
        assert not any(counters["dropped"].values())


async def test_a_train_that_cannot_go_on_as_one_goes_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "_sent_at_once", lambda *_: False)
    endpoint, client = datagram_socket(), datagram_socket()
    train = numbered(5, 100, 40)
    async with relaying([endpoint.getsockname()], UDP) as lab:
        await client.connect(lab.address)
        await send_train(client, train, 100)
        assert [await endpoint.recv(1000) for _ in range(5)] == cut(train, 100)
        (row,) = await lab.live()
        assert row["original"] == {"bytes": len(train), "packets": 5}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
async def test_an_endpoint_that_sends_much_is_read_in_trains(host: str) -> None:
    local = {"0.0.0.0": "127.0.0.1"}.get(host, host)
    endpoint, client = datagram_socket(local), datagram_socket(local)
    client.setsockopt(SOL_SOCKET, SO_RCVBUF, 1 << 20)
    async with relaying([endpoint.getsockname()], UDP, host=host) as lab:
        await client.connect((local, lab.address[1]))
        await client.send(b"more")
        _, outbound = await endpoint.recvfrom(100)
        flow = await the_flow(lab)
        got = await _until_read_by(TrainReader, lab, flow, endpoint, client, outbound)
        train = numbered(9, 1000, 10)
        for _ in range(4):
            await send_train(endpoint, train, 1000, outbound)
        assert [await client.recv(70000) for _ in range(36)] == 4 * cut(train, 1000)
        (row,) = await lab.live()
        assert row["reply"]["packets"] == got + 36
        counters = (await lab.counters())["listeners"][0]
        assert counters["reply"]["packets_sent"] == got + 36
        await _until_read_by(DatagramFlow, lab, flow, endpoint, client, outbound)


async def _until_read_by(
    kind: type,
    lab: Lab,
    flow: DatagramFlow,
    endpoint: SocketType,
    client: SocketType,
    outbound: object,
) -> int:
    """Let replies come, in bursts or one by one, until the flow is read that way."""
    burst = 64 if kind is TrainReader else 1
    count = 0
    while not isinstance(reader_of(lab, flow), kind):
        for _ in range(burst):
            await endpoint.sendto(b"reply", outbound)
        for _ in range(burst):
            assert await client.recv(100) == b"reply"
        count += burst
        assert count < 100 * LONE_TURNS
    return count


async def test_a_train_of_replies_that_cannot_go_as_one_goes_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send = DatagramBatch.send

    def refuse_trains(batch: DatagramBatch, fd: int, first: int, count: int) -> int:
        if (
            UDP_SEGMENT.to_bytes(4, "little") in bytes(batch.controls[first][:24])
            and batch.long[8 * first + 5]
        ):
            raise OSError(22, "EINVAL")
        return send(batch, fd, first, 1)

    monkeypatch.setattr(DatagramBatch, "send", refuse_trains)
    endpoint, client = datagram_socket(), datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        await client.connect(lab.address)
        await client.send(b"more")
        _, outbound = await endpoint.recvfrom(100)
        flow = await the_flow(lab)
        await _until_read_by(TrainReader, lab, flow, endpoint, client, outbound)
        train = numbered(6, 500, 3)
        await send_train(endpoint, train, 500, outbound)
        assert [await client.recv(1000) for _ in range(6)] == cut(train, 500)
        counters = (await lab.counters())["listeners"][0]
        assert counters["reply"]["sent"] == counters["reply"]["received"]


async def test_a_client_of_a_plain_socket_never_sees_a_train() -> None:
    """The kernel cuts what we send as one, for whoever did not ask for trains."""
    endpoint, client = datagram_socket(), datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        await client.connect(lab.address)
        with trio.fail_after(5):
            await send_train(client, b"a" * 1000, 10)
            sizes = {len(await endpoint.recv(2000)) for _ in range(100)}
    assert sizes == {10}
    assert endpoint.family == AF_INET


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
async def test_a_datagram_alone_is_not_taken_for_a_train(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would arrive all the same, but cost a fifth more."""
    monkeypatch.setattr(datagram_listener, "pass_train", None)
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    endpoint, client = datagram_socket(local), datagram_socket(local)
    async with relaying([endpoint.getsockname()], UDP, host=host) as lab:
        await client.connect((local, lab.address[1]))
        for _ in range(3):
            await client.send(b"alone")
            assert await endpoint.recv(100) == b"alone"


async def test_who_answers_one_by_one_is_tried_as_bulk_ever_more_seldom() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = await client_of(lab)
        outbound = await exchange(client, endpoint, b"hello")
        (flow,) = lab.worker._relay.table
        assert isinstance(flow, DatagramFlow)
        busy = lab.listener.replies._busy
        for times in (1, 2, 4):
            assert busy.needed == times * BUSY_ROUNDS
            flow.read_trains()
            await _until_read_by(DatagramFlow, lab, flow, endpoint, client, outbound)
        flow.read_trains()
        while busy.needed > BUSY_ROUNDS:
            for _ in range(64):
                await endpoint.sendto(b"reply", outbound)
            for _ in range(64):
                assert await client.recv(100) == b"reply"
