"""Unix sockets in the configuration: how they are written, and what is wrong between their keys.

A stream is ``unix:///run/x.sock``, datagrams are ``unixgram:///run/x.sock``, and an abstract name,
which has no file, is ``unix://@name``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final, TypeAlias

from proxy.config.problem import Path
from proxy.core.address import HostPort, Transport

Fault: TypeAlias = tuple[Path, str]

SOCKET_PATH_MAX: Final = 107
"""Bytes of ``sun_path`` beside its final NUL, or the first one of an abstract name: unix(7)."""

UNIX_PATTERN: Final = "unix(gram)?://[/@].+"

FILE_KEYS: Final = ("mode", "owner", "group")


class UnixEndpoint(HostPort):
    """An endpoint that is a Unix socket for streams; its host is a path, or ``@name``."""

    __slots__ = ()

    transport: ClassVar = Transport.UNIX

    def __str__(self) -> str:
        return f"{self.transport}://{self.host}"


class UnixgramEndpoint(UnixEndpoint):
    """An endpoint that is a Unix socket for datagrams."""

    __slots__ = ()

    transport: ClassVar = Transport.UNIXGRAM


def parse_unix_endpoint(text: str) -> UnixEndpoint | None:
    """Read ``"unix:///run/x.sock"`` or ``"unixgram://@name"``; None if it is neither.

    Raises:
        ValueError: what follows is no name that a socket can have.

    """
    for kind in (UnixEndpoint, UnixgramEndpoint):
        prefix = f"{kind.transport}://"
        if text.startswith(prefix):
            return kind(parse_socket_name(text.removeprefix(prefix), text), 0)
    return None


def parse_socket_name(name: str, text: str) -> str:
    """Read the name of a Unix socket, a part of ``text``.

    Raises:
        ValueError: it is neither an absolute path nor ``@name``, too long, or does not print.

    """
    if not (len(name) > 1 and name[0] in "/@" and name.isprintable()):
        expected = 'an absolute path, "unix:///run/x.sock", or an abstract name, "unix://@x"'
        raise ValueError(f'"{text}" names no Unix socket: expected {expected}')
    if len(name.removeprefix("@").encode()) > SOCKET_PATH_MAX:
        raise ValueError(f'"{text}" is too long: a socket\'s name has {SOCKET_PATH_MAX} bytes')
    return name


def parse_mode(text: str) -> int:
    """Read the permissions of a socket's file, ``"0660"``.

    Raises:
        ValueError: it is not three octal digits, with or without a 0 before them.

    """
    digits = text.removeprefix("0") if len(text) == 4 else text
    if len(digits) != 3 or not set(digits) <= set("01234567"):
        raise ValueError(f'"{text}" is not the mode of a file: expected octal digits, as "0660"')
    return int(digits, 8)


def unix_faults(
    name: str,
    listener: dict[str, Any],
    transport: Transport,
    host: str,
    endpoints: Iterable[HostPort | None],
) -> Iterator[Fault]:
    """Check a listener, at a Unix socket or not, against its upstream and its own keys.

    Args:
        name: of the listener.
        listener: its table.
        transport: what it speaks.
        host: the name of its socket, if it is a Unix socket.
        endpoints: those of its upstream; None for what could not be read.

    """
    path = ("listener", name)
    for endpoint in endpoints:
        if isinstance(endpoint, UnixEndpoint) and _differ(endpoint.transport, transport):
            message = f'takes {_kind(transport)}, and "{endpoint}" of its upstream'
            remedy = "name another upstream"
            yield (*path, "upstream"), f"{message} {_kind(endpoint.transport)}; {remedy}"
            break
    if transport.is_unix and host.startswith("@"):
        for key in FILE_KEYS:
            if key in listener:
                yield (
                    (*path, key),
                    "has no effect on an abstract name, which has no file; remove it",
                )


def _differ(one: Transport, other: Transport) -> bool:
    return one.is_datagram != other.is_datagram


def _kind(transport: Transport) -> str:
    return "datagrams" if transport.is_datagram else "streams"
