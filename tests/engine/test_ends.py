"""Whether the end of a direction must be read, or has been told with the last bytes."""

from __future__ import annotations

from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLPRI, EPOLLRDHUP, POLLRDHUP, poll
from socket import SHUT_WR
from socket import socket as Socket
from time import monotonic
from typing import Any

import pytest
import trio

from proxy.core.flow import State
from proxy.engine.stream import StreamFlow
from tests.engine.lab import Lab, listening, pair, receive_all, relaying

NEWS = EPOLLIN | EPOLLRDHUP


class Counting(Socket):
    """A socket that counts how often it is read."""

    receives = 0

    def recv_into(self, *arguments: Any) -> int:
        self.receives += 1
        return super().recv_into(*arguments)


class Nobody:
    """Serves a socket in place of its leg."""

    def ready(self, mask: int, now: float) -> None:
        """Leave it to the test."""

    def crashed(self, error: Exception, now: float) -> None:
        raise error


@pytest.mark.parametrize(
    ("mask", "receives"),
    [
        (NEWS, 1),
        (NEWS | EPOLLHUP, 2),
        (NEWS | EPOLLERR, 2),
        (NEWS | EPOLLPRI, 2),
    ],
)
async def test_an_end_that_came_with_the_last_bytes_is_not_read(mask: int, receives: int) -> None:
    """Unless a failure may have come with it, or urgent data, at which a receive stops short."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, answer = await pair(lab, endpoint)
        await lab.wait_live("established")
        flow, socket = taken_over(lab)
        await answer.send(b"bye")
        answer.shutdown(SHUT_WR)
        await wait_ended(socket)
        flow.reply.ready(mask, monotonic())
        assert socket.receives == receives
        assert flow.state is State.ENDPOINT_CLOSED
        assert await receive_all(client) == b"bye"


def taken_over(lab: Lab) -> tuple[StreamFlow, Counting]:
    """The only flow, and the socket to its endpoint, which the pump serves no more."""
    (flow,) = lab.worker._relay.table
    assert isinstance(flow, StreamFlow)
    socket = Counting(fileno=flow.reply.socket.detach())
    flow.reply.socket = socket
    lab.worker._relay.pump.hand_over(socket.fileno(), Nobody())
    return flow, socket


async def wait_ended(socket: Socket) -> None:
    """Wait until the peer's FIN is here, and so all before it."""
    news = poll()
    news.register(socket, POLLRDHUP)
    while not news.poll(0):
        await trio.sleep(0.001)
