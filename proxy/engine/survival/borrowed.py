"""Descriptors that are only numbers here: a socket object lends them its methods, and no more."""

from __future__ import annotations

from contextlib import contextmanager
from socket import socket as Socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def borrowed(fd: int) -> Iterator[Socket]:
    """A socket on a descriptor that stays open whatever happens.

    Raises:
        OSError: it is none.

    """
    socket = Socket(fileno=fd)
    try:
        yield socket
    finally:
        socket.detach()
