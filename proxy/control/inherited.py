"""Listening sockets that were open before we were: from the service manager.

They come from two places. A socket unit has made them for us (socket activation), under a name
that an operator chose. Or an earlier life of ours had them stored, under a name of our own with
``STORED`` before it, which no listener's name can contain.

Ends of succession channels, see ``engine.handover.succession``, come from the store, too.

Whoever starts a process may hand it anything, so nothing here is believed: what is not a listening
socket of a kind we know is closed, and told. It never keeps us from starting.

Source: sd_listen_fds(3), systemd.socket(5) FileDescriptorName=.
"""

from __future__ import annotations

import os
import stat
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_MPTCP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    SO_ACCEPTCONN,
    SO_DOMAIN,
    SO_PROTOCOL,
    SO_TYPE,
    SOCK_DGRAM,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
)
from socket import socket as Socket
from typing import Final, NamedTuple

from proxy.control.unix import SocketFile, UnixListenSocket
from proxy.core.address import Transport, format_address
from proxy.core.unix import UnixAddress

FIRST_FILE: Final = 3
"""SD_LISTEN_FDS_START: the first after standard error."""

MOST_FILES: Final = 4096
"""More than any unit may store; a number beyond it is a mistake, and would be a long loop."""

STORED: Final = "kept/"
"""Begins the names of what we had stored ourselves; "/" is in no listener's name."""

CHANNEL: Final = "worker/"
"""Begins the names of succession channels; the process id of the worker follows."""

ADMIN_SOCKET: Final = "admin/socket"
ADMIN_HTTP: Final = "admin/http"
"""What the sockets of the admin are called; only a predecessor passes them."""

TRANSPORTS: Final[dict[tuple[int, int, int], Transport]] = {
    (AF_INET, SOCK_STREAM, IPPROTO_TCP): Transport.TCP,
    (AF_INET, SOCK_STREAM, IPPROTO_MPTCP): Transport.TCP,
    (AF_INET, SOCK_DGRAM, IPPROTO_UDP): Transport.UDP,
    (AF_INET6, SOCK_STREAM, IPPROTO_TCP): Transport.TCP,
    (AF_INET6, SOCK_STREAM, IPPROTO_MPTCP): Transport.TCP,
    (AF_INET6, SOCK_DGRAM, IPPROTO_UDP): Transport.UDP,
    (AF_UNIX, SOCK_STREAM, 0): Transport.UNIX,
    (AF_UNIX, SOCK_DGRAM, 0): Transport.UNIXGRAM,
}
"""What a socket carries, by its domain, type and protocol."""


@dataclass(frozen=True, slots=True, eq=False)
class Inherited:
    """A listening socket that was given to us.

    Attributes:
        name: as the service manager calls it.
        socket: non-blocking; owned by whoever holds this.
        transport: what it carries.

    """

    name: str
    socket: Socket
    transport: Transport

    @property
    def stored(self) -> bool:
        """Whether an earlier life of ours had it stored."""
        return self.name.startswith(STORED)

    @property
    def place(self) -> str:
        """Where it listens, as people write it."""
        address = self.socket.getsockname()
        if isinstance(address, UnixAddress):
            return str(address).replace("unix:", f"{self.transport}://", 1)
        return f"{self.transport}://{format_address(address)}"


class Channel(NamedTuple):
    """Our end of the succession channel of a worker that an earlier life of ours left behind.

    Attributes:
        name: as it is called in the store.
        end: owned by whoever holds this.

    """

    name: str
    end: Socket


@dataclass(slots=True)
class Inheritance:
    """All that was given to us.

    Attributes:
        sockets: that may serve.
        channels: to workers of an earlier life.
        admin: of the admin, by ``ADMIN_SOCKET`` or ``ADMIN_HTTP``.
        is_passed: whether a predecessor gives us all of it, which is still there.
        rejected: name, and what is wrong, of what may not; closed already.

    """

    sockets: list[Inherited] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    admin: dict[str, Socket] = field(default_factory=dict)
    is_passed: bool = False
    rejected: list[tuple[str, str]] = field(default_factory=list)


