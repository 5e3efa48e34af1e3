"""Clients and endpoints that run inside the machine, with its own Python alone.

* ``echo PORT``: echo TCP and UDP on 127.0.0.1, until killed.
* ``tcp PORT TEXT``, ``udp PORT TEXT``: say it, print what comes back.
* ``bulk PORT MIB``: send so much, print how many bytes of it came back right.
* ``knock PORT SECONDS``: connect and say something again and again; print the outcomes, counted.
* ``stay PORT SECONDS``: the same over one connection, or until SIGTERM; print the answers, counted.
* ``query PORT SECONDS``: the same by datagrams of one socket, each of which must be answered.
* ``converse SECONDS PREFIX COMMAND...``: say a line of random words after a prefix to a program
  that is to say these words back, again and again; print the bytes that came back right. In the
  end the program is told that there is no more, and its exit status is ours.
* ``hoard PORT COUNT``: open flows, one after the other, send all that they take, read nothing, and
  hold them until something is cut, or all are open; print which.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

HOST = "127.0.0.1"
PATIENCE = 30

LONGEST = 1 << 13
"""Bytes of a line, before they are written as digits; pipes take it whole."""

OVER = threading.Event()
"""SIGTERM has come."""


def echo(port: str) -> None:
    threading.Thread(target=echo_datagrams, args=(int(port),), daemon=True).start()
    with socket.create_server((HOST, int(port))) as listening:
        while True:
            client, _ = listening.accept()
            threading.Thread(target=echo_stream, args=(client,), daemon=True).start()


def echo_stream(client: socket.socket) -> None:
    with client:
        while data := client.recv(65536):
            client.sendall(data)


def echo_datagrams(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((HOST, port))
        while True:
            data, client = bound.recvfrom(65536)
            bound.sendto(data, client)


def ask(kind: int, port: str, text: str) -> str:
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(PATIENCE)
        client.connect((HOST, int(port)))
        client.sendall(text.encode())
        return client.recv(65536).decode()


def tcp(port: str, text: str) -> None:
    print(ask(socket.SOCK_STREAM, port, text))


def udp(port: str, text: str) -> None:
    print(ask(socket.SOCK_DGRAM, port, text))


def bulk(port: str, mebibytes: str) -> None:
    data = bytes(range(256)) * 8192
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        client.connect((HOST, int(port)))

        def send() -> None:
            for _ in range(int(mebibytes)):
                client.sendall(data[: 1 << 20])
            client.shutdown(socket.SHUT_WR)

        threading.Thread(target=send, daemon=True).start()
        came = 0
        while part := client.recv(1 << 20):
            offset = came % 256
            assert part == data[offset : offset + len(part)]
            came += len(part)
    print(came)


def knock(port: str, seconds: str) -> None:
    end = time.monotonic() + float(seconds)
    outcomes: Counter[str] = Counter()
    while time.monotonic() < end:
        try:
            outcomes["served" if ask(socket.SOCK_STREAM, port, "x") == "x" else "cut off"] += 1
        except OSError as error:
            outcomes[type(error).__name__] += 1
        threading.Event().wait(0.005)
    print(*(f"{word}={number}" for word, number in outcomes.items()))


def stay(port: str, seconds: str) -> None:
    end = time.monotonic() + float(seconds)
    answers = 0
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        client.connect((HOST, int(port)))
        while time.monotonic() < end and not OVER.is_set():
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            answers += 1
            threading.Event().wait(0.02)
    print(f"answers={answers}")


def query(port: str, seconds: str) -> None:
    end = time.monotonic() + float(seconds)
    answers = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect((HOST, int(port)))
        while time.monotonic() < end and not OVER.is_set():
            word = f"x{answers}".encode()
            client.send(word)
            assert client.recv(100) == word
            answers += 1
            threading.Event().wait(0.02)
    print(f"answers={answers}")


def converse(seconds: str, prefix: str, *command: str) -> None:
    end = time.monotonic() + float(seconds)
    carried = 0
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        while time.monotonic() < end:
            words = random.randbytes(random.randrange(1, LONGEST)).hex()
            program.stdin.write(f"{prefix}{words}\n")
            answer = program.stdout.readline()
            assert answer == f"{words}\n", f"{len(answer)} for {len(words)}: {answer[:80]!r}"
            carried += len(answer)
            threading.Event().wait(0.005)
    print(f"carried={carried}")
    sys.exit(program.returncode)


def look(client: socket.socket) -> None:
    """Raise ConnectionError if a connection was cut since; it may have been while another sent."""
    error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise ConnectionResetError(error, os.strerror(error))


def hoard(port: str, count: str) -> None:
    data = bytes(1 << 20)
    held: list[socket.socket] = []
    for _ in range(int(count)):
        client = socket.socket()
        client.settimeout(PATIENCE)
        held.append(client)
        try:
            look(held[0])
            client.connect((HOST, int(port)))
            client.settimeout(0.01)
            while True:
                client.send(data)
        except TimeoutError:
            continue
        except ConnectionError as error:
            print(f"cut after {len(held)}: {type(error).__name__}")
            return
    print(f"open={len(held)}")
    threading.Event().wait(PATIENCE)


if __name__ == "__main__":
    if sys.argv[1] in {"stay", "query"}:
        signal.signal(signal.SIGTERM, lambda *_: OVER.set())
    globals()[sys.argv[1]](*sys.argv[2:])
