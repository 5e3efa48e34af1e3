"""The command's line to a running sockpair: HTTP over its admin Unix socket, synchronous.

Strategy: the standard library's HTTP client with another way to connect; a command asks a question
or two and ends, so there is no need for Trio, nor for the server's HTTP.

Invariants: every wait is bounded by ``TIMEOUT``; whatever goes wrong becomes one message that names
the socket and says what to start or do (exit code 1), or, when the question itself was wrong, how
to ask it (exit code 2).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import click

DEFAULT_ADMIN: Final = "/run/sockpair/admin.sock"

TIMEOUT: Final = 35.0
"""Seconds for one answer; the server gives up after 30 and says so."""

Command = TypeVar("Command", bound=Callable[..., Any])


def admin_option(command: Command) -> Command:
    """Give a command the option ``--admin``."""
    return click.option(
        "--admin",
        metavar="PATH",
        envvar="SOCKPAIR_ADMIN",
        default=DEFAULT_ADMIN,
        show_default=True,
        show_envvar=True,
        help="Admin socket of the running sockpair.",
    )(command)


class AdminClient:
    """Asks the sockpair behind one admin socket.

    Args:
        path: of the Unix socket.

    """

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, path: str, params: Mapping[str, object] | None = None) -> Any:
        """Ask for something; parameters that are None are left out.

        Raises:
            click.ClickException: nobody answers, or the answer is an error.

        """
        return self._ask("GET", path, params or {})

    def delete(self, path: str, params: Mapping[str, object] | None = None) -> Any:
        """End what the path and the parameters name; raises as ``get`` does."""
        return self._ask("DELETE", path, params or {})

    def _ask(self, method: str, path: str, params: Mapping[str, object]) -> Any:
        query = urlencode({name: value for name, value in params.items() if value is not None})
        connection = _UnixConnection(self.path)
        try:
            connection.request(method, f"{path}?{query}" if query else path)
            answer = connection.getresponse()
            return _value(answer.status, answer.read())
        except OSError as exc:
            raise click.ClickException(_advice(self.path, exc)) from exc
        except (HTTPException, ValueError) as exc:
            message = f"{self.path} does not speak like sockpair's admin socket: {exc!r}"
            raise click.ClickException(message) from exc
        finally:
            connection.close()


class _UnixConnection(HTTPConnection):
    """HTTP whose connection is a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def _value(status: int, body: bytes) -> Any:
    value = json.loads(body)
    if status < 400:
        return value
    message = value["error"] if isinstance(value, dict) and "error" in value else f"HTTP {status}"
    if status == 400:
        raise click.UsageError(message)
    raise click.ClickException(message)


def _advice(path: str, exc: OSError) -> str:
    """What went wrong with the socket, and what to do."""
    elsewhere = "name its socket with --admin PATH or SOCKPAIR_ADMIN=PATH"
    start = 'start it with "sockpair run -c FILE"'
    if isinstance(exc, FileNotFoundError):
        return f"{path} does not exist: sockpair is not running here; {start}, or {elsewhere}"
    if isinstance(exc, ConnectionRefusedError):
        return f"{path} is left over, nobody listens there: {start}, or {elsewhere}"
    if isinstance(exc, PermissionError):
        return f"{path} may not be opened by this user: be root, or of the socket's group"
    if isinstance(exc, TimeoutError):
        return f"{path}: no answer within {TIMEOUT:g} s; the log of sockpair may tell why"
    return f"{path}: {exc.strerror or exc}"
