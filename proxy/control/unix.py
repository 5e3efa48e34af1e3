"""Listening Unix sockets and their files.

A file outlives its socket, so a start finds what an earlier run left. Only a file that no socket
has any more is replaced: a datagram socket is tried on it, which is refused (ECONNREFUSED) when
nobody has it, and is told EPROTOTYPE by a stream socket, also by one that is not listening yet; so
asking disturbs nobody. At the end a file is removed if it is still the one we made.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_STREAM
from socket import socket as Socket
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.unix import unix_address
from proxy.engine.unix import BoundUnixSocket

if TYPE_CHECKING:
    from proxy.config.values import ListenAddress

UNCHANGED: Final = -1  # chown(2)


class SocketFile(NamedTuple):
    """The file of a socket of ours, by what tells it from another one at the same path."""

    path: str
    device: int
    inode: int

    @classmethod
    def at(cls, path: str) -> SocketFile:
        """The file that has just been made at this path."""
        status = os.lstat(path)
        return cls(path, status.st_dev, status.st_ino)

    def remove(self) -> None:
        """Remove the file, if it is still this one."""
        with suppress(OSError):  # the directory may be gone, or not ours any more
            if SocketFile.at(self.path) == self:
                Path(self.path).unlink()


class UnixListenSocket(BoundUnixSocket):
    """A listening Unix socket, and its file.

    Attributes:
        file: None for an abstract name. Closing leaves it where it is, since the socket may go on
            in another process.

    """

    file: SocketFile | None = None


def bind_unix(
    listen: ListenAddress,
    *,
    backlog: int,
    mode: int,
    owner: str | None = None,
    group: str | None = None,
) -> UnixListenSocket:
    """Bind one listening Unix socket; the caller owns it, and its file.

    Args:
        listen: transport and name.
        backlog: connections that may wait to be accepted (streams).
        mode: permissions of its file.
        owner: user who shall own the file, by name or number; None leaves it as it is.
        group: the same of its group.

    Raises:
        OSError: it could not be bound; nothing is left behind then.

    """
    datagrams = listen.transport.is_datagram
    socket = UnixListenSocket(AF_UNIX, (SOCK_DGRAM if datagrams else SOCK_STREAM) | SOCK_NONBLOCK)
    try:
        if listen.host.startswith("@"):
            socket.bind(os.fsencode(unix_address(listen.host).name))
        else:
            _bind_file(socket, listen.host, mode, _user(owner), _group(group))
        if not datagrams:
            socket.listen(backlog)
    except OSError:
        socket.close()
        if socket.file is not None:
            socket.file.remove()
        raise
    return socket


def socket_files(sockets: Iterable[Socket]) -> list[SocketFile]:
    """The files of those of these sockets that have one."""
    files = [socket.file for socket in sockets if isinstance(socket, UnixListenSocket)]
    return [file for file in files if file is not None]


def give_file(path: str, mode: int, owner: str | None, group: str | None) -> None:
    """Give a socket's file these permissions, and these owners; None leaves one as it is.

    Raises:
        OSError: it may not be done, or there is no such account.

    """
    _give(path, mode, _user(owner), _group(group))


def _give(path: str, mode: int, user: int, group: int) -> None:
    if (user, group) != (UNCHANGED, UNCHANGED):
        os.chown(path, user, group, follow_symlinks=False)
    Path(path).chmod(mode)


def remove_stale(path: str) -> None:
    """Remove a socket's file that no socket has any more.

    Raises:
        OSError: EADDRINUSE, somebody has it; ENOTSOCK, it is no socket; or why it cannot be known.

    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.ENOTSOCK, "there is something else than a socket")
    with Socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK) as probe:
        answer = probe.connect_ex(path)
    if answer == errno.ECONNREFUSED:
        Path(path).unlink(missing_ok=True)
    elif answer != errno.ENOENT:  # somebody has just removed it
        number = errno.EACCES if answer == errno.EACCES else errno.EADDRINUSE
        raise OSError(number, os.strerror(number))


def _bind_file(socket: UnixListenSocket, path: str, mode: int, user: int, group: int) -> None:
    remove_stale(path)
    # Bound without any permission, so that nobody can slip in before owner and mode are right.
    before = os.umask(0o777)
    try:
        socket.bind(path)
    finally:
        os.umask(before)
    socket.file = SocketFile.at(path)
    _give(path, mode, user, group)


def user_numbers(names: Iterable[str]) -> frozenset[int]:
    """The numbers of these users.

    Raises:
        OSError: EINVAL, there is no such user.

    """
    return frozenset(map(_user, names))


def _user(name: str | None) -> int:
    return _number(name, "user", lambda known: pwd.getpwnam(known).pw_uid)


def _group(name: str | None) -> int:
    return _number(name, "group", lambda known: grp.getgrnam(known).gr_gid)


def _number(name: str | None, kind: str, look_up: Callable[[str], int]) -> int:
    """The number of an account."""
    if name is None:
        return UNCHANGED
    if name.isdecimal():
        return int(name)
    try:
        return look_up(name)
    except KeyError:
        raise OSError(errno.EINVAL, f'there is no {kind} "{name}"') from None
