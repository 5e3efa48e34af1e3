"""Options of a socket that is bound already: compared with what its listener wants, and set.

A bound socket meets a listener twice: when it was inherited, and whatever an earlier life of ours
or a socket unit has set on it is not known; and at a reload, when it is known what the listener
said before. Both set the same things, by one table: ``OPTIONS``. What can be set on a living socket
is set, also back to what it is by default, since a key may be gone from the file. What cannot is
compared, see ``differences``, or is bound anew, see ``binding_of`` in ``sockets``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import (
    AF_INET6,
    IP_TOS,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_MPTCP,
    IPPROTO_TCP,
    IPV6_TCLASS,
    IPV6_V6ONLY,
    SO_BINDTODEVICE,
    SO_KEEPALIVE,
    SO_PRIORITY,
    SO_PROTOCOL,
    SO_RCVBUF,
    SOL_SOCKET,
    TCP_FASTOPEN,
    TCP_NODELAY,
    TCP_USER_TIMEOUT,
)
from socket import socket as Socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from proxy.control.listen import ask_for_local_address
from proxy.control.outbound import listener_marks
from proxy.control.unix import UnixListenSocket, give_file
from proxy.engine.accept import DIVERTED
from proxy.engine.datagram_options import IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, Pmtu, set_pmtu
from proxy.engine.group import join_groups, leave_groups, only_joined_groups
from proxy.engine.marks import IFNAMSIZ, MARK_MAX, SO_MARK
from proxy.engine.options import IN_LINE, SocketOptions, set_options, stream_options

if TYPE_CHECKING:
    from proxy.config.model import Listener

STREAM_DEFAULTS: Final[SocketOptions] = (
    (IPPROTO_TCP, TCP_NODELAY, 0),
    (SOL_SOCKET, SO_KEEPALIVE, 0),
    (IPPROTO_TCP, TCP_USER_TIMEOUT, 0),
)
"""What a new socket has; the listener's own options are set after these."""

PMTUDISC_WANT: Final = 1  # uapi/linux/in.h; what a socket has that was told nothing

RMEM_DEFAULT: Final = Path("/proc/sys/net/core/rmem_default")


def differences(socket: Socket, listener: Listener) -> list[str]:
    """What a bound socket has otherwise than its listener wants it, and cannot be changed.

    Marks can be, with privileges; but whoever has lost them must not lose the socket for it.
    """
    if listener.listen.transport.is_unix:
        return []
    family = int(socket.family)
    compared: list[tuple[str, object, object, str]] = [
        (
            "transparent",
            listener.transparent,
            bool(socket.getsockopt(*DIVERTED[family])),
            "Transparent=",
        ),
        ("mark", listener.mark or 0, socket.getsockopt(SOL_SOCKET, SO_MARK) & MARK_MAX, "Mark="),
        ("interface", listener.interface or "", _device(socket), "BindToDevice="),
        (
            "tcp.mptcp",
            listener.tcp.mptcp,
            socket.getsockopt(SOL_SOCKET, SO_PROTOCOL) == IPPROTO_MPTCP,
            "SocketProtocol=",
        ),
    ]
    if family == AF_INET6:
        only = bool(socket.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))
        compared.append(("dual_stack", listener.dual_stack, not only, "BindIPv6Only="))
    return [
        f"{key} is {_written(have)}, not {_written(want)}; see {remedy} of the socket unit"
        for key, want, have, remedy in compared
        if want != have
    ]


def _device(socket: Socket) -> str:
    return socket.getsockopt(SOL_SOCKET, SO_BINDTODEVICE, IFNAMSIZ).partition(b"\0")[0].decode()


