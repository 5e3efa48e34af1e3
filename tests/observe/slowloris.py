"""Slowloris: clients who begin a request, say a byte now and then, and never come to its end."""

from __future__ import annotations

import socket
from contextlib import suppress
from types import TracebackType

BEGINNING = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-A: "


class Slowloris:
    """So many of them, at one address. Nothing here waits.

    Args:
        address: of an HTTP server, by IPv4.
        count: of clients.

    Attributes:
        thrown_out: how often the server has closed one, which came again.

    """

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self.thrown_out = 0
        self._address = address
        self._clients = [self._come() for _ in range(count)]

    def __enter__(self) -> Slowloris:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for client in self._clients:
            client.close()

    def say_a_byte(self) -> None:
        """Have each say one byte more; who was thrown out comes again."""
        for place, client in enumerate(self._clients):
            try:
                client.send(b"b")
                there = client.recv(1000) != b""
            except BlockingIOError:
                there = True
            except OSError:
                there = False
            if not there:
                self.thrown_out += 1
                client.close()
                self._clients[place] = self._come()

    def _come(self) -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(self._address)
        with suppress(OSError):  # not connected yet: it will begin with less
            client.send(BEGINNING)
        return client
