"""Options of TCP sockets, as they are set.

They go on the listening socket, whose accepted sockets inherit them, and on each socket to an
endpoint.

Source: tcp(7), socket(7). All of these are inherited by accept (net/ipv4/inet_connection_sock.c).
"""

from __future__ import annotations

from math import ceil
from socket import (
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SO_OOBINLINE,
    SOL_SOCKET,
    TCP_FASTOPEN,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_NODELAY,
    TCP_USER_TIMEOUT,
)
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.engine.marks import MarkError

if TYPE_CHECKING:
    from proxy.config.model import TcpOptions

SocketOptions: TypeAlias = tuple[tuple[int, int, int | bytes], ...]
"""Level, name and value of each."""

NODELAY: Final[SocketOptions] = ((IPPROTO_TCP, TCP_NODELAY, 1),)
"""What a relay wants by itself: small writes have already been gathered by whoever made them."""

KEYS: Final = {
    (IPPROTO_TCP, TCP_NODELAY): "tcp.nodelay",
    (SOL_SOCKET, SO_KEEPALIVE): "tcp.keepalive_idle",
    (IPPROTO_TCP, TCP_KEEPIDLE): "tcp.keepalive_idle",
    (IPPROTO_TCP, TCP_KEEPINTVL): "tcp.keepalive_interval",
    (IPPROTO_TCP, TCP_KEEPCNT): "tcp.keepalive_count",
    (IPPROTO_TCP, TCP_USER_TIMEOUT): "tcp.user_timeout",
    (IPPROTO_TCP, TCP_FASTOPEN): "tcp.fastopen",
    (SOL_SOCKET, SO_OOBINLINE): "tcp.mptcp",
}
"""The configuration's word for each; that which is why ``IN_LINE`` could be refused."""

IN_LINE: Final[SocketOptions] = ((SOL_SOCKET, SO_OOBINLINE, 1),)
"""What a relay reads urgent data by: each byte stays in the stream. Out of line the kernel drops
one that is next to be read when another is announced (tcp_check_urg in net/ipv4/tcp_input.c).
Multipath TCP has no urgent data, and does not take it: EOPNOTSUPP."""


def stream_options(tcp: TcpOptions) -> SocketOptions:
    """The options for the sockets of a listener's flows, on both sides."""
    options = list(NODELAY) if tcp.nodelay else []
    if tcp.keepalive_idle is not None:
        options += [
            (SOL_SOCKET, SO_KEEPALIVE, 1),
            (IPPROTO_TCP, TCP_KEEPIDLE, ceil(tcp.keepalive_idle)),
            (IPPROTO_TCP, TCP_KEEPINTVL, ceil(tcp.keepalive_interval)),
            (IPPROTO_TCP, TCP_KEEPCNT, tcp.keepalive_count),
        ]
    if tcp.user_timeout is not None:
        options.append((IPPROTO_TCP, TCP_USER_TIMEOUT, ceil(tcp.user_timeout * 1000)))
    return tuple(options)


def set_options(socket: Socket, options: SocketOptions) -> None:
    """Set them all.

    Raises:
        MarkError: the kernel does not take one.

    """
    for level, name, value in options:
        try:
            socket.setsockopt(level, name, value)
        except OSError as error:
            raise MarkError(KEYS[level, name], error) from error
