"""Standard output that somebody has closed, or that is full: one way to fail, for every command.

Strategy: while a command runs, what stands for ``sys.stdout`` turns an ``OSError`` of writing into
``OutputError``, so that it cannot be taken for any other trouble; the command ends in order, and
``ending_in_order`` says so. A pipe whose reader has left (``sockpair flows | head -1``) is not
worth a word; a full disk is one line on standard error. Either way the exit code is 1.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

import click


class OutputError(Exception):
    """Standard output takes no more; the cause is the ``OSError``."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.errno = cause.errno


class _Output:
    """A text stream whose writing fails as ``OutputError``; in all else it is that stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as exc:
            raise OutputError(exc) from exc

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as exc:
            raise OutputError(exc) from exc


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Run a command in here; when standard output fails it, exit with 1 and no traceback."""
    stream = sys.stdout
    sys.stdout = _Output(stream)
    try:
        yield
    except OutputError as exc:
        _exit(stream, exc)
    except BaseExceptionGroup as group:  # of a command that runs tasks
        failed, rest = group.split(OutputError)
        if failed is None or rest is not None:
            raise
        _exit(stream, _first(failed))
    finally:
        sys.stdout = stream


def _first(group: BaseExceptionGroup[OutputError]) -> OutputError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _exit(stream: TextIO, error: OutputError) -> NoReturn:
    """Tell why, and see to it that the interpreter's last flush has somewhere to go."""
    if error.errno != errno.EPIPE:
        with suppress(OSError):
            click.echo(f"sockpair: standard output: {error}", err=True)
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    sys.exit(1)
