"""Streams of every kind change their worker: each lives on exactly as it was."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from socket import MSG_OOB, SHUT_WR, SO_OOBINLINE, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from time import monotonic
from typing import Any

import pytest
import trio
from trio.socket import SocketType

from proxy.core.admission import AdmissionLimits
from proxy.core.expiry import FlowLimits
from proxy.core.flow import CloseReason, CloseSide
from proxy.core.live_limit import LiveLimit
from proxy.core.proxy_protocol import HeaderStyle
from proxy.core.query import FlowQuery, FlowRow
from proxy.core.waiting import WaitLimits
from proxy.engine import identified, leg
from proxy.engine.handover.frozen import AnyFlow, Frozen, depart, freeze
from proxy.engine.handover.transfer import Bequeather
from proxy.engine.leg import HELD_BACK, IN_PIPE
from proxy.engine.specs import EndpointSpec, UpstreamSpec
from proxy.engine.stream import StreamFlow
from tests.engine.heirs import no_samples, nothing_left, successor_of
from tests.engine.lab import (
    Lab,
    accept,
    connect,
    is_refused,
    is_reset,
    listening,
    pair,
    pass_both_ways,
    receive_all,
    receive_exactly,
    relaying,
    reset,
    send_all,
    send_and_end,
    upstream_spec,
)
from tests.engine.test_admission import gate_of
from tests.engine.test_handover_faults import talk
from tests.engine.test_identified import Slow, expected, use
from tests.engine.test_orders import matched, order
from tests.engine.test_preface import BLOCK, CLIENT, EDGE, proxied
from tests.engine.test_routed import HELLO, routing
from tests.engine.test_throttle import both
from tests.engine.test_unix import ME, unix, unix_client, unix_listening
from tests.engine.test_unix import relaying as unix_relaying
from tests.engine.test_urgent import receive_with_marks, send_urgent

BULK = os.urandom(4 << 20)
SLOW = 1 << 20
"""Bytes a second; half of that is more than may pass at once."""


@pytest.fixture(autouse=True)
def _only_asked_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    no_samples(monkeypatch)


def flow_of(lab: Lab) -> StreamFlow:
    (flow,) = lab.worker._relay.table
    assert isinstance(flow, StreamFlow)
    return flow


async def wait_established(lab: Lab) -> FlowRow:
    return await lab.wait_live("established")


async def finish(lab: Lab, client: SocketType, accepted: SocketType) -> FlowRow:
    """Much data both ways, and an end in order."""
    await pass_both_ways(client, accepted, BULK)
    (row,) = await lab.wait_ended()
    assert row["close_reason"] == "finished"
    return row


async def test_rows_are_equal_to_the_last_digit() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await talk(client, accepted)
        lab.worker._rows._offset += 0.01  # as another process might have measured it
        lab.worker._sampler.look(flow_of(lab), monotonic())
        before = await lab.live()
        assert before[0]["legs"] is not None
        async with successor_of(lab) as (heir, _):
            assert await heir.live() == before
            await finish(heir, client, accepted)
            assert nothing_left(heir)
        assert nothing_left(lab)


@pytest.mark.parametrize(
    ("front", "back"), [("tcp", "unix"), ("unix", "tcp"), ("unix", "unix"), ("v6", "v6")]
)
async def test_addresses_of_every_kind(front: str, back: str, tmp_path: Path) -> None:
    door, origin = tmp_path / "door", tmp_path / "origin"
    host = "::1" if back == "v6" else "127.0.0.1"
    endpoint = await unix_listening(origin) if back == "unix" else listening(host)
    target = unix(origin) if back == "unix" else endpoint.getsockname()
    url = {"tcp": "tcp://127.0.0.1:0", "v6": "tcp://[::1]:0", "unix": f"unix://{door}"}[front]
    async with unix_relaying(url, [target], admission=AdmissionLimits(source_flows=1)) as lab:
        client = await (unix_client(door) if front == "unix" else connect(lab.address))
        accepted = await accept(endpoint)
        await talk(client, accepted)
        before = await lab.live()
        assert before[0]["credentials"] == (ME if front == "unix" else None)
        assert before[0]["endpoint_credentials"] == (ME if back == "unix" else None)
        async with successor_of(lab) as (heir, left):
            assert left.handed == 1
            assert await heir.live() == before
            if front == "unix":  # the same user
                second = await unix_client(door)
                assert await receive_all(second) == b""
            else:
                assert await is_refused(lab.address)
            await talk(client, accepted)
            await finish(heir, client, accepted)
            assert nothing_left(heir)
        assert nothing_left(lab)


async def test_who_a_proxy_declared_stays_declared() -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab:
        client = await connect(lab.address)
        await send_all(client, BLOCK + b"GET /")
        accepted = await accept(endpoint)
        assert await receive_exactly(accepted, 5) == b"GET /"
        before = await lab.live()
        assert before[0]["client"]["via"] is not None
        assert before[0]["tlvs"]
        async with successor_of(lab) as (heir, _):
            assert await heir.live() == before
            await finish(heir, client, accepted)


@pytest.mark.parametrize("said", [b"", BLOCK[:20]], ids=["nothing", "half"])
async def test_who_has_yet_to_be_declared_is_awaited_by_the_heir(said: bytes) -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab:
        client = await connect(lab.address)
        await send_all(client, said)
        while not lab.worker._relay.files.used:
            await trio.sleep(0.002)

        async with successor_of(lab) as (heir, left):
            assert left.handed == 0
            assert lab.worker._relay.files.used == 0
            assert heir.worker._relay.files.used == 1
            await send_all(client, BLOCK[len(said) :] + b"GET /")
            accepted = await accept(endpoint)
            assert await receive_exactly(accepted, 5) == b"GET /"
            (row,) = await heir.live()
            assert row["client"]["remote"] == "{}:{}".format(*CLIENT)
            assert row["client"]["local"] == "{}:{}".format(*EDGE)
            await finish(heir, client, accepted)
            assert nothing_left(heir)
        assert nothing_left(lab)


async def test_who_waits_to_be_admitted_goes_on_waiting() -> None:
    endpoint = listening()
    one, waits = AdmissionLimits(flows=1), WaitLimits(time=3600.0, flows=10)
    async with relaying([endpoint.getsockname()], admission=one, waiting=waits) as lab:
        first, _ = await pair(lab, endpoint)
        second = await connect(lab.address)
        await send_all(second, b"early")
        await lab.wait_counter(lambda read: read["listeners"][0]["waiting"], 1)
        async with successor_of(lab) as (heir, left):
            assert left.handed == 1
            assert gate_of(heir).flows == 1
            await heir.wait_counter(lambda read: read["listeners"][0]["waiting"], 1)
            (row,) = (await lab.counters())["listeners"]
            assert row["waiting"] == 0
            assert lab.worker._relay.files.used == 0
            reset(first)
            accepted = await accept(endpoint)
            assert await receive_exactly(accepted, 5) == b"early"
            await talk(second, accepted)
            reset(second)
            await heir.wait_ended(2)
            assert nothing_left(heir)
        assert nothing_left(lab)


async def test_who_was_declared_and_waits_to_be_admitted_goes_on_waiting() -> None:
    endpoint = listening()
    one, waits = AdmissionLimits(flows=1), WaitLimits(time=3600.0, flows=10)
    async with proxied(endpoint, admission=one, waiting=waits) as lab:
        first, _ = await pair_declared(lab, endpoint)
        second = await connect(lab.address)
        await send_all(second, BLOCK + b"early")
        await lab.wait_counter(lambda read: read["listeners"][0]["waiting"], 1)
        async with successor_of(lab) as (heir, _):
            await heir.wait_counter(lambda read: read["listeners"][0]["waiting"], 1)
            reset(first)
            accepted = await accept(endpoint)
            assert await receive_exactly(accepted, 5) == b"early"
            (row,) = await heir.live()
            assert row["client"]["remote"] == "{}:{}".format(*CLIENT)


async def pair_declared(lab: Lab, endpoint: SocketType) -> tuple[SocketType, SocketType]:
    client = await connect(lab.address)
    await send_all(client, BLOCK)
    return client, await accept(endpoint)


@pytest.mark.parametrize("limit", ["source", "endpoint"])
async def test_nobody_takes_a_place_that_a_flow_under_way_has(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    endpoint = listening()
    parts: dict[str, Any] = {}
    spec = upstream(endpoint.getsockname())
    if limit == "source":
        parts["admission"] = AdmissionLimits(source_flows=1)
    else:
        (plain,) = spec.endpoints
        spec = replace(spec, endpoints=(plain._replace(ceiling=1),))
    async with relaying([endpoint.getsockname()], **parts) as lab:
        client, accepted = await pair(lab, endpoint)
        await wait_established(lab)
        others: list[SocketType] = []
        give = Bequeather.give_streams

        async def with_a_newcomer(self: Bequeather, flows: Any) -> None:
            others.append(await connect(lab.address))
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            await give(self, flows)

        monkeypatch.setattr(Bequeather, "give_streams", with_a_newcomer)
        async with successor_of(lab, upstreams=[spec]) as (heir, left):
            assert left.handed == 1
            assert await is_reset(others[0])
            assert len(await heir.live()) == 1
            await talk(client, accepted)


async def test_a_predecessor_that_says_nothing_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.engine.handover.arriving.PATIENCE", 0.1)
    endpoint = listening()
    parts = {"admission": AdmissionLimits(flows=2)}
    async with relaying([endpoint.getsockname()], **parts) as lab, trio.open_nursery() as nursery:
        give = Bequeather.give_streams
        goes_on = trio.Event()

        async def late(self: Bequeather, flows: Any) -> None:
            await goes_on.wait()
            await give(self, flows)

        monkeypatch.setattr(Bequeather, "give_streams", late)
        client, accepted = await pair(lab, endpoint)
        await wait_established(lab)

        async def come() -> None:
            await talk(*await pair(lab, endpoint))
            goes_on.set()

        async def take_over() -> None:
            async with successor_of(lab) as (heir, left):
                assert left.handed == 1
                assert len(await heir.live()) == 2
                await talk(client, accepted)
                nursery.cancel_scope.cancel()

        nursery.start_soon(take_over)
        while lab.worker._custody._doors is None:
            await trio.sleep(0.002)
        nursery.start_soon(come)


@pytest.mark.parametrize("style", [HeaderStyle(1), HeaderStyle(2)], ids=["v1", "v2"])
async def test_a_header_is_not_sent_again(
    style: HeaderStyle, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(style, monkeypatch)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        header = expected(style, client.getsockname(), lab.address)
        await wait_established(lab)
        async with successor_of(lab) as (heir, _):
            await send_all(client, b"GET /")
            assert await receive_exactly(accepted, len(header) + 5) == header + b"GET /"
            await finish(heir, client, accepted)


async def test_a_header_that_is_half_sent_is_finished_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    style = use(HeaderStyle(2), monkeypatch)
    taken = Slow(3)
    is_open = False

    def send(socket: Any, data: bytes) -> bytes:
        return taken.send(socket, data) if is_open or taken.calls < 4 else data

    monkeypatch.setattr(identified, "send", send)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"GET /")
        flow = flow_of(lab)
        header = expected(style, client.getsockname(), lab.address)
        while not isinstance(flow.attempt, identified.HeaderSend):
            await trio.sleep(0.002)
        attempt = flow.attempt

        async def take_the_rest() -> None:
            nonlocal is_open
            await trio.sleep(0.1)
            is_open = True
            while flow.attempt is attempt:
                attempt.ready(leg.EPOLLOUT, flow.active)
                await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_the_rest)
            async with successor_of(lab, patience=5.0) as (heir, left):
                assert left.handed == 1
                assert await receive_exactly(accepted, len(header) + 5) == header + b"GET /"
                await finish(heir, client, accepted)


async def test_a_routed_flow_stays_where_its_name_led() -> None:
    async with routing() as lab:
        client = await connect(lab.address)
        await send_all(client, HELLO)
        accepted = await lab.arrival("web")
        assert await receive_exactly(accepted, len(HELLO)) == HELLO
        before = await lab.live()
        assert before[0]["server_name"] == "www.example.org"
        async with successor_of(lab) as (heir, _):
            assert await heir.live() == before
            (row,) = [
                row for row in (await heir.counters())["endpoints"] if row["upstream"] == "web"
            ]
            assert row["flows"] == 1
            await finish(heir, client, accepted)


async def test_who_has_yet_to_say_where_follows_when_it_has() -> None:
    async with routing() as lab:
        client = await connect(lab.address)
        await send_all(client, HELLO[:40])
        await lab.wait_live("connecting")

        async def say_the_rest() -> None:
            await trio.sleep(0.1)
            await send_all(client, HELLO[40:])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_the_rest)
            async with successor_of(lab, patience=5.0) as (heir, left):
                assert left.handed == 1
                accepted = await lab.arrival("web")
                assert await receive_exactly(accepted, len(HELLO)) == HELLO
                await finish(heir, client, accepted)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rates", [{"flow": SLOW}, {"listener": SLOW}], ids=["flow", "listener"])
async def test_a_flow_that_is_held_back_goes_on_slowly(
    rates: dict[str, float], *, turned: bool
) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], bandwidth=both(**rates)) as lab:
        client, accepted = await pair(lab, endpoint)
        sender, receiver = (accepted, client) if turned else (client, accepted)
        data = os.urandom(SLOW // 2)
        await wait_established(lab)
        flow = flow_of(lab)
        direction = flow.reply if turned else flow.original
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, sender, data)
            while direction.pending is not HELD_BACK:
                await trio.sleep(0.002)
            async with successor_of(lab) as (heir, left):
                assert left.handed == 1
                again = flow_of(heir)
                now = again.reply if turned else again.original
                assert now.meter is not None
                assert now.stalls is not None
                assert await receive_all(receiver) == data
                await send_and_end(receiver, b"done")
                assert await receive_all(sender) == b"done"
                await heir.wait_ended()
                assert nothing_left(heir)
        assert nothing_left(lab)


async def test_a_dry_run_goes_on_counting() -> None:
    endpoint = listening()
    parts = {"bandwidth": both(flow=1000.0), "admission": AdmissionLimits(dry_run=True)}
    async with relaying([endpoint.getsockname()], **parts) as lab:
        client, accepted = await pair(lab, endpoint)
        await talk(client, accepted)
        async with successor_of(lab) as (heir, _):
            await finish(heir, client, accepted)
            (row,) = (await heir.counters())["listeners"]
            assert row["dry_run_hits"]["flow_bandwidth"] > 0


@pytest.mark.parametrize(
    "given", [order(flow_bandwidth=float(SLOW)), order(bandwidth=float(SLOW))], ids=["own", "all"]
)
async def test_an_order_goes_on_holding_a_flow_back(given: LiveLimit) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await wait_established(lab)
        await lab.worker.limit([given])
        data = os.urandom(SLOW // 2)
        flow = flow_of(lab)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, client, data)
            while flow.original.pending is not HELD_BACK:
                await trio.sleep(0.002)
            async with successor_of(lab, orders=[given]) as (heir, _):
                assert await matched(heir) == {1: 1}
                assert await matched(lab) == {1: 0}
                assert await receive_all(accepted) == data
                await send_and_end(accepted, b"done")
                assert await receive_all(client) == b"done"
                await heir.wait_ended()
                assert await matched(heir) == {1: 0}
                assert nothing_left(heir)
        assert nothing_left(lab)


async def test_an_order_that_ends_a_flow_by_its_bytes_counts_those_before() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"x" * 900)
        await receive_exactly(accepted, 900)
        async with successor_of(lab, orders=[order(bytes=1000, flows=1)]) as (heir, _):
            assert await is_refused(heir.address)
            await send_all(client, b"x" * 100)
            await receive_exactly(accepted, 100)
            await send_all(client, b"x")
            assert await is_reset(accepted)
            (row,) = await heir.wait_ended()
            assert (row["close_reason"], row["original"]["bytes"]) == ("byte_budget", 1000)


async def test_what_is_left_of_a_byte_budget_is_left() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], limits=FlowLimits(bytes=1000)) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"x" * 900)
        await receive_exactly(accepted, 900)
        async with successor_of(lab) as (heir, _):
            await send_all(accepted, b"y" * 100)
            await receive_exactly(client, 100)
            await send_all(client, b"x")
            assert await is_reset(accepted)
            (row,) = await heir.wait_ended()
            assert row["close_reason"] == "byte_budget"


@pytest.mark.parametrize("turned", [False, True])
async def test_what_lies_in_a_pipe_comes_out_of_it(
    monkeypatch: pytest.MonkeyPatch, *, turned: bool
) -> None:
    monkeypatch.setattr(leg, "LARGEST_CHUNK", leg.SMALLEST_CHUNK)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        sender, receiver = (accepted, client) if turned else (client, accepted)
        data = os.urandom(32 << 20)
        received = bytearray()
        await wait_established(lab)
        flow = flow_of(lab)
        direction = flow.reply if turned else flow.original
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, sender, data)
            while direction.pipe is None:
                received += await receiver.recv(1 << 16)
            while direction.pending is not IN_PIPE:
                await trio.sleep(0.002)
            async with successor_of(lab) as (heir, _):
                assert flow_of(heir).reply.bytes + flow_of(heir).original.bytes > len(received)
                received += await receive_all(receiver)
                assert received == data
                assert await moved(lab, heir) == [len(data)] * 2
                receiver.close()
                (row,) = await heir.wait_ended()
                assert row["close_reason"] == "finished"
                assert nothing_left(heir)
        assert nothing_left(lab)


@pytest.mark.parametrize("turned", [False, True])
async def test_an_urgent_byte_that_is_pending_stays_urgent(*, turned: bool) -> None:
    """As at a slow reader, whose socket is full in front of the mark."""
    endpoint = listening()
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 16 << 10)
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        sender, receiver = (accepted, client) if turned else (client, accepted)
        receiver.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
        await wait_established(lab)
        flow = flow_of(lab)
        direction = flow.reply if turned else flow.original
        assert direction.socket.fileno() >= 0
        filled = fill(direction.other.socket)
        await send_urgent(sender, b"!")
        while direction.pending is None:
            await trio.sleep(0.002)
        assert direction.send_flags & MSG_OOB
        async with successor_of(lab) as (heir, _):
            assert flow_of(heir).original.bytes + flow_of(heir).reply.bytes == 1
            await send_all(sender, b"after")
            sender.shutdown(SHUT_WR)
            data, marks = await receive_with_marks(receiver)
            assert data == b"." * filled + b"!after"
            assert marks == [filled]


def fill(socket: Any) -> int:
    """Send until nothing more is taken: what a flow had sent before, but for its books."""
    filled = 0
    while True:
        try:
            filled += socket.send(b"." * (1 << 16), leg.DONTWAIT)
        except BlockingIOError:
            return filled


@pytest.mark.parametrize("turned", [False, True])
async def test_an_urgent_byte_that_is_unread_keeps_its_mark(*, turned: bool) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        sender, receiver = (accepted, client) if turned else (client, accepted)
        receiver.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
        await wait_established(lab)
        raw = sender._sock  # its worker has no turn until it leaves
        raw.send(b"before")
        raw.send(b"!", MSG_OOB)
        raw.send(b"after")
        async with successor_of(lab):
            sender.shutdown(SHUT_WR)
            assert await receive_with_marks(receiver) == (b"before!after", [6])


async def test_both_directions_stand_still_and_go_on() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        for socket in (client, accepted):
            socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 64 << 10)
        there, back = os.urandom(16 << 20), os.urandom(16 << 20)
        flow = flow_of(lab)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, client, there)
            nursery.start_soon(send_and_end, accepted, back)
            while not (flow.original.pending and flow.reply.pending):
                await trio.sleep(0.002)
            async with successor_of(lab) as (heir, _):
                again = flow_of(heir)
                assert again.original.pending
                assert again.reply.pending
                assert again.original.stalls is not None
                nursery.start_soon(is_all, accepted, there)
                await is_all(client, back)
                (row,) = await heir.wait_ended()
                assert row["close_reason"] == "finished"
                assert nothing_left(heir)
        assert nothing_left(lab)


async def moved(*labs: Lab) -> list[int]:
    """Bytes that workers have received, and have passed on, of all flows together."""
    rows = [row for lab in labs for row in (await lab.counters())["listeners"]]
    ways = [row[way] for row in rows for way in ("original", "reply")]
    return [sum(way["received"] for way in ways), sum(way["sent"] for way in ways)]


async def is_all(socket: SocketType, data: bytes) -> None:
    assert await receive_all(socket) == data


@pytest.mark.parametrize("turned", [False, True])
async def test_a_reset_at_the_moment_of_leaving_is_a_reset(
    monkeypatch: pytest.MonkeyPatch, *, turned: bool
) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        first, second = (accepted, client) if turned else (client, accepted)
        await talk(client, accepted)

        def freeze_and_reset(flow: AnyFlow) -> Frozen:
            frozen = freeze(flow)
            first._sock.send(b"last words")
            reset(first)
            return frozen

        monkeypatch.setattr("proxy.engine.handover.leaving.freeze", freeze_and_reset)
        async with successor_of(lab) as (heir, left):
            assert left.handed == 1
            assert await receive_exactly(second, 10) == b"last words"
            assert await is_reset(second)
            (row,) = await heir.wait_ended()
            assert row["close_reason"] == ("endpoint_reset" if turned else "client_reset")
            assert nothing_left(heir)


async def test_a_flow_that_is_closing_ends_where_it_is() -> None:
    endpoint = listening()
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 16 << 10)
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        data = os.urandom(64 << 10)
        await send_all(client, data)
        await lab.wait_counter(lambda read: read["listeners"][0]["original"]["sent"], len(data))
        reset(client)
        await lab.wait_live("closing")
        async with trio.open_nursery() as nursery:

            async def read_on() -> None:
                await trio.sleep(0.1)
                assert await receive_exactly(accepted, len(data)) == data
                assert await is_reset(accepted)

            nursery.start_soon(read_on)
            async with successor_of(lab, patience=5.0) as (heir, left):
                assert left.handed == 0
                assert await heir.live() == []
                assert (await heir.ended())[0]["close_reason"] == "client_reset"


@pytest.mark.parametrize("turned", [False, True])
async def test_a_half_closed_flow_with_bytes_pending(*, turned: bool) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        first, second = (accepted, client) if turned else (client, accepted)
        await send_and_end(first, b"all I had")
        assert await receive_all(second) == b"all I had"
        before = await lab.wait_live("endpoint_closed" if turned else "client_closed")
        data = os.urandom(16 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, second, data)
            flow = flow_of(lab)
            while not (flow.original if turned else flow.reply).pending:
                await trio.sleep(0.002)
            async with successor_of(lab) as (heir, _):
                (row,) = await heir.live()
                assert row["half_closed"] == before["half_closed"]
                assert await receive_all(first) == data
                (row,) = await heir.wait_ended()
                assert row["close_side"] == ("endpoint" if turned else "client")
                assert nothing_left(heir)


def upstream(*addresses: Any, **parts: Any) -> UpstreamSpec:
    return replace(upstream_spec("lab", addresses), **parts)


@pytest.mark.parametrize("name", ["e0", "renamed"])
async def test_an_endpoint_that_is_no_more_keeps_its_flow(name: str) -> None:
    endpoint, other = listening(), listening()
    there = EndpointSpec(name, other.getsockname())
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        before = await lab.live()
        changed = upstream(endpoints=(there,))
        async with successor_of(lab, upstreams=[changed]) as (heir, _):
            assert await heir.live() == before
            rows = (await heir.counters())["endpoints"]
            assert {row["endpoint"]: row["flows"] for row in rows} == {name: 0, "e0": 1}
            assert {row["endpoint"]: row["draining"] for row in rows}["e0"] is (name != "e0")
            await talk(*await pair(heir, other))
            await talk(client, accepted)


async def test_an_endpoint_at_its_ceiling_stays_there_and_others_wait_for_it() -> None:
    endpoint = listening()
    (plain,) = upstream(endpoint.getsockname()).endpoints
    spec = upstream(endpoints=(plain._replace(ceiling=1),), waiting=WaitLimits(3600.0, 10))
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await wait_established(lab)
        async with successor_of(lab, upstreams=[spec]) as (heir, _):
            second = await connect(heir.address)
            await send_all(second, b"patient")
            await heir.wait_counter(lambda read: read["queues"][0]["waiting"], 1)
            client.close()
            accepted.close()
            third = await accept(endpoint)
            assert await receive_exactly(third, 7) == b"patient"
            second.close()
            third.close()
            await heir.wait_ended(2)
            assert nothing_left(heir)


async def test_batches_of_which_nothing_is_left_are_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.engine.handover.leaving.BATCH", 1)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        pairs = [await pair(lab, endpoint) for _ in range(3)]
        await wait_established(lab)
        doomed = lab.worker._relay.table.get(2)
        assert isinstance(doomed, StreamFlow)

        def depart_and_kill(frozen: Frozen, now: float) -> None:
            depart(frozen, now)
            doomed.abort(CloseReason.KILLED, CloseSide.PROXY, now)

        monkeypatch.setattr("proxy.engine.handover.leaving.depart", depart_and_kill)
        async with successor_of(lab) as (heir, left):
            assert (left.handed, left.failure) == (2, "")
            await talk(*pairs[0])
            await talk(*pairs[2])
            assert [row["id"] for row in await heir.live()] == [1, 3]


async def test_a_smaller_table_takes_all_and_lets_nobody_else_in() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        pairs = [await pair(lab, endpoint) for _ in range(3)]
        await wait_established(lab)
        for each in pairs:
            await talk(*each)
        ended = [await pair(lab, endpoint) for _ in range(4)]
        for client, accepted in ended:
            await talk(client, accepted)
            reset(client)
            assert await is_reset(accepted)
        while len(await lab.live()) > 3:
            await trio.sleep(0.002)
        remembered = await lab.ended()
        bounds = {"table_limit": 2, "recent": 3}
        async with successor_of(lab, bounds=bounds) as (heir, _):
            assert await heir.ended() == remembered[-3:]
            assert len(await heir.live()) == 3
            for each in pairs:
                await talk(*each)
            pairs[0][0].close()
            pairs[0][1].close()
            while len(await heir.live()) == 3:
                await trio.sleep(0.002)
            assert await heir.worker.kill(FlowQuery()) == 2
            await talk(*await pair(heir, endpoint))
