"""Listening sockets: made and bound before anything runs, all of them or none.

Options that accepted sockets inherit (TCP_NODELAY, SO_OOBINLINE) are set here once, so that a flow
pays for none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_MPTCP,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_RCVBUF,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    SOMAXCONN,
    TCP_FASTOPEN,
)
from socket import socket as Socket
from typing import TYPE_CHECKING, Final

from proxy.control.outbound import OptionError, listener_marks
from proxy.control.steering import (
    Share,
    after_listen,
    before_bind,
    bind_group,
    grow_group,
    lone_reason,
    program_of,
)
from proxy.control.unix import (
    UnixListenSocket,
    bind_unix,
    give_file,
    remove_stale,
)
from proxy.core.address import HostPort, Transport
from proxy.engine.group import join_groups, only_joined_groups
from proxy.engine.marks import UNMARKED, MarkError, Marks
from proxy.engine.options import IN_LINE, NODELAY, SocketOptions, set_options, stream_options
from proxy.engine.sockaddr import IP_PKTINFO, IPV6_RECVPKTINFO, scoped
from proxy.engine.transparent import ask_for_original

if TYPE_CHECKING:
    from proxy.config.model import Listener
    from proxy.config.values import ListenAddress

ADMIN_BACKLOG: Final = 1024
"""Clients that wait to be accepted: who finds no place here tries again a second later."""
ADMIN_MODE: Final = 0o660
"""The owner and the group of the service may control it; others may not."""

REMEDIES: Final = {
    errno.EADDRINUSE: 'another program has it; "ss -lntup" tells which',
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: 'this host has no such address; "ip address" lists those it has',
    errno.EAFNOSUPPORT: "this host has no IPv6",
    errno.ENODEV: '"ip link" lists interfaces; a multicast group needs a route or an interface',
    errno.ENOPROTOOPT: "this kernel lacks one of the socket options that are set",
}

UNIX_REMEDIES: Final = {
    errno.EADDRINUSE: 'another process serves it; "ss -lxp" tells which',
    errno.EACCES: 'this user may not create it; name another path, or let root "mkdir {folder}"',
    errno.ENOENT: '"mkdir -p {folder}" makes its directory',
    errno.ENOTSOCK: "remove it, or name another path",
    errno.EPERM: "only root may give a file to another user, or to a group of others",
    errno.ENOTDIR: "{folder} is not a directory; name another path",
    errno.EROFS: "its file system is read-only; name another path",
}

DIRECTORY_MODE: Final = 0o750
"""Of a control socket's directory: who is of the group may reach the socket."""


class BindError(Exception):
    """A socket could not be bound. Its text is one line for people: place, value, remedy.

    Attributes:
        place: in the file.
        value: what is said there.

    """

    def __init__(
        self, place: str, value: str, error: OSError, deed: str = "cannot listen on"
    ) -> None:
        self.place, self.value = place, value
        remedy = _remedy(value, error.errno or 0)
        reason = f"{error.strerror}; {remedy}" if remedy else f"{error.strerror}"
        super().__init__(f"{place}: {deed} {value}: {reason}")


def _remedy(value: str, number: int) -> str | None:
    """What to do about an errno, where something is known; Unix sockets have their own advice."""
    path = value.removeprefix("unix://").removeprefix("unixgram://")
    if not path.startswith(("/", "@")):
        return REMEDIES.get(number)
    remedy = UNIX_REMEDIES.get(number)
    return remedy and remedy.format(folder=Path(path).parent)


def bind_listener(
    name: str, listener: Listener, workers: int = 1, beside: Sequence[Socket] = ()
) -> list[Socket]:
    """Bind the sockets of one listener; the caller owns them.

    There is one for each worker, in their order, which the caller keeps open as long as any of
    them; or a single one, where there is a ``lone_reason``.

    Args:
        name: of the listener.
        listener: what it is to be.
        workers: how many share it, if they can.
        beside: sockets of ours that are about to close, and may be in the way; of streams.

    Raises:
        BindError: it could not be bound.
        OptionError: the kernel refuses an option.

    """
    with option_errors(name, listener):
        if listener.listen.transport.is_unix:
            return [_bind_unix(listener)]
        try:
            return _bind_ip(listener, workers)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not beside:
                raise
        with _sharing(beside):
            return _bind_ip(listener, workers, beside=True)


