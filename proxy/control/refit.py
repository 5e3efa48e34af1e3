"""Options of a socket that is bound already: compared with what its listener wants, and set.

What can be set on a living socket is set, also back to what it is by default, since a key may be
gone from the file. The rest is compared.
"""

from __future__ import annotations

import errno
from socket import (
    AF_INET,
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
    SO_PROTOCOL,
    SO_RCVBUF,
    SOCK_DGRAM,
    SOL_SOCKET,
    TCP_FASTOPEN,
    TCP_NODELAY,
    TCP_USER_TIMEOUT,
)
from socket import socket as Socket
from typing import TYPE_CHECKING, Final

from proxy.control.listen import ask_for_local_address
from proxy.control.outbound import listener_marks
from proxy.engine.accept import DIVERTED
from proxy.engine.group import join_groups, only_joined_groups
from proxy.engine.marks import IFNAMSIZ, MARK_MAX, SO_MARK
from proxy.engine.options import SocketOptions, set_options, stream_options

if TYPE_CHECKING:
    from proxy.config.model import Listener

STREAM_DEFAULTS: Final[SocketOptions] = (
    (IPPROTO_TCP, TCP_NODELAY, 0),
    (SOL_SOCKET, SO_KEEPALIVE, 0),
    (IPPROTO_TCP, TCP_USER_TIMEOUT, 0),
    (IPPROTO_IP, IP_TOS, 0),
)
"""What a new socket has; the listener's own options are set after these."""


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


def set_live(socket: Socket, listener: Listener, *, stored: bool) -> None:
    """Set all options of a listener that a bound socket takes.

    Raises:
        MarkError: a mark is refused.
        OSError: another option is.

    """
    transport = listener.listen.transport
    if not transport.is_unix:
        if transport.is_datagram:
            _set_datagrams(socket, listener, stored=stored)
        else:
            _set_stream(socket, listener)
        listener_marks(listener).set(socket)
    if not transport.is_datagram:
        socket.listen(listener.backlog)  # again: the backlog is set anew, who waits stays


def _set_stream(socket: Socket, listener: Listener) -> None:
    set_options(socket, STREAM_DEFAULTS)
    if socket.family == AF_INET6:
        socket.setsockopt(IPPROTO_IPV6, IPV6_TCLASS, 0)
    set_options(socket, stream_options(listener.tcp))
    socket.setsockopt(IPPROTO_TCP, TCP_FASTOPEN, listener.tcp.fastopen)


def _set_datagrams(socket: Socket, listener: Listener, *, stored: bool) -> None:
    ask_for_local_address(socket, transparent=listener.transparent)
    only_joined_groups(socket)
    socket.setsockopt(IPPROTO_IP, IP_TOS, 0)
    if socket.family == AF_INET6:
        socket.setsockopt(IPPROTO_IPV6, IPV6_TCLASS, 0)
    if listener.receive_buffer is not None:
        socket.setsockopt(SOL_SOCKET, SO_RCVBUF, listener.receive_buffer)
    elif stored:
        socket.setsockopt(SOL_SOCKET, SO_RCVBUF, _default_buffer() // 2)  # it is doubled: socket(7)
    try:
        join_groups(socket, listener.multicast, listener.multicast_interface)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # a member already: ip(7)
            raise


def _default_buffer() -> int:
    with Socket(AF_INET, SOCK_DGRAM) as fresh:
        return fresh.getsockopt(SOL_SOCKET, SO_RCVBUF)
