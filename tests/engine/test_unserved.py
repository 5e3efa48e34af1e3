"""What an executor does with descriptors that no flow claims."""

from __future__ import annotations

from collections.abc import Iterator
from socket import SHUT_WR, SO_LINGER, SOL_SOCKET
from socket import socket as Socket

import pytest

from proxy.engine.survival import executor
from proxy.engine.survival.executor import Legacy, execute
from proxy.engine.survival.unserved import find_untouched
from proxy.engine.survival.ways import Way
from proxy.engine.survival.will import FINISHED, LEAVING, Will
from proxy.engine.tcp import RESET_ON_CLOSE, reset_on_close

WAY = Way("web", "tcp", "web", "e")


class Scene:
    """A client of a listening socket, and a connection of ours to somewhere else."""

    def __init__(self) -> None:
        self.listener, self.other = (listening() for _ in range(2))
        self.client, self.accepted = pair(self.listener)
        self.connected, self.endpoint = pair(self.other)
        self.other.close()
        self.left = {each.fileno() for each in (self.listener, self.accepted, self.connected)}

    def close(self) -> None:
        for socket in (self.client, self.endpoint):
            socket.close()
        for fd in self.left:
            Socket(fileno=fd).close()


def listening() -> Socket:
    socket = Socket()
    socket.bind(("127.0.0.1", 0))
    socket.listen()
    return socket


def linger_of(socket: Socket) -> bytes:
    return socket.getsockopt(SOL_SOCKET, SO_LINGER, len(RESET_ON_CLOSE))


def pair(listener: Socket) -> tuple[Socket, Socket]:
    socket = Socket()
    socket.connect(listener.getsockname())
    return socket, listener.accept()[0]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene()
    monkeypatch.setattr(executor, "_open_files", lambda: set(made.left))
    yield made
    made.close()


def execute_in(scene: Scene, kind: int | None = None) -> Legacy:
    """Execute a will with a record of this kind about both sockets, or with none."""
    will = Will()
    if kind is not None:
        number, way = will.begin(), will.ways.number_of(WAY)
        assert number is not None
        assert way is not None
        will.write(number, kind, 1, 0.0, way, (scene.accepted.fileno(), scene.connected.fileno()))
    for socket in (scene.listener, scene.accepted, scene.connected):
        socket.detach()
    legacy = execute([will], ())
    scene.left = set(legacy.unserved)
    return legacy


async def test_a_client_is_served_and_a_socket_of_ours_is_reset(scene: Scene) -> None:
    fd = scene.accepted.fileno()
    assert execute_in(scene).unserved == [fd]
    with pytest.raises(ConnectionResetError):
        scene.endpoint.recv(1)


async def test_a_client_that_has_given_or_got_something_is_reset(scene: Scene) -> None:
    scene.accepted.send(b"some")
    assert scene.client.recv(4) == b"some"
    assert execute_in(scene).unserved == []
    with pytest.raises(ConnectionResetError):
        scene.client.recv(1)


async def test_a_client_that_was_being_reset_is(scene: Scene) -> None:
    reset_on_close(scene.accepted)
    assert execute_in(scene).unserved == []
    with pytest.raises(ConnectionResetError):
        scene.client.recv(1)


async def test_a_client_whose_listening_socket_is_gone_is_perhaps_anothers(scene: Scene) -> None:
    scene.left.discard(scene.listener.fileno())
    fd = scene.accepted.fileno()
    assert find_untouched(scene.left) == {fd: False}
    with scene.accepted.dup() as another, scene.listener.dup():
        scene.listener.close()
        assert execute_in(scene).unserved == []
        another.send(b"on")
    assert scene.client.recv(2) == b"on"
    assert scene.client.recv(1) == b""  # in order, as if nobody else had had it


async def test_descriptors_of_a_flow_that_finished_may_be_anothers(scene: Scene) -> None:
    fd = scene.accepted.fileno()
    assert execute_in(scene, FINISHED).unserved == [fd]
    with pytest.raises(ConnectionResetError):
        scene.endpoint.recv(1)


async def test_a_flow_that_finished_is_not_reset(scene: Scene) -> None:
    for peer in (scene.client, scene.endpoint):
        peer.shutdown(SHUT_WR)
    assert execute_in(scene, FINISHED).unserved == []
    assert scene.client.recv(1) == scene.endpoint.recv(1) == b""


async def test_a_flow_that_was_on_its_way_is_left_alone(scene: Scene) -> None:
    with scene.accepted.dup() as client, scene.connected.dup() as endpoint:
        assert execute_in(scene, LEAVING).unserved == []
        assert linger_of(client) == linger_of(endpoint) != RESET_ON_CLOSE  # later either
        client.send(b"on")
        endpoint.send(b"on")
        assert scene.client.recv(2) == scene.endpoint.recv(2) == b"on"
