"""Either side of a hand-over fails at some step: each flow has one owner, and goes on there."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from socket import socket as Socket
from socket import socketpair

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.address import Transport
from proxy.core.flow import CloseReason, State
from proxy.core.flow_state import ClientState, FlowState, LegState, write_clients, write_states
from proxy.engine.handover.frozen import Frozen, depart, freeze
from proxy.engine.handover.transfer import (
    ABANDONED,
    ACKNOWLEDGED,
    CLIENTS,
    COMMITTED,
    NO_MORE_DATAGRAMS,
    NOTHING_MORE,
    READY,
    Bequeather,
    HandOverError,
    Heir,
    Moving,
)
from proxy.engine.specs import Steered
from proxy.engine.stream import StreamFlow
from proxy.engine.wire import Wire, WireError, wire_on
from proxy.engine.worker import open_files
from tests.engine.heirs import TO_ONE, successor_of
from tests.engine.lab import (
    datagram_socket,
    is_reset,
    listening,
    open_listener,
    pair,
    receive_exactly,
    relaying,
    send_all,
)

UDP = Transport.UDP

FakeHeir = Callable[[Wire], Awaitable[None]]


async def gone(wire: Wire) -> None:
    """Close at once."""


async def gone_after_the_first(wire: Wire) -> None:
    await wire.send(READY)
    await taken(wire)


async def gone_before_streams(wire: Wire) -> None:
    await take_datagrams(wire)


async def hears_all(wire: Wire) -> None:
    await take_datagrams(wire)
    await wire.send(READY)
    assert await taken(wire) == CLIENTS + b"[]"
    await wire.send(ACKNOWLEDGED)
    assert await taken(wire) == COMMITTED
    assert await taken(wire) == NOTHING_MORE


async def gone_with_streams(wire: Wire) -> None:
    await take_datagrams(wire)
    await wire.send(READY)
    await taken(wire)


async def talks_nonsense(wire: Wire) -> None:
    await take_datagrams(wire)
    await wire.send(READY)
    await taken(wire)
    await wire.send(b"nonsense")
    await taken(wire)


async def acknowledges_with_a_descriptor(wire: Wire) -> None:
    await take_datagrams(wire)
    await wire.send(READY)
    await taken(wire)
    with Socket() as socket:
        await wire.send(ACKNOWLEDGED, [socket.fileno()])
    await taken(wire)


async def take_datagrams(wire: Wire) -> None:
    await wire.send(READY)
    while (await taken(wire))[:1] != NO_MORE_DATAGRAMS:
        pass
    await wire.send(ACKNOWLEDGED)
    assert await taken(wire) == COMMITTED


async def taken(wire: Wire) -> bytes:
    """A message; its descriptors are closed."""
    message = await wire.receive()
    for fd in message.files:
        Socket(fileno=fd).close()
    return message.body


async def talk(client: SocketType, accepted: SocketType) -> None:
    await send_all(client, b"still there?")
    assert await receive_exactly(accepted, 12) == b"still there?"
    await send_all(accepted, b"yes")
    assert await receive_exactly(client, 3) == b"yes"


@asynccontextmanager
async def leaving_to(fake: FakeHeir) -> AsyncIterator[Socket]:
    """The end of a wire, at whose other end is this heir."""
    ours, theirs = socketpair()

    async def run() -> None:
        wire = wire_on(theirs)
        try:
            await fake(wire)
        except WireError:
            pass
        finally:
            wire.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield ours


async def test_an_heir_that_fails_at_once_changes_nothing() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        async with leaving_to(gone) as heir:
            with pytest.raises(HandOverError):
                await lab.worker.leave(TO_ONE, [heir])
        await talk(client, accepted)
        await talk(*await pair(lab, endpoint))  # and others are taken


async def test_datagrams_come_back_when_the_heir_fails() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], UDP) as lab:
        client = datagram_socket()
        await client.connect(lab.address)
        await client.send(b"1")
        _, outbound = await endpoint.recvfrom(10)
        async with leaving_to(gone_after_the_first) as heir:
            with pytest.raises(HandOverError):
                await lab.worker.leave(TO_ONE, [heir])
        await client.send(b"2")
        assert await endpoint.recvfrom(10) == (b"2", outbound)
        await endpoint.sendto(b"3", outbound)
        assert await client.recv(10) == b"3"
        assert len(await lab.live()) == 1


@pytest.mark.parametrize(
    "fake",
    [gone_before_streams, gone_with_streams, talks_nonsense, acknowledges_with_a_descriptor],
)
async def test_streams_stay_when_the_heir_fails(fake: FakeHeir) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        pairs = [await pair(lab, endpoint) for _ in range(5)]
        async with leaving_to(fake) as heir:
            left = await lab.worker.leave(TO_ONE, [heir])
        assert left.failure
        assert left.handed == 0
        for each in pairs:
            await talk(*each)
        assert len(await lab.live()) == 5
        (row,) = (await lab.counters())["listeners"]
        assert row["live"]["established"] == 5


async def test_what_nobody_gets_stays() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        async with leaving_to(hears_all) as heir:
            left = await lab.worker.leave({"other": Steered(1)}, [heir])
        assert (left.handed, left.failure) == (0, "")
        await talk(client, accepted)


async def test_a_flow_whose_listener_is_not_there_is_reset_told_and_counted() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await lab.wait_live("established")
        (flow,) = lab.worker._relay.table
        assert isinstance(flow, StreamFlow)
        state, files = moving_of(freeze(flow))
        depart(Frozen(flow, state, ()), 0.0)
        arriving = lab.worker._arriving
        arriving._revive([(state._replace(listener="gone"), files)], 0.0)
        assert arriving._lost == 1
        assert await is_reset(client)
        assert await is_reset(accepted)
        counters = lab.worker._roster.counters_called("gone", Transport.TCP)
        assert counters.closed[CloseReason.INTERNAL] == 1


@pytest.mark.parametrize("is_owned", [False, True])
async def test_who_does_not_own_its_flows_yet_gives_them_back_without_a_word(
    is_owned: bool,
) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        async with successor_of(lab) as (heir, _):
            fresh = await pair(lab, endpoint)
            if is_owned:
                await heir.worker.own()
            heir.worker.give_back()
            assert len(await heir.live()) == 1 + is_owned
            if is_owned:
                await talk(client, accepted)
            else:
                assert await client.recv(1) == b""  # who gave it is not asked here
            await talk(*fresh)
            assert await heir.ended() == []
            (row,) = (await heir.counters())["listeners"]
            assert sum(row["closed"].values()) == 0


def moving_of(frozen: Frozen) -> Moving:
    """What an heir has of a frozen flow: duplicates of its descriptors."""
    return frozen.state, tuple(os.dup(fd) for fd in frozen.files)


class Predecessor:
    """One that does what a test says; a context manager, which closes both ends."""

    def __init__(self) -> None:
        ours, theirs = socketpair()
        self.wire = wire_on(ours)
        self.heirs_wire = wire_on(theirs)
        self.heir = Heir(self.heirs_wire)

    def __enter__(self) -> Predecessor:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()
        self.heirs_wire.close()


STREAM = FlowState(
    id=7,
    listener="lab",
    transport=Transport.TCP,
    upstream="lab",
    endpoint="e0",
    client_remote=("192.0.2.1", 1),
    client_local=("192.0.2.2", 2),
    endpoint_local=("192.0.2.2", 3),
    endpoint_remote=("192.0.2.3", 4),
    state=State.ESTABLISHED,
    opened=1.0,
    active=2.0,
    original=LegState(1),
    reply=LegState(2),
)
WAITING = ClientState("lab", Transport.TCP, ("192.0.2.1", 1), ("192.0.2.2", 2))


@contextmanager
def two_files() -> Iterator[tuple[int, int]]:
    """Two descriptors of a flow."""
    one, other = socketpair()
    with one, other:
        yield one.fileno(), other.fileno()


@pytest.mark.parametrize("last", [COMMITTED, None])
async def test_once_acknowledged_flows_are_the_heirs(last: bytes | None) -> None:
    with Predecessor() as one, two_files() as files:
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                ((state, received),) = (await one.heir.take_next()).flows
                assert state == STREAM
                for fd in received:
                    os.close(fd)

            nursery.start_soon(take)
            await Bequeather(one.wire).give_streams([(STREAM, files)])
            if last is not None:
                await one.wire.send(last)
            one.wire.close()  # or it dies without a word


@pytest.mark.parametrize("last", [ABANDONED, b"nonsense"])
async def test_what_is_taken_back_is_not_the_heirs(last: bytes) -> None:
    with Predecessor() as one, two_files() as files:
        before = open_files()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes_nothing, one.heir.take_next)
            await Bequeather(one.wire).give_streams([(STREAM, files)])
            await one.wire.send(last)
        assert open_files() == before - 1  # its end of the wire


async def takes_nothing(take: Callable[[], Awaitable[object]], match: str = ".") -> None:
    with pytest.raises(HandOverError, match=match):
        await take()


@pytest.mark.parametrize(
    "body", [b"", b"Q", b"S", b"Snonsense", b"S[]x", b"S[[1]]", b"W", b"W[[1]]", b"E1", b"C", b"A"]
)
async def test_an_heir_takes_no_nonsense(body: bytes) -> None:
    with Predecessor() as one:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes_nothing, one.heir.take_next)
            await one.wire.send(body)
        with pytest.raises(WireError):
            await one.wire.receive()


@pytest.mark.parametrize("body", [b"", b"Z", b"Ex", b"E", b"Dx", b"S[]"])
async def test_nor_among_datagrams(body: bytes) -> None:
    with Predecessor() as one:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes_nothing, one.heir.take_datagrams)
            await one.wire.send(body)
        assert (await one.wire.receive()).body == READY
        with pytest.raises(WireError):
            await one.wire.receive()


async def test_descriptors_of_clients_that_come_among_datagrams_are_closed() -> None:
    with Predecessor() as one, two_files() as files:
        before = open_files()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes_nothing, one.heir.take_datagrams)
            await one.wire.send(CLIENTS + write_clients([WAITING]).encode(), files[:1])
        assert open_files() == before - 1  # its end of the wire


@pytest.mark.parametrize("kind", [b"S", b"Z", b"R"])
async def test_descriptors_are_as_many_as_states_need(kind: bytes) -> None:
    with Predecessor() as one, two_files() as files:
        before = open_files()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes_nothing, one.heir.take_next, "1 descriptors|with")
            await one.wire.send(kind + write_states([STREAM]).encode(), files[:1])
        assert open_files() == before - 1


async def test_a_predecessor_that_died_keeps_nobody_waiting() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        ours, theirs = socketpair()
        ours.close()
        await lab.worker.expect([theirs])
        listener = bind_socket(ListenAddress(Transport.TCP, "127.0.0.1", 0))
        await open_listener(lab.worker, "more", listener, [endpoint.getsockname()])
        await talk(*await pair(lab, endpoint))


async def test_nothing_is_opened_without_what_was_expected_until_somebody_says_so() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        asked, answered = trio.Event(), trio.Event()

        async def ask() -> None:
            asked.set()
            await answered.wait()

        lab.worker.when_bereaved(ask)
        ours, theirs = socketpair()
        ours.close()
        await lab.worker.expect([theirs])
        listener = bind_socket(ListenAddress(Transport.TCP, "127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                open_listener, lab.worker, "more", listener, [endpoint.getsockname()]
            )
            await asked.wait()
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            assert len(lab.worker.serving()) == 1
            answered.set()
        assert len(lab.worker.serving()) == 2
