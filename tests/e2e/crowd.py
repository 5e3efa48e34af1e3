"""A crowd in a process of its own: thousands of clients, or an echo endpoint for them.

    python crowd.py endpoint PORT            echo TCP and UDP on loopback until killed
    python crowd.py clients tcp PORT COUNT   open COUNT flows, then obey stdin

Clients obey one word a line: ``talk`` sends every flow's own number through it and expects it
back, ``close`` ends all flows in the ordinary way, ``open`` begins anew. Each is answered by
``done`` on stdout when all flows have done it. Descriptors of the crowd so do not count against
the process that is measured.

Run by itself, without the rest of the tests: it needs nothing but the standard library.
"""

from __future__ import annotations

import resource
import select
import socket
import sys
from typing import Final

HOST: Final = "127.0.0.1"
PATIENCE: Final = 30.0
KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def endpoint(port: int) -> None:
    listening = socket.create_server((HOST, port), backlog=4096)
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind((HOST, port))
    streams: dict[int, socket.socket] = {}
    with select.epoll() as epoll:
        epoll.register(listening, select.EPOLLIN)
        epoll.register(bound, select.EPOLLIN)
        while True:
            for fd, _ in epoll.poll():
                if fd == listening.fileno():
                    stream, _ = listening.accept()
                    streams[stream.fileno()] = stream
                    epoll.register(stream, select.EPOLLIN)
                elif fd == bound.fileno():
                    data, sender = bound.recvfrom(65535)
                    bound.sendto(data, sender)
                elif not echo(streams[fd]):
                    streams.pop(fd).close()


def echo(stream: socket.socket) -> bool:
    try:
        data = stream.recv(65536)
        stream.sendall(data)
    except ConnectionError:
        return False
    return bool(data)


class Clients:
    """Flows to one port, each with its number."""

    def __init__(self, transport: str, port: int, count: int) -> None:
        self.transport = transport
        self.port = port
        self.count = count
        self.sockets: list[socket.socket] = []

    def open(self) -> None:
        for _ in range(self.count):
            client = socket.socket(socket.AF_INET, KINDS[self.transport])
            client.settimeout(PATIENCE)
            client.connect((HOST, self.port))
            self.sockets.append(client)
        self.talk()

    def talk(self) -> None:
        """One exchange on every flow, one after the other: so no datagram can be crowded out."""
        for number, client in enumerate(self.sockets):
            word = f"{number:08}".encode()
            client.sendall(word)
            if client.recv(64) != word:
                raise SystemExit(f"flow {number} answered something else")

    def close(self) -> None:
        for client in self.sockets:
            client.close()
        self.sockets.clear()


def clients(transport: str, port: int, count: int) -> None:
    crowd = Clients(transport, port, count)
    crowd.open()
    print("done", flush=True)
    orders = {"talk": crowd.talk, "close": crowd.close, "open": crowd.open}
    for line in sys.stdin:
        orders[line.strip()]()
        print("done", flush=True)


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if sys.argv[1] == "endpoint":
        endpoint(int(sys.argv[2]))
    else:
        clients(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