def take_inherited(environ: MutableMapping[str, str]) -> Inheritance:
    """Take what the service manager passed, and remove the variables, so that no child does.

    Descriptors of another process's variables are left alone: they are not what is meant.
    """
    pid, count, names = (
        environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    found = Inheritance()
    if not count or pid != str(os.getpid()):
        return found
    if not count.isdecimal() or int(count) > MOST_FILES:
        found.rejected.append(("LISTEN_FDS", f'"{count}" is no number of descriptors'))
        return found
    labels = names.split(":") if names else []
    for index in range(int(count)):
        name = labels[index] if index < len(labels) else "unknown"
        take(found, FIRST_FILE + index, name)
    return found


def take(found: Inheritance, fd: int, name: str) -> None:
    """Add a descriptor to an inheritance, by its name; or close it, and say why."""
    try:
        os.set_inheritable(fd, False)
        if name.startswith(CHANNEL):
            found.channels.append(Channel(name, _channel(fd)))
            return
        taken = _listening(fd, name)
    except (OSError, ValueError) as error:
        found.rejected.append((name, str(getattr(error, "strerror", None) or error)))
        with suppress(OSError):
            os.close(fd)
    else:
        if found.is_passed and name in {ADMIN_SOCKET, ADMIN_HTTP}:
            found.admin[name] = Socket(fileno=taken.socket.detach())
            found.admin[name].setblocking(False)
        else:
            found.sockets.append(taken)


def _channel(fd: int) -> Socket:
    """Make a socket of a descriptor that is an end of a succession channel.

    Raises:
        OSError: it is not open.
        ValueError: it is something else; the descriptor stays open.

    """
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise ValueError("is not a socket")
    with _Borrowed(fd) as socket:
        if (socket.family, socket.type) != (AF_UNIX, SOCK_SEQPACKET):
            raise ValueError("is no end of a succession channel")
    return Socket(fileno=fd)


def _listening(fd: int, name: str) -> Inherited:
    """Make a socket of a descriptor.

    Raises:
        OSError: it is not open.
        ValueError: it is no listening socket of a kind that we know; the descriptor stays open.

    """
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise ValueError("is not a socket")
    with _Borrowed(fd) as socket:
        kind = tuple(
            socket.getsockopt(SOL_SOCKET, key) for key in (SO_DOMAIN, SO_TYPE, SO_PROTOCOL)
        )
        transport = TRANSPORTS.get((kind[0], kind[1], kind[2]))
        if transport is None:
            raise ValueError(
                f"is a socket of domain {kind[0]}, type {kind[1]}; TCP, UDP or Unix fit"
            )
        if kind[1] == SOCK_STREAM and not socket.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
            raise ValueError('does not listen; a socket unit needs "Accept=no"')
        if not transport.is_unix and not socket.getsockname()[1]:
            raise ValueError("is not bound to a port")
    made = _unix(fd, name) if transport.is_unix else Socket(fileno=fd)
    made.setblocking(False)
    return Inherited(name, made, transport)


def _unix(fd: int, name: str) -> UnixListenSocket:
    """A Unix socket. Its file is the socket unit's; or ours, if an earlier life had it stored.

    Raises:
        OSError: its file is gone, so that nobody could come; the descriptor stays open.

    """
    made = UnixListenSocket(fileno=fd)
    path = made.getsockname().name
    try:
        if name.startswith(STORED) and path.startswith("/"):
            made.file = SocketFile.at(path)
    except OSError:
        made.detach()
        raise
    return made


class _Borrowed:
    """A socket object that leaves its descriptor open."""

    def __init__(self, fd: int) -> None:
        self._socket = Socket(fileno=fd)

    def __enter__(self) -> Socket:
        return self._socket

    def __exit__(self, *_: object) -> None:
        self._socket.detach()
