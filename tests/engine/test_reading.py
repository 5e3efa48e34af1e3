"""The counters of real sockets mean what ``core.crossing`` says they do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import (
    IPPROTO_TCP,
    MSG_FASTOPEN,
    MSG_OOB,
    SHUT_WR,
    SO_LINGER,
    SO_OOBINLINE,
    SO_RCVBUF,
    SOL_SOCKET,
    TCP_FASTOPEN,
)
from socket import socket as Socket
from typing import NamedTuple

import pytest
import trio

from proxy.core.crossing import (
    Crossing,
    Keeping,
    Reading,
    Store,
    TcpState,
    Urgent,
    find_crossing,
)
from proxy.engine.splice import FLAGS
from proxy.engine.survival import reading
from proxy.engine.survival.reading import has_failed, peer_of, read_socket
from proxy.engine.tcp import (
    RESET_ON_CLOSE,
    bytes_to_read,
    is_in_line,
    read_in_line,
    skip_urgent,
)
from tests.engine.lab import PATIENCE

SETTING = Path("/proc/sys/net/ipv4/tcp_fastopen")

NOTHING = Keeping()


class Ends(NamedTuple):
    """A client and an endpoint, and the two sockets of the flow between them."""

    client: Socket
    accepted: Socket
    connected: Socket
    endpoint: Socket

    def find(self, kept: Keeping = NOTHING) -> Crossing | None:
        """What is in flight from client to endpoint."""
        source = read_socket(self.accepted, is_ours=False)
        target = read_socket(self.connected, is_ours=True)
        return None if source is None or target is None else find_crossing(source, target, kept)

    def find_reply(self, kept: Keeping = NOTHING) -> Crossing | None:
        """The same from endpoint to client."""
        source = read_socket(self.connected, is_ours=True)
        target = read_socket(self.accepted, is_ours=False)
        return None if source is None or target is None else find_crossing(source, target, kept)

    async def wait(self, condition: Callable[[Reading], bool], of: int = 1) -> Reading:
        """Wait until a socket's reading is like this: of the accepted one, or of the connected."""
        with trio.fail_after(PATIENCE):
            while True:
                reading = read_socket(self[of], is_ours=of == 2)
                if reading is not None and condition(reading):
                    return reading
                await trio.sleep(0.001)


@pytest.fixture
def ends() -> Iterator[Ends]:
    client, accepted = make_pair()
    connected, endpoint = make_pair()
    sockets = Ends(client, accepted, connected, endpoint)
    yield sockets
    for socket in sockets:
        socket.close()


