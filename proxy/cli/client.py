"""The command's line to a running sockpair: HTTP over its admin Unix socket, synchronous.

Strategy: the standard library's HTTP client with another way to connect; a command asks a question
or two and ends, so there is no need for Trio, nor for the server's HTTP.

Invariants: every wait is bounded; whatever goes wrong becomes one message that names
the socket and says what to start or do (exit code 1), or, when the question itself was wrong, how
to ask it (exit code 2).
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlencode

import click

from proxy.observe.media import MATCHED, NDJSON, SILENT

DEFAULT_ADMIN: Final = "/run/sockpair/admin.sock"

TIMEOUT: Final = 35.0
"""Seconds for one answer; the server gives up after 30 and says so."""

CONFLICT: Final = 409
"""The answer to a reload that was refused, with every problem."""

NO_HEADERS: Final[Mapping[str, str]] = {}

FOUND_BY: Final = {"address": "'[ADDR:]PORT'", "port": "'[ADDR:]PORT'"}
"""The API's parameters that are one argument on the command line."""

_ADDRESS: Final = re.compile(r"[a-z]+://.*|[^/]*:[0-9]+")
"""What somebody writes who thinks of the HTTP port."""

Command = TypeVar("Command", bound=Callable[..., Any])


class NotThereError(click.ClickException):
    """What was named does not exist."""


def admin_option(command: Command) -> Command:
    """Give a command the option ``--admin``."""
    return click.option(
        "--admin",
        metavar="PATH",
        envvar="SOCKPAIR_ADMIN",
        default=DEFAULT_ADMIN,
        show_default=True,
        show_envvar=True,
        callback=_checked_path,
        help="Admin socket of the running sockpair.",
    )(command)


def _checked_path(_context: click.Context, _option: click.Parameter, path: str) -> str:
    if not path:
        raise click.BadParameter("it is empty; name the path of the admin socket")
    if _ADDRESS.fullmatch(path) and not Path(path).exists():
        example = f'expected the path of a Unix socket, such as "{DEFAULT_ADMIN}"'
        raise click.BadParameter(f'"{path}" is an address; {example}')
    return path


class Rows(NamedTuple):
    """Rows, each a line of JSON.

    Attributes:
        text: the lines.
        matched: how many there would be without a limit.
        silent: workers that do not answer, whose rows are missing.

    """

    text: str
    matched: int
    silent: list[int]


class AdminClient:
    """Asks the sockpair behind one admin socket.

    Args:
        path: of the Unix socket.
        timeout: seconds until an answer has to come.

    """

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout

    def get(self, path: str, params: Mapping[str, object] | None = None) -> Any:
        """Ask for something; parameters that are None are left out.

        Raises:
            click.ClickException: nobody answers, or the answer is an error.

        """
        return self._ask("GET", path, params or {})

    def delete(self, path: str, params: Mapping[str, object] | None = None) -> Any:
        """End what the path and the parameters name; raises as ``get`` does."""
        return self._ask("DELETE", path, params or {})

    def post(self, path: str, params: Mapping[str, object] | None = None) -> Any:
        """Have something done; raises as ``get`` does, but a conflict (409) is an answer."""
        return self._ask("POST", path, params or {})

    def follow(
        self, path: str, params: Mapping[str, object] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Give each line of an answer that goes on, as the JSON object that it is.

        Raises:
            click.ClickException: as ``get``; or the answer has ended.

        """
        with self._answer("GET", path, params or {}) as answer:
            if answer.status >= 400:
                _value(answer.status, answer.read())
            while line := answer.readline():
                yield json.loads(line)
        raise click.ClickException(f"{self.path}: sockpair has ended, or let go of us")

    def lines(self, path: str, params: Mapping[str, object] | None = None) -> Rows:
        """Ask for rows, each as a line of JSON. Raises as ``get``.

        Who only passes them on has no use for reading them first.
        """
        with self._answer("GET", path, params or {}, {"Accept": NDJSON}) as answer:
            body = answer.read()
            if answer.status >= 400:
                _value(answer.status, body)
            silent = answer.headers.get(SILENT, "").split(",")
            matched = int(answer.headers.get(MATCHED, ""))
            return Rows(body.decode(), matched, [int(index) for index in silent if index])

    def _ask(self, method: str, path: str, params: Mapping[str, object]) -> Any:
        with self._answer(method, path, params) as answer:
            return _value(answer.status, answer.read())

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        params: Mapping[str, object],
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Iterator[HTTPResponse]:
        """Ask, and translate what goes wrong until the answer has been read."""
        query = urlencode({name: value for name, value in params.items() if value is not None})
        connection = _UnixConnection(self.path, self._timeout)
        try:
            asked = f"{path}?{query}" if query else path
            connection.request(method, asked, headers={**headers})
            yield connection.getresponse()
        except OSError as exc:
            raise click.ClickException(self._advice(exc)) from exc
        except (HTTPException, ValueError) as exc:
            message = f"{self.path} does not speak like sockpair's admin socket: {exc!r}"
            raise click.ClickException(message) from exc
        finally:
            connection.close()

    def _advice(self, exc: OSError) -> str:
        """What went wrong with the socket, and what to do."""
        elsewhere = "name its socket with --admin PATH or SOCKPAIR_ADMIN=PATH"
        start = 'start it with "sockpair run -c FILE"'
        if isinstance(exc, FileNotFoundError):
            nobody = f"sockpair is not running here; {start}, or {elsewhere}"
            removed = 'if it runs ("ss -xl | grep sockpair" shows its sockets), this was removed'
            return f"{self.path} does not exist: {nobody}; {removed}: a restart makes it anew"
        if isinstance(exc, ConnectionRefusedError) and not Path(self.path).is_socket():
            return f"{self.path} is not a socket: {elsewhere}"
        if isinstance(exc, ConnectionRefusedError):
            return f"{self.path} is left over, nobody listens there: {start}, or {elsewhere}"
        if isinstance(exc, PermissionError):
            return f"{self.path} may not be opened by this user: be root, or of the socket's group"
        if isinstance(exc, TimeoutError):
            late = f"no answer within {self._timeout:g} s"
            return f"{self.path}: {late}; the log of sockpair may tell why"
        return f"{self.path}: {exc.strerror or exc}"


class _UnixConnection(HTTPConnection):
    """HTTP whose connection is a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _value(status: int, body: bytes) -> Any:
    value = json.loads(body)
    if status < 400 or status == CONFLICT:
        return value
    message = value["error"] if isinstance(value, dict) and "error" in value else f"HTTP {status}"
    if status == 400:
        raise _wrong_question(value, message)
    raise NotThereError(message) if status == 404 else click.ClickException(message)


def _wrong_question(answer: Any, message: str) -> click.UsageError:
    """Name the option or argument that was wrong, not the parameter of the API that it became."""
    if not (isinstance(answer, dict) and "parameter" in answer and "reason" in answer):
        return click.UsageError(message)
    return click.BadParameter(answer["reason"], param_hint=_as_written(answer["parameter"]))


def _as_written(name: str) -> str:
    """What a parameter of the API is called on the command line."""
    context = click.get_current_context()
    for param in context.command.params:
        if param.name == name:
            return param.get_error_hint(context)
    return FOUND_BY.get(name, f"'--{name.replace('_', '-')}'")
