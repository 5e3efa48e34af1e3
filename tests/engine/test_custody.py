"""An heir dies at some step of a hand-over: what it had comes back, whole, or is reset and told."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from signal import SIGKILL
from socket import SHUT_WR, SO_SNDBUF, SOL_SOCKET
from socket import socket as Socket

import pytest
import trio
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from trio.socket import SocketType

from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.counters import DirectionCounters
from proxy.core.crossing import Reading, TcpState
from proxy.core.flow import CloseReason
from proxy.core.flow_state import LegState
from proxy.core.proxy_protocol import HeaderStyle
from proxy.core.waiting import WaitLimits
from proxy.engine.handover.custody import NO_HEADERS, returned_leg
from proxy.engine.handover.leaving import Left
from proxy.engine.handover.process_file import ProcessFile
from proxy.engine.handover.transfer import Bequeather, HandOverError
from proxy.engine.survival.will import LEAVING, Will
from proxy.engine.worker import open_files
from tests.engine.dying import Deed, Dying, Step, nothing
from tests.engine.heirs import TO_ONE
from tests.engine.lab import (
    Lab,
    accept,
    connect,
    datagram_socket,
    is_reset,
    listening,
    pair,
    receive_all,
    receive_exactly,
    relaying,
    reset,
    send_all,
    send_and_end,
)
from tests.engine.test_handover_faults import talk
from tests.engine.test_identified import expected, use

FLOWS = 5

FORBEARANCE = 0.05
"""Seconds in which something would happen that must not."""


async def leave_to_dying(
    lab: Lab, step: Step, deed: Deed = nothing, last: int = 1, *, stops: bool = False
) -> Left | None:
    """Hand over to an heir that dies; None if that failed before anything was given."""
    heir = Dying(step, deed, last, stops=stops)
    try:
        left = await lab.worker.leave(TO_ONE, [heir.end], patience=0.0)
    except HandOverError:
        left = None
    while not heir.has_ended():
        await trio.sleep(0.002)
    while left is not None and not lab.worker._custody.has_all_back:
        await trio.sleep(0.002)
    return left


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("leaving", "custody"):
        monkeypatch.setattr(f"proxy.engine.handover.{module}.BATCH", 2)


@pytest.mark.parametrize("step", Step)
async def test_streams_come_back_wherever_the_heir_dies(step: Step) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        pairs = [await pair(lab, endpoint) for _ in range(FLOWS)]
        before = await lab.live()
        files = open_files()
        left = await leave_to_dying(lab, step, last=3)
        assert (left is None) == (step < Step.TAKEN_DATAGRAMS)
        assert left is None or left.handed == (FLOWS if step >= Step.TAKEN_CLIENTS else 0)
        for each in pairs:
            await talk(*each)
        assert ids(await lab.live()) == ids(before)
        assert open_files() == files
        await talk(*await pair(lab, endpoint))  # and others are taken
        (row,) = (await lab.counters())["listeners"]
        assert (row["opened"], row["live"]["established"]) == (FLOWS + 1, FLOWS + 1)
        assert row["original"]["received"] == row["original"]["sent"] == 12 * (FLOWS + 1)
        assert row["lost"] == 0


def ids(rows: list[dict[str, object]]) -> list[object]:
    return [row["id"] for row in rows]


@pytest.mark.parametrize("step", Step)
async def test_datagrams_come_back_wherever_the_heir_dies(step: Step) -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], Transport.UDP) as lab:
        client = datagram_socket()
        await client.connect(lab.address)
        await client.send(b"1")
        _, outbound = await endpoint.recvfrom(10)
        files = open_files()
        if Step.HEARD_STREAMS <= step <= Step.READY_AGAIN:
            return  # there are none
        await leave_to_dying(lab, step)
        await client.send(b"2")
        assert await endpoint.recvfrom(10) == (b"2", outbound)
        await endpoint.sendto(b"3", outbound)
        assert await client.recv(10) == b"3"
        assert len(await lab.live()) == 1
        assert open_files() == files
        (row,) = (await lab.counters())["listeners"]
        assert (row["opened"], row["lost"]) == (1, 0)


async def test_who_has_settled_gives_nothing_back() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        heir = Dying(Step.HEARD_ALL, stops=True)
        assert (await lab.worker.leave(TO_ONE, [heir.end], patience=0.0)).handed == 1
        assert lab.worker.serving()
        await lab.worker.settle()
        assert not lab.worker.serving()
        os.kill(heir.pid, 9)
        while not heir.has_ended():
            await trio.sleep(0.002)
        assert await client.recv(1) == b""  # its last holder is gone
        assert await accepted.recv(1) == b""
        assert not await lab.live()


@pytest.mark.parametrize("settles", [True, False])
async def test_our_will_says_what_is_an_heirs_until_that_is_over(settles: bool) -> None:
    """A standby of ours that finds it would reset it, where somebody serves it."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        will = lab.worker._relay.will = Will()
        pairs = [await pair(lab, endpoint) for _ in range(FLOWS)]
        ids_before = set(ids(await lab.live()))
        heir = Dying(Step.HEARD_ALL, stops=True)
        assert (await lab.worker.leave(TO_ONE, [heir.end], patience=0.0)).handed == FLOWS
        records = list(will.records())
        assert {record.kind for record in records} == {LEAVING}
        assert {record.id for record in records} == ids_before
        ends = {each.getsockname() for both in pairs for each in both}
        assert {peer_of_fd(fd) for record in records for fd in record.files} == ends
        if settles:
            await lab.worker.settle()
        os.kill(heir.pid, SIGKILL)
        while not heir.has_ended():
            await trio.sleep(0.002)
        while not settles and not lab.worker._custody.has_all_back:
            await trio.sleep(0.002)
        assert not list(will.records())
        if not settles:
            for each in pairs:
                await talk(*each)