def grow_listener(
    name: str, listener: Listener, members: Sequence[Socket], workers: int
) -> list[Socket]:
    """Bind further sockets of a listener, for workers that have none; the caller owns them.

    Args:
        name: of the listener.
        listener: what it is to be.
        members: the sockets that it has.
        workers: how many share it.

    Raises:
        BindError: one could not be bound; none is left open then.
        OptionError: the kernel refuses an option; the same.

    """
    with option_errors(name, listener):
        bind = partial(_bind_shared, listener, beside=False)
        program = program_of(listener, len(members))
        return grow_group(bind, listener.listen, members, workers, program)


@contextmanager
def option_errors(name: str, listener: Listener) -> Iterator[None]:
    """Tell what the kernel refuses of a listener in the words of its configuration."""
    try:
        yield
    except MarkError as error:
        raise OptionError(f"listener.{name}", error) from error
    except OSError as error:
        raise BindError(f"listener.{name}", str(listener.listen), error) from error


@contextmanager
def _sharing(sockets: Sequence[Socket]) -> Iterator[None]:
    """Let other sockets of ours be bound to the ports of these."""
    try:
        for socket in sockets:
            socket.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
        yield
    finally:
        for socket in sockets:
            socket.setsockopt(SOL_SOCKET, SO_REUSEPORT, 0)


def _bind_ip(listener: Listener, workers: int, *, beside: bool = False) -> list[Socket]:
    bind = partial(_bind_shared, listener, beside=beside)
    if workers == 1 or lone_reason(listener) is not None:
        return [bind(listener.listen, Share.ALONE)]
    return bind_group(bind, listener.listen, workers, program_of(listener, workers))


def _bind_shared(
    listener: Listener, listen: ListenAddress, share: Share, *, beside: bool
) -> Socket:
    return bind_socket(
        listen,
        backlog=listener.backlog,
        dual_stack=listener.dual_stack,
        receive_buffer=listener.receive_buffer,
        options=stream_options(listener.tcp),
        fastopen=listener.tcp.fastopen,
        mptcp=listener.tcp.mptcp,
        groups=listener.multicast,
        group_interface=listener.multicast_interface,
        marks=listener_marks(listener),
        share=share,
        beside=beside,
    )


def _bind_unix(listener: Listener) -> UnixListenSocket:
    return bind_unix(
        listener.listen,
        backlog=listener.backlog,
        mode=listener.mode,
        owner=listener.owner,
        group=listener.group,
    )


def bind_admin_http(address: HostPort) -> Socket:
    """Bind the read-only admin address; the caller owns the socket.

    Raises:
        BindError: it could not be bound.

    """
    host = "127.0.0.1" if address.host == "localhost" else address.host
    socket = Socket(AF_INET6 if ":" in host else AF_INET, SOCK_STREAM | SOCK_NONBLOCK)
    try:
        socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        socket.bind((host, address.port))
        socket.listen(ADMIN_BACKLOG)
    except OSError as error:
        socket.close()
        raise BindError("admin.http", str(address), error) from error
    return socket


