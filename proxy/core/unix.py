"""Addresses of Unix sockets, and who is at their other end.

The kernel knows three kinds: a path; an *abstract* name, which has no file and begins with a NUL;
and none at all, which is what most clients have. Inside, an address is its name as the kernel has
it, with port 0, so that it has the form of an IPv4 address wherever that is enough (an index, a
comparison). People write ``unix:/run/x.sock``, ``unix:@name``, and ``unix:`` for no name.

A name is bytes to the kernel, and whoever binds it chooses them: undecodable ones are surrogates
here, and nothing that does not print reaches a reader.

Source: unix(7).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from proxy.core.printable import printable

UNIX: Final = "unix:"

UNKNOWN_SOURCE: Final = "uid:?"
"""The source of Unix clients whose credentials the kernel does not tell."""


class UnixAddress(NamedTuple):
    """The name of a Unix socket: a path, a NUL and an abstract name, or nothing."""

    name: str
    port: int = 0

    def __str__(self) -> str:
        return UNIX + printable("@" + self.name[1:] if self.name[:1] == "\0" else self.name)


class Credentials(NamedTuple):
    """The process at the other end, as the kernel saw it when the flow began.

    Numbers are those of our own namespaces; a pid is 0 when it has none there.
    """

    pid: int
    uid: int
    gid: int

    @property
    def source(self) -> str:
        """The source that a client of this user belongs to."""
        return f"uid:{self.uid}"


UNNAMED: Final = UnixAddress("")


def unix_address(written: str) -> UnixAddress:
    """The address of a path, or of an abstract name that is written ``@name``."""
    return UnixAddress("\0" + written[1:] if written.startswith("@") else written)


def parse_unix_address(text: str) -> UnixAddress:
    """Read ``unix:/path``, ``unix:@name`` or ``unix:``; also as a URL, ``unix:///path``.

    Raises:
        ValueError: it does not begin with ``unix:``.

    """
    if not text.startswith(UNIX):
        raise ValueError(f'"{text}" is not the address of a Unix socket, such as "unix:/run/x"')
    return unix_address(text.removeprefix(UNIX).removeprefix("//"))


def listening_url(transport: str, local: str) -> str:
    """Where a listener listens, as the configuration writes it.

    Args:
        transport: its transport, which is the scheme.
        local: its address as the table writes it, ``192.0.2.1:80`` or ``unix:/path``.

    """
    return f"{transport}://{local.removeprefix('unix:')}"
