"""Origins: what the proxies forward to. They must cost little, so that the proxy is the bottleneck.

HTTP is answered by nginx and bulk is taken by iperf3. The echoes are loops of our own, run as
``python -m tests.bench.origins tcp|udp PORT`` until they are stopped.

The UDP echo receives and sends up to 64 datagrams a call with the same array of ``struct mmsghdr``:
the kernel leaves each sender's address where it will look for the receiver's, and since all our
datagrams have one length nothing needs to be touched between the two calls.
"""

from __future__ import annotations

import ctypes
import select
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.bench.programs import (
    LOCAL,
    PAYLOAD,
    Command,
    Cores,
    echoes,
    first,
    free_port,
    listens,
    running,
)

BATCH: Final = 64
BACKLOG: Final = 4096
MSG_WAITFORONE: Final = 0x10000  # recvmmsg(2)

HTTP: Final = """\
daemon off;
worker_processes 1;
pid {folder}/origin.pid;
error_log {folder}/origin.log;
events {{ worker_connections 15000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{
        listen {host}:{port} backlog=4096;
        location / {{ return 200 "hello\\n"; }}
    }}
}}
"""


SELF_CONTAINED: Final = {
    "greedy": ("tests.bench.greedy", "serve"),
    "flood": ("tests.bench.flood", "origin"),
}
"""Origins that are written beside their load."""


@asynccontextmanager
async def origin(
    kind: str, cores: Cores, folder: Path, *, prompt: bool = False
) -> AsyncIterator[int]:
    """Run the origin of this kind, before other programs if ``prompt``, and give its port.

    Kinds are http, iperf3, tcp and udp, and those of ``greedy`` and ``flood``.
    """
    port = free_port()
    ready = echoes(port) if kind in {"udp", "flood"} else listens(port)
    command = _command(kind, port, folder)
    if prompt:
        command = first(command)
    async with running(command, cores, folder, f"origin-{kind}", ready):
        yield port


def _command(kind: str, port: int, folder: Path) -> Command:
    if kind == "http":
        file = folder / "origin.conf"
        file.write_text(HTTP.format(folder=folder, host=LOCAL, port=port))
        return ["nginx", "-e", folder / "origin.log", "-c", file]
    if kind == "iperf3":
        return ["iperf3", "--server", "--bind", LOCAL, "--port", str(port)]
    if kind in SELF_CONTAINED:
        return [sys.executable, "-m", *SELF_CONTAINED[kind], str(port)]
    return [sys.executable, "-m", "tests.bench.origins", kind, str(port)]


def echo_streams(port: int) -> None:
    """Send back what every connection sends; an echo is short, so send never has to wait."""
    poll = select.epoll()
    listening = socket.create_server((LOCAL, port), backlog=BACKLOG)
    poll.register(listening, select.EPOLLIN)
    streams: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listening.fileno():
                stream, _ = listening.accept()
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                streams[stream.fileno()] = stream
                poll.register(stream, select.EPOLLIN)
            elif not _echo(streams[fd]):
                streams.pop(fd).close()


def echo_datagrams(port: int) -> None:
    """Send back every datagram; all are expected to have the length of ``PAYLOAD``."""
    libc = ctypes.CDLL(None)
    array = MessageArray()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((LOCAL, port))
        fd = udp.fileno()
        while True:
            count = libc.recvmmsg(fd, array.messages, BATCH, MSG_WAITFORONE, None)
            if count > 0:
                libc.sendmmsg(fd, array.messages, count, 0)


class IoVec(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Header(ctypes.Structure):
    """``struct msghdr``."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vector", ctypes.POINTER(IoVec)),
        ("vector_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Message(ctypes.Structure):
    """``struct mmsghdr``."""

    _fields_ = (("header", Header), ("length", ctypes.c_uint32))


class MessageArray:
    """Room for ``BATCH`` datagrams with their addresses."""

    def __init__(self) -> None:
        self.names = ctypes.create_string_buffer(BATCH * 16)
        self.data = ctypes.create_string_buffer(BATCH * len(PAYLOAD))
        self.vectors = (IoVec * BATCH)()
        self.messages = (Message * BATCH)()
        for index, (vector, message) in enumerate(zip(self.vectors, self.messages, strict=True)):
            vector.base = ctypes.addressof(self.data) + index * len(PAYLOAD)
            vector.length = len(PAYLOAD)
            header = message.header
            header.name = ctypes.addressof(self.names) + index * 16
            header.name_length = 16  # sizeof(struct sockaddr_in)
            header.vector = ctypes.pointer(vector)
            header.vector_length = 1


def _echo(stream: socket.socket) -> bool:
    try:
        data = stream.recv(65536)
        if data:
            stream.sendall(data)
    except OSError:
        return False
    return bool(data)


if __name__ == "__main__":
    echo = {"tcp": echo_streams, "udp": echo_datagrams}[sys.argv[1]]
    echo(int(sys.argv[2]))
