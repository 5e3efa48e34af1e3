"""Files that an operator names: read whole, bounded, as UTF-8; nothing blocks for ever.

A file may be missing, a directory, a pipe that nobody writes to, binary or endless: each of them is
an error with a message, at a line where there is one.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable
from time import monotonic
from typing import Final

from proxy.core.units import format_size

STDIN: Final = "-"

PIPE_WAIT: Final = 10.0
"""Seconds for all that a pipe brings: ``-c <(command)`` gives the command that long."""

_CHUNK: Final = 65536


class FileError(Exception):
    """Not a text that could be meant; at a line, or 0.

    Attributes:
        line: where it is wrong; 0 where it is as a whole.

    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def read_text(path: str, most: int) -> str:
    """Read an ordinary file or a pipe; ``-`` is standard input.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        FileError: it cannot be read, or is no such text.

    """
    try:
        data = _read_stdin(most) if path == STDIN else _read_file(path, most)
    except OSError as exc:
        reason = (exc.strerror or "unknown error").lower()
        raise FileError(f"cannot be read: {reason}") from exc
    return _decode(data)


def _read_file(path: str, most: int) -> bytes:
    """Read an ordinary file or a pipe; O_NONBLOCK, so that one without a writer cannot hold us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError as exc:
        raise FileError("is not the name of a file") from exc
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode):
            return _read_pipe(fd, most)
        if not stat.S_ISREG(mode):
            raise FileError("is not an ordinary file, nor a pipe")
        return _read_bounded(lambda: os.read(fd, _CHUNK), most)
    finally:
        os.close(fd)


def _read_pipe(fd: int, most: int) -> bytes:
    """Read until the last writer has gone, or for as long as we wait.

    A pipe without a writer reads as ended, also when its writer has yet to come; so the end counts
    once something has come, or once poll has seen a writer leave. See pipe(7), poll(2).
    """
    deadline = monotonic() + PIPE_WAIT
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    begun = False

    def read() -> bytes:
        nonlocal begun
        while True:
            try:
                chunk = os.read(fd, _CHUNK)
            except BlockingIOError:
                chunk = None
            if chunk or (chunk is not None and begun):
                begun = True
                return chunk
            ready = poll.poll(max(0.0, deadline - monotonic()) * 1000)
            if not ready:
                raise FileError(f"is a pipe that did not end within {PIPE_WAIT:g} s")
            begun = begun or bool(ready[0][1] & select.POLLHUP)

    return _read_bounded(read, most)


def _read_stdin(most: int) -> bytes:
    if sys.stdin is None:  # the parent closed it
        raise FileError("cannot be read: it is closed")
    return _read_bounded(lambda: sys.stdin.buffer.read(_CHUNK), most)


def _read_bounded(read: Callable[[], bytes], most: int) -> bytes:
    data = bytearray()
    while chunk := read():
        data += chunk
        if len(data) > most:
            raise FileError(f"is larger than {format_size(most)}: is it the right file?")
    return bytes(data)


def _decode(data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        raise FileError("starts with a byte order mark; save it as UTF-8 without one", 1)
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        found = f"byte 0x{data[exc.start]:02x} is not UTF-8"
        raise FileError(f"{found}; save the file as UTF-8", line) from exc
