"""Who has a port that cannot be bound is named, if it is a process of ours."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SOCK_DGRAM,
    SOCK_STREAM,
)
from socket import socket as Socket

import pytest

from proxy.control.holder import explained, holder_of, in_the_way
from proxy.control.listen import BindError

OTHER = 1


@pytest.fixture(params=[(AF_INET, "127.0.0.1"), (AF_INET6, "::1")], ids=["v4", "v6"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a socket of this process listens."""
    family, host = request.param
    with Socket(family, SOCK_DGRAM) as socket:
        socket.bind((host, 0))
        shown = f"[{host}]" if ":" in host else host
        yield f"udp://{shown}:{socket.getsockname()[1]}"


def test_it_is_found_among_several(url: str) -> None:
    assert holder_of(url, [OTHER, os.getpid()]) == os.getpid()
    assert holder_of(url, [OTHER]) is None
    assert holder_of(url.replace("udp", "tcp"), [os.getpid()]) is None
    assert holder_of("unixgram:///run/a", [os.getpid()]) is None


def failed(url: str, number: int) -> BindError:
    cause = OSError(number, os.strerror(number))
    error = BindError("listener.dns", url, cause)
    error.__cause__ = cause
    return error


def test_the_error_says_whom_to_wait_for(url: str) -> None:
    error = explained(failed(url, errno.EADDRINUSE), [os.getpid()])
    assert str(error) == (
        f"listener.dns: cannot listen on {url}: process {os.getpid()}, of an earlier life, serves "
        'its last flows by this port; wait for its end ("sockpair status" shows it), or choose '
        "another port"
    )


@pytest.mark.parametrize(
    ("number", "pid"), [(errno.EADDRINUSE, OTHER), (errno.EACCES, os.getpid())]
)
def test_another_error_is_as_it_was(url: str, number: int, pid: int) -> None:
    error = failed(url, number)
    assert explained(error, [pid]) is error


def inode_of(socket: Socket) -> int:
    return os.fstat(socket.fileno()).st_ino


@contextmanager
def held(*others: Socket) -> Iterator[int]:
    """A process that has these sockets, which are closed here; its pid."""
    files = [other.fileno() for other in others]
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=files) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for other in others:
            other.close()
        yield process.pid
        process.communicate()


def free_port(kind: int) -> int:
    """A port that nobody has at any address, and that the kernel gives to nobody."""
    for port in range(20_000 + os.getpid() % 5_000, 32_000):
        with Socket(AF_INET6, kind) as socket, suppress(OSError):
            socket.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 0)
            socket.bind(("::", port))
            return port
    raise LookupError("there is no such port")


def bound(scheme: str, host: str, port: int = 0) -> tuple[str, Socket]:
    """A socket that takes clients, and its URL."""
    kind = SOCK_STREAM if scheme == "tcp" else SOCK_DGRAM
    socket = Socket(AF_INET6 if ":" in host else AF_INET, kind)
    socket.bind((host, port or free_port(kind)))
    if scheme == "tcp":
        socket.listen()
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{socket.getsockname()[1]}", socket


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("has", "wants"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("::1", "::1"),
        ("::", "127.0.0.1"),
        ("127.0.0.1", "::"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_who_has_an_address_is_in_the_way(scheme: str, has: str, wants: str) -> None:
    _, socket = bound(scheme, has)
    port = socket.getsockname()[1]
    shown = f"[{wants}]" if ":" in wants else wants
    error, inode = failed(f"{scheme}://{shown}:{port}", errno.EADDRINUSE), inode_of(socket)
    with held(socket) as pid:
        assert in_the_way(error, [OTHER, pid], []) == {pid}
        assert in_the_way(error, [os.getpid()], []) == set(), "a stranger has it"
        assert in_the_way(error, [pid], [inode]) == set(), "it is ours by now"
        assert in_the_way(failed(error.value, errno.EACCES), [pid], []) == set()


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_nobody_ends_for_another_address_or_port(scheme: str) -> None:
    _, socket = bound(scheme, "127.0.0.1")
    port = socket.getsockname()[1]
    with held(socket) as pid:
        for other in (f"{scheme}://127.0.0.2:{port}", f"{scheme}://127.0.0.1:{port - 1}"):
            assert in_the_way(failed(other, errno.EADDRINUSE), [pid], []) == set()


def test_nobody_ends_while_a_stranger_is_in_the_way_too() -> None:
    _, theirs = bound("tcp", "127.0.0.1")
    port = theirs.getsockname()[1]
    _, stranger = bound("tcp", "127.0.0.2", port)
    error = failed(f"tcp://0.0.0.0:{port}", errno.EADDRINUSE)
    with held(theirs) as pid:
        assert in_the_way(error, [pid], []) == set()
        stranger.close()
        assert in_the_way(error, [pid], []) == {pid}


def test_a_flow_by_an_address_is_not_in_the_way() -> None:
    url, listening = bound("tcp", "127.0.0.1")
    with Socket(AF_INET, SOCK_STREAM) as client:
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with listening, held(accepted) as pid:
            assert in_the_way(failed(url, errno.EADDRINUSE), [pid], []) == set()


@pytest.mark.parametrize(("scheme", "kind"), [("unix", SOCK_STREAM), ("unixgram", SOCK_DGRAM)])
@pytest.mark.parametrize("is_abstract", [False, True])
def test_who_has_a_unix_socket_is_in_the_way(
    tmp_path: Path, scheme: str, kind: int, is_abstract: bool
) -> None:
    path = str(tmp_path / "a socket")
    socket = Socket(AF_UNIX, kind)
    socket.bind(f"\0{path}" if is_abstract else path)
    if kind == SOCK_STREAM:
        socket.listen()
    error = failed(f"{scheme}://{'@' * is_abstract}{path}", errno.EADDRINUSE)
    with held(socket) as pid:
        assert in_the_way(error, [pid], []) == {pid}
        assert in_the_way(error, [OTHER, os.getpid()], []) == set()
        assert in_the_way(failed(f"{error.value}x", errno.EADDRINUSE), [pid], []) == set()
