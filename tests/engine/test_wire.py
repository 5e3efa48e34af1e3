"""Messages between supervisor and worker: whole and in order, with their descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engine.wire import HEAD, MORE, Wire, WireError, wire_pair
from proxy.engine.worker import open_files
from tests.engine.lab import PATIENCE

Ends = tuple[Wire, Wire]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ours, theirs = wire_pair()
    wires = (ours, Wire(theirs))
    yield wires
    for wire in wires:
        wire.close()


async def test_messages_arrive_whole_and_in_order(ends: Ends) -> None:
    bodies = [b"", b"x", b"y" * 10_000_000, b"", b"z" * 70_000]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, ends[0], bodies)
            assert [(await ends[1].receive()).body for _ in bodies] == bodies


async def send_all(wire: Wire, bodies: list[bytes]) -> None:
    for body in bodies:
        await wire.send(body)


async def test_tasks_that_send_at_once_do_not_mix_their_messages(ends: Ends) -> None:
    bodies = [bytes([number]) * 300_000 for number in range(10)]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for body in bodies:
                nursery.start_soon(ends[0].send, body)
            assert sorted([(await ends[1].receive()).body for _ in bodies]) == bodies


@pytest.mark.parametrize("count", [1, 253, 254, 600])
async def test_descriptors_come_with_their_message(ends: Ends, count: int) -> None:
    before = open_files()
    pipes = [os.pipe() for _ in range(count)]
    await ends[0].send(b"none")
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends[0].send, b"some", [read for read, _ in pipes])
            assert (await ends[1].receive()).files == ()
            message = await ends[1].receive()
    assert message.body == b"some"
    for number, ((_, write), fd) in enumerate(zip(pipes, message.files, strict=True)):
        os.write(write, number.to_bytes(2, "big"))
        assert os.read(fd, 2) == number.to_bytes(2, "big")
        assert not os.get_inheritable(fd)
    for fd in (*message.files, *(end for pipe in pipes for end in pipe)):
        os.close(fd)
    assert open_files() == before


async def test_the_end_of_the_other_side_is_told(ends: Ends) -> None:
    ends[0].close()
    with pytest.raises(WireError):
        await ends[1].receive()
    with pytest.raises(WireError):
        await ends[1].send(b"anybody?")


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=60), st.integers(0, 3))
async def test_garbage_leaks_no_descriptor(garbage: bytes, files: int) -> None:
    """Whatever is sent: messages, then ``WireError``, and every descriptor accounted for."""
    before = open_files()
    theirs, ours = socket.socketpair()
    wire = Wire(ours)
    pipe = os.pipe()
    if garbage:
        socket.send_fds(theirs, [garbage], [pipe[0]] * files)
    theirs.close()
    with suppress(WireError):
        while True:
            for fd in (await wire.receive()).files:
                os.close(fd)
    wire.close()
    for fd in pipe:
        os.close(fd)
    assert open_files() == before


async def test_a_message_that_is_too_long_is_refused(ends: Ends) -> None:
    ends[0]._socket.send(HEAD.pack(1 << 30, 0))
    with pytest.raises(WireError, match="1073741824"):
        await ends[1].receive()
    assert MORE > 253