def peer_of_fd(fd: int) -> object:
    with Socket(fileno=os.dup(fd)) as socket:
        return socket.getpeername()


@asynccontextmanager
async def gone_to_dying(lab: Lab, deed: Deed) -> AsyncIterator[None]:
    """An heir has got the flows, does something with them, and dies; its end is waited for."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave_to_dying, lab, Step.OWNED_STREAMS, deed)
        while lab.worker._relay.table:
            await trio.sleep(0.001)
        yield


async def leave_with(
    lab: Lab,
    ends: tuple[SocketType, SocketType],
    deed: Deed,
    original: bytes = b"",
    reply: bytes = b"",
) -> None:
    """Have an heir get a flow, and then these bytes, with which it does something, and dies."""
    async with gone_to_dying(lab, deed):
        for end, data in zip(ends, (original, reply), strict=True):
            await send_all(end, data)


def passing(taken: int, passed: int, *, reply: bool = False, ends: bool = False) -> Deed:
    """Read so much from the client, and write so much of it to the endpoint; or the reverse."""

    def deed(client: Socket, endpoint: Socket) -> None:
        source, target = (endpoint, client) if reply else (client, endpoint)
        source.setblocking(True)
        data = b""
        while len(data) < taken:
            data += source.recv(taken - len(data))
        target.setblocking(True)
        target.sendall(data[:passed])
        if ends:
            assert not source.recv(1)
            target.shutdown(SHUT_WR)

    return deed


async def test_what_the_heir_has_passed_on_is_known_and_counted() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        ends = client, accepted = await pair(lab, endpoint)
        await talk(client, accepted)
        await leave_with(lab, ends, passing(5, 5), b"hello")
        assert await receive_exactly(accepted, 5) == b"hello"
        await leave_with(lab, ends, passing(5, 5, reply=True), reply=b"world")
        assert await receive_exactly(client, 5) == b"world"
        await talk(client, accepted)
        (row,) = (await lab.counters())["listeners"]
        assert row["original"]["received"] == row["original"]["sent"] == 12 + 5 + 12
        assert row["reply"]["received"] == row["reply"]["sent"] == 3 + 5 + 3
        (flow,) = await lab.live()
        assert (flow["original"]["bytes"], flow["reply"]["bytes"]) == (29, 11)


DATA = bytes(range(256)) * 4


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    sizes=st.tuples(st.integers(0, len(DATA)), st.integers(0, len(DATA))),
    kept=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ends=st.tuples(st.booleans(), st.booleans()),
)
async def test_a_stream_is_whole_or_it_is_reset(
    sizes: tuple[int, int], kept: tuple[int, int], ends: tuple[bool, bool]
) -> None:
    """Of each direction the heir reads so much, keeps so much, and passes the end on, or not."""
    sizes = max(sizes[0], kept[0]), max(sizes[1], kept[1])
    ends = ends[0] and not kept[0], ends[1] and not kept[1]

    def deed(client: Socket, endpoint: Socket) -> None:
        for reply in (False, True):
            passed = sizes[reply] - kept[reply]
            passing(sizes[reply], passed, reply=reply, ends=ends[reply])(client, endpoint)

    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await lab.wait_live("established")

        async with gone_to_dying(lab, deed):
            for end, size, is_last in zip((client, accepted), sizes, ends, strict=True):
                await (send_and_end if is_last else send_all)(end, DATA[:size])
        counters = lab.worker._roster.counters_called("lab", Transport.TCP)
        if any(kept):
            assert ends[1] or await is_reset(client)  # who was told the end sees no reset
            assert ends[0] or await is_reset(accepted)
            assert (counters.lost, counters.closed[CloseReason.INTERNAL]) == (1, 1)
            return
        assert counters.lost == 0
        assert counters.closed[CloseReason.FINISHED] == all(ends)
        for end, other, sent, got, is_last in (
            (client, accepted, *sizes, ends[0]),
            (accepted, client, *reversed(sizes), ends[1]),
        ):
            if not is_last:
                await send_and_end(end, b"and on")
            assert await receive_all(other) == DATA[:sent] + b"and on" * (not is_last)
            assert got >= 0
        await lab.wait_ended(0)
        assert counters.original.received == counters.original.sent
        assert counters.opened == sum(counters.closed.values()) == 1


@pytest.mark.parametrize("step", [Step.OWNED_STREAMS, Step.HEARD_ALL])
async def test_what_was_pending_comes_back(step: Step) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        data = os.urandom(16 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, client, data)
            (flow,) = lab.worker._relay.table
            while not flow.original.pending:  # the endpoint takes nothing
                await trio.sleep(0.002)
            await leave_to_dying(lab, step)
            assert await receive_all(accepted) == data
        (row,) = (await lab.counters())["listeners"]
        assert row["original"]["sent"] == len(data)
        assert (row["lost"], row["original"]["buffered"]) == (0, 0)


async def test_bytes_that_followed_what_was_pending_are_the_dead_heirs_alone() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        client.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 20)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(OSError):
                    await send_all(client, bytes(16 << 20))

            nursery.start_soon(send)
            (flow,) = lab.worker._relay.table
            while not flow.original.pending:
                await trio.sleep(0.002)
            await leave_to_dying(lab, Step.OWNED_STREAMS, passing(1, 0))
            assert await is_reset(accepted)


@pytest.mark.parametrize("style", [HeaderStyle(1), HeaderStyle(2)], ids=["v1", "v2"])
async def test_headers_are_no_bytes_of_a_flow(
    style: HeaderStyle, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(style, monkeypatch)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client = await connect(lab.address)
        accepted = await accept(endpoint)
        header = expected(style, client.getsockname(), lab.address)
        assert await receive_exactly(accepted, len(header)) == header
        for _ in range(2):  # what comes back is known to have a header
            await leave_with(lab, (client, accepted), passing(5, 5), b"hello")
            assert await receive_exactly(accepted, 5) == b"hello"
            await talk(client, accepted)
        await leave_with(lab, (client, accepted), passing(len(header), 0), bytes(len(header)))
        assert await is_reset(client)


async def test_an_heir_that_stands_still_is_ended_before_its_flows_are_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.engine.handover.transfer.PATIENCE", 0.3)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        pairs = [await pair(lab, endpoint) for _ in range(FLOWS)]
        left = await leave_to_dying(lab, Step.HEARD_STREAMS, last=3, stops=True)
        assert left is not None
        assert (left.handed, bool(left.failure)) == (0, True)
        for each in pairs:
            await talk(*each)


async def test_what_a_standby_goes_on_with_comes_back_when_that_has_ended_too() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        pairs = [await pair(lab, endpoint) for _ in range(FLOWS)]
        files = open_files()
        heir = Dying(Step.HEARD_ALL, last=3, standby=True)
        left = await lab.worker.leave(TO_ONE, [heir.end], patience=0.0)
        assert left.handed == FLOWS
        while not heir.has_ended():
            await trio.sleep(0.002)
        await trio.sleep(FORBEARANCE)
        assert await lab.live() == []
        heir.end_standby()
        while not lab.worker._custody.has_all_back:
            await trio.sleep(0.002)
        for each in pairs:
            await talk(*each)
        assert open_files() == files
        (row,) = (await lab.counters())["listeners"]
        assert (row["opened"], row["live"]["established"], row["lost"]) == (FLOWS, FLOWS, 0)


async def test_one_that_stands_still_and_has_a_standby_is_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.engine.handover.transfer.PATIENCE", 0.3)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        pairs = [await pair(lab, endpoint) for _ in range(FLOWS)]
        heir = Dying(Step.HEARD_STREAMS, last=3, stops=True, standby=True)
        left = await lab.worker.leave(TO_ONE, [heir.end], patience=0.0)
        assert (left.handed, bool(left.failure)) == (2, True)
        assert not heir.has_ended()
        os.kill(heir.pid, SIGKILL)  # as its supervisor would
        heir.end_standby()
        while not heir.has_ended():
            await trio.sleep(0.002)
        while not lab.worker._custody.has_all_back:
            await trio.sleep(0.002)
        for each in pairs:
            await talk(*each)


async def test_one_that_stands_still_with_nothing_of_ours_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.engine.handover.transfer.PATIENCE", 0.3)
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        ends = await pair(lab, endpoint)
        heir = Dying(Step.HEARD_DATAGRAMS, stops=True)
        with pytest.raises(HandOverError):
            await lab.worker.leave(TO_ONE, [heir.end])
        await talk(*ends)
        assert not heir.has_ended()
        os.kill(heir.pid, SIGKILL)
        while not heir.has_ended():
            await trio.sleep(0.002)


async def test_clients_that_waited_wait_again() -> None:
    endpoint = listening()
    parts = {"admission": AdmissionLimits(flows=1), "waiting": WaitLimits(3600.0, 10)}
    async with relaying([endpoint.getsockname()], **parts) as lab:
        ends = await pair(lab, endpoint)
        waiting = await connect(lab.address)
        await send_all(waiting, b"let me in")
        await lab.wait_counter(lambda reading: reading["listeners"][0]["waiting"], 1)
        for step in (Step.OWNED_STREAMS, Step.OWNED_CLIENTS, Step.HEARD_ALL):
            await leave_to_dying(lab, step)
            await talk(*ends)
        reset(ends[0])
        accepted = await accept(endpoint)
        assert await receive_exactly(accepted, 9) == b"let me in"
        await talk(waiting, accepted)


async def test_a_descriptor_of_no_process_is_nobodys() -> None:
    with Socket() as socket, pytest.raises(ValueError, match="of no process"):
        ProcessFile(socket.fileno())
    own = ProcessFile(os.pidfd_open(os.getpid()))
    own.kill()  # which it does not
    assert (own.pid, own.is_over) == (os.getpid(), False)
    own.close()


async def test_what_departs_after_its_heir_has_died_comes_back_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = Bequeather.commit
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        ends = await pair(lab, endpoint)

        async def late(self: Bequeather) -> None:
            await commit(self)
            while lab.worker._custody._doors and not lab.worker._custody.has_all_back:
                await trio.sleep(0.001)

        monkeypatch.setattr(Bequeather, "commit", late)
        await leave_to_dying(lab, Step.OWNED_STREAMS)
        await talk(*ends)


@pytest.mark.parametrize(
    ("received", "written", "pending"),
    [
        (100, 50, b"0123456789" * 5),
        (100, 90, b"0123456789"),
        (100, 100, b""),
        (130, 130, b""),
        (100, 40, None),
        (101, 60, None),  # of those in flight one was never ours
    ],
)
async def test_only_what_was_pending_can_be_in_flight(
    received: int, written: int, pending: bytes | None
) -> None:
    left = LegState(100, 0, b"0123456789" * 5)
    source = Reading(TcpState.ESTABLISHED, received, 0, 0, 0, is_ours=False)
    target = Reading(TcpState.ESTABLISHED, 0, 0, written, 0, is_ours=False)
    with Socket() as socket:
        leg = returned_leg(left, NO_HEADERS, source, target, socket)
    assert (None if leg is None else leg.pending) == pending


async def test_what_is_sent_is_counted_once_whoever_sends_it() -> None:
    counters = DirectionCounters()
    counters.received, counters.buffered = 100, 50
    counters.departed(50)
    assert counters.sent == 50
    counters.returned(30, 50, 20)
    counters.arrived(20)
    assert (counters.received, counters.sent, counters.buffered) == (130, 110, 20)
