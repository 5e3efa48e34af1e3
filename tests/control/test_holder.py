"""Who has a port that cannot be bound is named, if it is a process of ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, SOCK_DGRAM
from socket import socket as Socket

import pytest

from proxy.control.holder import explained, holder_of
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