def make_pair(prepare: Callable[[Socket], object] = lambda _: None) -> tuple[Socket, Socket]:
    """A connected socket, and the accepted one at its other end."""
    with Socket() as listener:
        prepare(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        socket = Socket()
        socket.connect(listener.getsockname())
        return socket, listener.accept()[0]


async def test_what_was_read_and_not_written_is_in_flight(ends: Ends) -> None:
    assert ends.find() == ends.find_reply() == Crossing(0)
    ends.client.send(b"0123456789")
    await ends.wait(lambda reading: reading.unread == 10)
    assert ends.find() == Crossing(0)
    ends.accepted.recv(4)
    assert ends.find() is None  # nobody says where they are
    assert ends.find(Keeping(before=0)) == Crossing(4, Store.BUFFER, 0, 4)
    ends.connected.send(b"0")
    assert ends.find(Keeping(before=0)) == Crossing(4, Store.BUFFER, 1, 3)
    assert ends.find(Keeping(pending=3)) == Crossing(4, Store.PENDING, 0, 3)
    ends.connected.send(b"123")
    assert ends.find(Keeping(before=0)) == Crossing(4)
    assert ends.find_reply() == Crossing(0)


async def test_headers_are_not_of_the_flow(ends: Ends) -> None:
    ends.client.send(b"headerbytes")
    ends.accepted.recv(8)
    ends.connected.send(b"another header")
    assert ends.find(Keeping(taken=6, added=14, before=0)) == Crossing(2, Store.BUFFER, 0, 2)


async def test_what_the_peer_has_not_acknowledged_was_written(ends: Ends) -> None:
    ends.endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
    ends.connected.setblocking(False)
    read = written = 0
    while written == read:
        ends.client.send(b"x" * 60_000)
        part = ends.accepted.recv(60_000)
        read += len(part)
        written += ends.connected.send(part)
    reading = await ends.wait(lambda reading: reading.unacked > 0, of=2)
    assert reading.written == written
    left = read - written
    assert ends.find(Keeping(pending=left)) == Crossing(read, Store.PENDING, 0, left)


async def test_half_closed_and_read_to_the_end(ends: Ends) -> None:
    ends.client.send(b"12345")
    ends.client.shutdown(SHUT_WR)
    await ends.wait(lambda reading: reading.peer_ended)
    assert ends.find() == Crossing(0)
    ends.accepted.recv(2)
    assert ends.find(Keeping(before=0)) == Crossing(2, Store.BUFFER, 0, 2)
    ends.accepted.recv(3)
    ends.connected.send(b"12345")
    assert ends.find() == Crossing(5)
    assert ends.accepted.recv(1) == b""  # the end itself: which the relay rarely reads
    assert ends.find() == Crossing(5)
    ends.connected.shutdown(SHUT_WR)
    assert ends.find() == Crossing(5, ended=True)
    await ends.wait(lambda reading: reading.state is TcpState.FIN_WAIT2, of=2)  # FIN acknowledged
    assert ends.find() == Crossing(5, ended=True)
    ends.endpoint.send(b"reply")
    await ends.wait(lambda reading: reading.unread == 5, of=2)
    assert ends.find_reply() == Crossing(0)
    ends.connected.recv(5)
    assert ends.find_reply(Keeping(before=0)) == Crossing(5, Store.BUFFER, 0, 5)
    ends.accepted.send(b"reply")
    assert ends.find_reply() == Crossing(5)
    assert ends.find() == Crossing(5, ended=True)


async def test_a_closed_connection_that_ended_in_order_is_counted_on(ends: Ends) -> None:
    ends.client.shutdown(SHUT_WR)
    await ends.wait(lambda reading: reading.peer_ended)
    ends.connected.shutdown(SHUT_WR)
    ends.endpoint.send(b"last words")
    ends.endpoint.close()  # so that the socket to it is closed, as far as TCP is concerned
    await ends.wait(lambda reading: reading.state is TcpState.CLOSE, of=2)
    assert ends.find() == Crossing(0, ended=True)
    assert ends.find_reply() == Crossing(0)
    ends.connected.recv(4)
    assert ends.find_reply(Keeping(before=0)) == Crossing(4, Store.BUFFER, 0, 4)
    assert not has_failed(ends.connected)


async def test_the_endpoint_ends_first(ends: Ends) -> None:
    ends.endpoint.send(b"abc")
    ends.endpoint.shutdown(SHUT_WR)
    await ends.wait(lambda reading: reading.peer_ended, of=2)
    ends.connected.recv(3)
    ends.accepted.send(b"abc")
    ends.accepted.shutdown(SHUT_WR)
    await ends.wait(lambda reading: reading.unacked == 0)
    assert ends.find_reply() == Crossing(3, ended=True)
    ends.client.send(b"xyz")
    await ends.wait(lambda reading: reading.unread == 3)
    assert ends.find() == Crossing(0)


async def test_urgent_data_before_at_and_behind_its_mark(ends: Ends) -> None:
    ends.client.send(b"1234")
    ends.client.send(b"!", MSG_OOB)
    ends.client.send(b"567")
    await ends.wait(lambda reading: reading.unread == 8)
    ends.accepted.recv(2)
    assert ends.find(Keeping(before=0)) == Crossing(2, Store.BUFFER, 0, 2)
    ends.accepted.recv(100)
    ends.connected.send(b"1234")
    reading = await ends.wait(lambda reading: reading.urgent is Urgent.NEXT)
    assert reading.unread == 4
    assert ends.find() == Crossing(4)
    ends.connected.send(b"!", MSG_OOB)
    assert ends.find() == Crossing(5, is_again=True)  # sent, and still to be taken
    ends.accepted.recv(1, MSG_OOB)
    assert (await ends.wait(lambda reading: reading.urgent is Urgent.TAKEN)).unread == 4
    assert ends.find() == Crossing(5)
    ends.accepted.recv(2)  # the mark is skipped thereby
    assert ends.find(Keeping(before=5)) == Crossing(7, Store.BUFFER, 0, 2)
    ends.connected.send(b"56")
    assert ends.find() == Crossing(7)
    assert not ends.accepted.getsockopt(SOL_SOCKET, SO_OOBINLINE)


async def test_urgent_data_that_is_read_in_line(ends: Ends) -> None:
    """As the relay reads it; the mark itself is the only thing that is special."""
    read_in_line(ends.accepted)
    ends.client.send(b"12")
    ends.client.send(b"!", MSG_OOB)
    await ends.wait(lambda reading: reading.unread == 3)
    ends.accepted.recv(100)
    ends.connected.send(b"12")
    await ends.wait(lambda reading: reading.urgent is Urgent.NEXT)
    assert ends.find() == Crossing(2)
    ends.connected.send(b"!", MSG_OOB)
    assert ends.find() == Crossing(3, is_again=True)
    skip_urgent(ends.accepted)
    assert ends.find() == Crossing(3)
    reading = await ends.wait(lambda reading: reading.unread == 0)
    assert reading.urgent is Urgent.NONE
    assert is_in_line(ends.accepted)


@pytest.mark.parametrize("is_taken", [False, True])
async def test_a_socket_that_was_read_out_of_line_is_read_on_in_line(
    ends: Ends, *, is_taken: bool
) -> None:
    """Such as one of a predecessor; what it has taken is not given again."""
    ends.client.send(b"12")
    ends.client.send(b"!", MSG_OOB)
    ends.client.send(b"34")
    await ends.wait(lambda reading: reading.unread == 5)
    assert ends.accepted.recv(100) == b"12"
    if is_taken:
        assert ends.accepted.recv(1, MSG_OOB) == b"!"
    read_in_line(ends.accepted)
    read_in_line(ends.accepted)
    assert ends.accepted.recv(100) == (b"34" if is_taken else b"!34")


async def test_urgent_byte_that_is_pending_or_the_last(ends: Ends) -> None:
    ends.client.send(b"!", MSG_OOB)
    ends.client.shutdown(SHUT_WR)
    await ends.wait(lambda reading: reading.urgent is Urgent.NEXT and reading.peer_ended)
    ends.accepted.recv(1, MSG_OOB)
    kept = Keeping(pending=1, is_urgent=True)
    assert ends.find(kept) == Crossing(1, Store.PENDING, 0, 1, is_urgent=True)
    ends.connected.send(b"!", MSG_OOB)
    assert ends.find(kept) == Crossing(1)
    ends.connected.shutdown(SHUT_WR)
    assert ends.find(kept) == Crossing(1, ended=True)


async def test_bytes_in_a_pipe(ends: Ends) -> None:
    out, into = os.pipe()
    try:
        ends.client.send(b"x" * 1000)
        await ends.wait(lambda reading: reading.unread == 1000)
        os.splice(ends.accepted.fileno(), into, 600, flags=FLAGS)
        piped = bytes_to_read(out)
        assert ends.find(Keeping(piped=piped)) == Crossing(600, Store.PIPE, 0, 600)
        os.splice(out, ends.connected.fileno(), 250, flags=FLAGS)
        assert ends.find(Keeping(piped=bytes_to_read(out))) == Crossing(600, Store.PIPE, 0, 350)
    finally:
        os.close(out)
        os.close(into)


async def test_what_comes_while_it_is_read_is_in_all_numbers_or_in_none(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come after the count of those received, and before the count of those to be read."""
    ends.client.send(b"heard")
    await ends.wait(lambda reading: reading.unread == 5)
    ends.accepted.recv(5)
    late = iter([b"late"])

    def bytes_after_others(fd: int) -> int:
        for word in late:
            ends.client.send(word)
            while bytes_to_read(fd) < len(word):
                pass
        return bytes_to_read(fd)

    monkeypatch.setattr(reading, "bytes_to_read", bytes_after_others)
    found = read_socket(ends.accepted, is_ours=False)
    assert found is not None
    assert (found.consumed, found.unread) == (5, 4)


async def test_what_is_never_quiet_proves_nothing(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter(range(10**6))
    monkeypatch.setattr(reading, "_counts", lambda _: (TcpState.ESTABLISHED, next(counts), 0))
    assert read_socket(ends.accepted, is_ours=False) is None


async def test_the_peer_is_known_when_both_have_ended(ends: Ends) -> None:
    name = ends.connected.getpeername()
    assert peer_of(ends.connected) == name
    ends.connected.shutdown(SHUT_WR)
    ends.endpoint.close()
    await ends.wait(lambda found: found.state is TcpState.CLOSE, of=2)
    with pytest.raises(OSError, match="not connected"):
        ends.connected.getpeername()
    assert peer_of(ends.connected) == name


async def test_a_reset_connection_proves_nothing(ends: Ends) -> None:
    ends.client.setsockopt(SOL_SOCKET, SO_LINGER, RESET_ON_CLOSE)
    ends.client.close()
    with trio.fail_after(PATIENCE):
        while not has_failed(ends.accepted):
            await trio.sleep(0.001)
    assert has_failed(ends.accepted)  # its error stays for whoever reads
    assert not has_failed(ends.connected)


async def test_what_fast_open_carries_counts(ends: Ends) -> None:
    if not int(SETTING.read_text()) & 2:  # noqa: ASYNC240 - a file of the kernel's
        pytest.skip("net.ipv4.tcp_fastopen does not let servers take data with SYN")
    with Socket() as listener:
        listener.setsockopt(IPPROTO_TCP, TCP_FASTOPEN, 8)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        for _ in range(2):  # the first only gets the cookie
            with Socket() as client:
                client.sendto(b"with SYN", MSG_FASTOPEN, listener.getsockname())
                accepted, _ = listener.accept()
                with accepted:
                    fresh = ends._replace(client=client, accepted=accepted)
                    await fresh.wait(lambda reading: reading.unread == 8)
                    accepted.recv(8)
                    crossing = find_crossing(
                        await fresh.wait(lambda reading: reading.consumed == 8),
                        await fresh.wait(lambda _: True, of=2),
                        Keeping(before=0),
                    )
                    assert crossing == Crossing(8, Store.BUFFER, 0, 8)
                    ours = read_socket(client, is_ours=True)
                    assert ours is not None
                    assert ours.written == 8


async def test_a_socket_that_is_not_tcp_proves_nothing() -> None:
    with Socket(type=2) as datagrams:
        assert read_socket(datagrams, is_ours=False) is None