def _written(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


class Former(NamedTuple):
    """What is known of a socket before something is set on it.

    Attributes:
        listener: that it was set up for; None if it was inherited.
        own: whether it is ours; or else a socket unit made it, and what the file leaves open is
            as the unit says.

    """

    listener: Listener | None = None
    own: bool = True


def fit(socket: Socket, listener: Listener, *, stored: bool) -> None:
    """Set all options of a listener on an inherited socket, as far as it takes them.

    Raises:
        MarkError: a mark is refused, or an option of TCP.
        OSError: another option is.

    """
    transport = listener.listen.transport
    if transport.is_datagram and not transport.is_unix:
        ask_for_local_address(socket, transparent=listener.transparent)
        only_joined_groups(socket)
    for option in OPTIONS:
        option.set(socket, Former(own=stored), listener)


def changes(old: Listener, new: Listener) -> Iterator[Setter]:
    """What sets on a socket all that is said of it now and was not before."""
    return (option.set for option in OPTIONS if option.said(old) != option.said(new))


def _set_backlog(socket: Socket, _former: Former, new: Listener) -> None:
    """listen(2) again: the length of the queue changes, and nothing in it is lost."""
    if not new.listen.transport.is_datagram:
        socket.listen(new.backlog)


def _set_buffer(socket: Socket, former: Former, new: Listener) -> None:
    transport, size = new.listen.transport, new.receive_buffer
    if not transport.is_datagram or transport.is_unix or (size is None and not former.own):
        return
    if size is None:  # socket(7): the kernel doubles what it is told, not what it has by default
        size = int(RMEM_DEFAULT.read_text()) // 2
    socket.setsockopt(SOL_SOCKET, SO_RCVBUF, size)


def _set_stream_options(socket: Socket, _former: Former, new: Listener) -> None:
    if new.listen.transport.is_unix or new.listen.transport.is_datagram:
        return
    for level, name, value in STREAM_DEFAULTS:
        try:
            socket.setsockopt(level, name, value)
        except OSError as error:  # Multipath TCP has no TCP_USER_TIMEOUT, so nobody has set it
            if error.errno != errno.ENOPROTOOPT:
                raise
    fastopen = (IPPROTO_TCP, TCP_FASTOPEN, new.tcp.fastopen)
    in_line = () if new.tcp.mptcp else IN_LINE  # a socket that we did not make has it not
    set_options(socket, (*in_line, *stream_options(new.tcp), fastopen))


def _set_marks(socket: Socket, former: Former, new: Listener) -> None:
    """Mark, interface and priority are taken away only where we gave them: see ``differences``."""
    if new.listen.transport.is_unix:
        return
    old = former.listener
    if old is not None and old.mark is not None and new.mark is None:
        socket.setsockopt(SOL_SOCKET, SO_MARK, 0)
    if old is not None and old.interface is not None and new.interface is None:
        socket.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, b"")
    was_ours = former.own if old is None else old.priority is not None
    if was_ours and new.priority is None:
        socket.setsockopt(SOL_SOCKET, SO_PRIORITY, 0)
        socket.setsockopt(IPPROTO_IP, IP_TOS, 0)  # so that a DSCP is new, and gives the kernel's
    if new.dscp is None:
        socket.setsockopt(IPPROTO_IP, IP_TOS, 0)
        if socket.family == AF_INET6:
            socket.setsockopt(IPPROTO_IPV6, IPV6_TCLASS, 0)
    listener_marks(new).set(socket)


def _set_groups(socket: Socket, former: Former, new: Listener) -> None:
    if former.listener is not None:
        leave_groups(socket, former.listener.multicast, former.listener.multicast_interface)
    try:
        join_groups(socket, new.multicast, new.multicast_interface)
    except OSError as error:
        if former.listener is not None or error.errno != errno.EADDRINUSE:
            raise  # an inherited socket may be a member already: ip(7)


def _set_pmtu(socket: Socket, _former: Former, new: Listener) -> None:
    transport = new.listen.transport
    if not transport.is_datagram or transport.is_unix:
        return
    set_pmtu(socket, Pmtu(new.pmtu))
    if new.pmtu == "system":
        if socket.family == AF_INET6:
            socket.setsockopt(IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_WANT)
        socket.setsockopt(IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_WANT)


def _set_file(socket: Socket, _former: Former, new: Listener) -> None:
    if isinstance(socket, UnixListenSocket) and socket.file is not None:
        owner, group = new.owner or str(os.geteuid()), new.group or str(os.getegid())
        give_file(socket.file.path, new.mode, owner, group)


Setter: TypeAlias = Callable[[Socket, Former, "Listener"], None]
"""Sets something on a socket, given what it was before, and the listener that it serves now."""


class Option(NamedTuple):
    """What of a listener is set by which function; at a reload, when that has changed."""

    said: Callable[[Listener], Any]
    set: Setter


OPTIONS: Final = (
    Option(lambda one: one.backlog, _set_backlog),
    Option(lambda one: one.receive_buffer, _set_buffer),
    Option(lambda one: one.tcp, _set_stream_options),
    Option(lambda one: (one.mark, one.dscp, one.priority, one.interface), _set_marks),
    Option(lambda one: (one.multicast, one.multicast_interface), _set_groups),
    Option(lambda one: one.pmtu, _set_pmtu),
    Option(lambda one: (one.mode, one.owner, one.group), _set_file),
)
