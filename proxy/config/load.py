"""From a file to a configuration, or to every problem it has.

``load`` and ``parse`` return a legal ``Config`` or raise ``ConfigError``, whatever the file is:
missing, a directory, a pipe that nobody writes to, binary, endless, nested too deep. Nothing else
is raised and nothing blocks for ever. What is legal and yet hardly meant goes to ``warn``.

Three stages, each of which needs the one before: the bytes (a file or pipe, bounded, UTF-8), the
syntax (tomli stops at the first error, so there is one problem), and the meaning (all problems).
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final

import tomli
from pydantic import ValidationError

from proxy.config.locate import locate
from proxy.config.messages import MISSING, explain, meant_path
from proxy.config.model import Config
from proxy.config.problem import PROBLEMS_MAX, ConfigError, Problem, dotted

__all__ = ["DEFAULT_FILE", "ConfigError", "Problem", "load", "parse"]

DEFAULT_FILE: Final = "/etc/sockpair/sockpair.toml"

STDIN: Final = "-"

SIZE_MAX: Final = 4 * 2**20
"""Bytes: 40,000 listeners; a larger file is some other file."""

PIPE_WAIT: Final = 10.0
"""Seconds for all that a pipe brings: ``-c <(command)`` gives the command that long."""

_CHUNK: Final = 65536


def load(path: str | os.PathLike[str], warn: Callable[[Problem], object] | None = None) -> Config:
    """Read a configuration file; ``-`` is standard input.

    Args:
        path: the file.
        warn: called with each warning, when the configuration is usable.

    Raises:
        ConfigError: with every problem of the file.

    """
    file = os.fspath(path)
    try:
        data = _read_stdin() if file == STDIN else _read_file(file)
        text = _decode(data)
    except OSError as exc:
        raise ConfigError([Problem(file, 0, "", f"cannot be read: {_reason(exc)}")]) from exc
    except _FileError as exc:
        raise ConfigError([Problem(file, exc.line, "", str(exc))]) from exc
    return parse(text, file, warn)


def parse(text: str, file: str, warn: Callable[[Problem], object] | None = None) -> Config:
    """Read a configuration from a text; ``file`` is what messages call it.

    Raises:
        ConfigError: with every problem of the text.

    """
    document = _syntax(text, file)
    try:
        config = Config.model_validate(document)
    except ValidationError as exc:
        raise ConfigError(_problems(exc, text, file)) from exc
    if warn is not None:
        for problem in _warnings(config, text, file):
            warn(problem)
    return config


class _FileError(Exception):
    """Not a text that could be a configuration."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def _read_file(path: str) -> bytes:
    """Read an ordinary file or a pipe; O_NONBLOCK, so that one without a writer cannot hold us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError as exc:
        raise _FileError("is not the name of a file") from exc
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode):
            return _read_pipe(fd)
        if not stat.S_ISREG(mode):
            raise _FileError(f'is not an ordinary file; "{STDIN}" reads standard input')
        return _read_bounded(lambda: os.read(fd, _CHUNK))
    finally:
        os.close(fd)


def _read_pipe(fd: int) -> bytes:
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
                raise _FileError(f"is a pipe that did not end within {PIPE_WAIT:g} s")
            begun = begun or bool(ready[0][1] & select.POLLHUP)

    return _read_bounded(read)


def _read_stdin() -> bytes:
    if sys.stdin is None:  # the parent closed it
        raise _FileError("cannot be read: it is closed")
    return _read_bounded(lambda: sys.stdin.buffer.read(_CHUNK))


def _read_bounded(read: Callable[[], bytes]) -> bytes:
    data = bytearray()
    while chunk := read():
        data += chunk
        if len(data) > SIZE_MAX:
            raise _FileError("is larger than 4 MiB: not a configuration?")
    return bytes(data)


def _decode(data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        raise _FileError("starts with a byte order mark; save it as UTF-8 without one", 1)
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        found = f"byte 0x{data[exc.start]:02x} is not UTF-8"
        raise _FileError(f"{found}; save the file as UTF-8", line) from exc


def _reason(exc: OSError) -> str:
    return (exc.strerror or "unknown error").lower()


def _syntax(text: str, file: str) -> dict[str, Any]:
    """Parse TOML; every way in which tomli refuses a text becomes a problem."""
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as exc:
        problem = Problem(file, exc.lineno, "", f"not valid TOML: {exc.msg} (column {exc.colno})")
    except RecursionError:
        problem = Problem(file, 0, "", "is nested too deep: a configuration needs 6 levels")
    except ValueError:  # of int(): more digits than Python converts
        problem = Problem(file, 0, "", "contains a number of thousands of digits")
    raise ConfigError([problem])


def _problems(error: ValidationError, text: str, file: str) -> Iterator[Problem]:
    places = locate(text)
    errors = error.errors(include_url=False)[:PROBLEMS_MAX]
    meant = {meant_path(details) for details in errors}
    for details in errors:
        if details["type"] in MISSING and details["loc"] in meant:
            continue  # it is there, misspelt, which is reported
        path, message = explain(details)
        yield Problem(file, places.nearest_line(path), dotted(path), message)
    if error.error_count() > PROBLEMS_MAX:
        yield Problem(file, 0, "", f"has more problems than the {PROBLEMS_MAX} that follow")


def _warnings(config: Config, text: str, file: str) -> Iterator[Problem]:
    places = locate(text)
    for name in config.unused_upstreams():
        path = ("upstream", name)
        message = "no listener forwards to it"
        yield Problem(file, places.nearest_line(path), dotted(path), message, is_warning=True)