def bind_admin_socket(path: str, mode: int = ADMIN_MODE, group: str | None = None) -> Socket:
    """Bind the control socket, replacing one that nobody serves any more.

    Its directory is made when only that is missing, as below /run after every boot; a longer way
    is rather a mistake in the path.

    Args:
        path: of its file.
        mode: permissions of that.
        group: who shall have it, by name or number; None leaves it as it is.

    Raises:
        BindError: it could not be bound, for example because a running process serves it.

    """
    socket = Socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK)
    try:
        _make_directory(Path(path).parent)
        remove_stale(path)
        # Bound without any permission, so that nobody can slip in before the mode is right.
        before = os.umask(0o777)
        try:
            socket.bind(path)
        finally:
            os.umask(before)
        give_file(path, mode, None, group)
        socket.listen(ADMIN_BACKLOG)
    except OSError as error:
        socket.close()
        raise BindError("admin.socket", path, error) from error
    return socket


def bind_socket(
    listen: ListenAddress,
    *,
    backlog: int = SOMAXCONN,
    dual_stack: bool = False,
    receive_buffer: int | None = None,
    options: SocketOptions = NODELAY,
    fastopen: int = 0,
    mptcp: bool = False,
    groups: Sequence[str] = (),
    group_interface: str | None = None,
    marks: Marks = UNMARKED,
    share: Share = Share.ALONE,
    beside: bool = False,
) -> Socket:
    """Bind one listening socket; the caller owns it.

    Args:
        listen: transport, host and port; port 0 lets the kernel choose.
        backlog: connections that may wait to be accepted (TCP).
        dual_stack: let an IPv6 wildcard serve IPv4 too.
        receive_buffer: bytes of SO_RCVBUF (UDP); None leaves the system's default.
        options: socket options that accepted connections inherit (TCP).
        fastopen: connections with data in their SYN that may wait (TCP, RFC 7413).
        mptcp: accept Multipath TCP (RFC 8684).
        groups: multicast groups to join (UDP).
        group_interface: where to join them; None leaves it to routing.
        marks: of what is sent to clients; accepted connections inherit them.
        share: whether it is to have the address alone.
        beside: whether another socket of ours is in the way, and lets us: SO_REUSEPORT.

    Raises:
        MarkError: the kernel does not take an option; nothing is left open then.
        OSError: it could not be bound; the same.

    """
    datagrams = listen.transport is Transport.UDP
    family = AF_INET6 if ":" in listen.host else AF_INET
    kind = (SOCK_DGRAM if datagrams else SOCK_STREAM) | SOCK_NONBLOCK
    socket = _multipath(family, kind) if mptcp else Socket(family, kind)
    try:
        if family == AF_INET6:
            socket.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, not dual_stack)
        if datagrams:
            ask_for_local_address(socket, transparent=marks.transparent)
            only_joined_groups(socket)
            if receive_buffer is not None:
                socket.setsockopt(SOL_SOCKET, SO_RCVBUF, receive_buffer)
        else:
            socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            set_options(socket, options if mptcp else options + IN_LINE)
            if fastopen:
                set_options(socket, ((IPPROTO_TCP, TCP_FASTOPEN, fastopen),))
        marks.set(socket)
        before_bind(socket, share)
        if beside:
            socket.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
        socket.bind(scoped(listen.host, listen.port))
        join_groups(socket, groups, group_interface)
        if not datagrams:
            socket.listen(backlog)
        if beside and share is Share.ALONE:
            socket.setsockopt(SOL_SOCKET, SO_REUSEPORT, 0)
        after_listen(socket, share)
    except OSError:
        socket.close()
        raise
    return socket


def _multipath(family: int, kind: int) -> Socket:
    """A socket of Multipath TCP, which a kernel may lack or an administrator turn off."""
    try:
        return Socket(family, kind, IPPROTO_MPTCP)
    except OSError as error:
        raise MarkError("tcp.mptcp", error) from error


def ask_for_local_address(socket: Socket, *, transparent: bool) -> None:
    """Have each datagram tell the address it was sent to, which a wildcard bind must know."""
    if transparent:
        ask_for_original(socket)
    elif socket.family == AF_INET6:
        socket.setsockopt(IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    else:
        socket.setsockopt(IPPROTO_IP, IP_PKTINFO, 1)


def _make_directory(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(DIRECTORY_MODE, exist_ok=True)
