"""Facts about Unix sockets on Linux that the engine stands on, each with its source.

They differ from TCP in what a relay sees of them:

* ``connect`` succeeds or fails at once. When the backlog is full it says EAGAIN, and no event ever
  tells that there is room again, so it is asked again after a while (unix(7), connect(2)).
* A receive ends short at a message that carried descriptors (SCM_RIGHTS), though more is there; so
  a short one is no proof that the socket is empty (net/unix/af_unix.c, unix_stream_read_generic).
  The descriptors themselves are closed by the kernel, since nobody asks for them.
* Every message that the peer takes is news that there is room (unix_write_space), wanted or not;
  so a socket is watched for room only while it is needed.
* There is no RST. Who closes with something unread gives the peer ECONNRESET; else it is an end.
* An accepted socket inherits no option, because it was made when its peer connected.
* A datagram socket stays connected to the very socket that had the name, not to the name. When
  that one is gone it says ECONNREFUSED once, and ENOTCONN from then on.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from select import EPOLLHUP, EPOLLIN
from socket import (
    AF_UNIX,
    MSG_ERRQUEUE,
    MSG_TRUNC,
    SO_PEERCRED,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
)
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Any, Final

from proxy.core.unix import Credentials, UnixAddress
from proxy.engine.leg import WATCH
from proxy.engine.options import IN_LINE, set_options

if TYPE_CHECKING:
    from proxy.core.wheel import Slot
    from proxy.engine.leg import StreamLeg
    from proxy.engine.pump import Pump

RETRY: Final = 0.05
"""Seconds until an endpoint with a full backlog is asked again: a tick of the timers."""

UCRED: Final = struct.Struct("=iII")  # uapi/linux/socket.h: pid, uid, gid

GONE: Final = frozenset({errno.ECONNREFUSED, errno.ENOTCONN})


def unix_name(raw: str | bytes) -> UnixAddress:
    """An address as the socket module gives it: text, or bytes when it is abstract."""
    return UnixAddress(os.fsdecode(raw))


def credentials_of(socket: Socket) -> Credentials:
    """The process that connected, as it was then (SO_PEERCRED, unix(7))."""
    return read_credentials(socket.getsockopt(SOL_SOCKET, SO_PEERCRED, UCRED.size))


def read_credentials(ucred: bytes | memoryview) -> Credentials:
    """Read a ``struct ucred``."""
    return Credentials(*UCRED.unpack_from(ucred))


class BoundUnixSocket(socket.socket):
    """A listening Unix socket, which tells its address as the table has it."""

    def getsockname(self) -> UnixAddress:
        """The address it is bound to."""
        return unix_name(super().getsockname())


class UnixSocket(Socket):
    """A Unix socket towards an endpoint, which gives and takes addresses as the table has them."""

    __slots__ = ()

    def __init__(self, kind: int, fileno: int | None = None) -> None:
        super().__init__(AF_UNIX, kind | SOCK_NONBLOCK, 0, fileno)

    def getsockname(self) -> UnixAddress:
        """The address it is bound to."""
        return unix_name(super().getsockname())

    def connect_ex(self, address: UnixAddress) -> int:  # type: ignore[override]
        """Connect; return 0, or the errno."""
        return super().connect_ex(os.fsencode(address.name))


class UnixDatagramSocket(UnixSocket):
    """A datagram socket towards an endpoint; finds it again when it has started anew.

    It has an abstract address that the kernel chose, without which nobody could answer it; also
    when it comes from another process, as a descriptor.
    """

    __slots__ = ("_endpoint",)

    def __init__(self, endpoint: UnixAddress, fileno: int | None = None) -> None:
        super().__init__(SOCK_DGRAM, fileno)
        self._endpoint = endpoint
        if fileno is None:
            self.bind("")  # autobind: unix(7)

    def reach(self) -> int:
        """Connect to whoever has the endpoint's name now; return 0, or the errno."""
        return self.connect_ex(self._endpoint)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send a datagram, to whoever has the endpoint's name now."""
        try:
            return super().send(data, flags)
        except OSError as error:
            if error.errno not in GONE:
                raise
        number = self.reach()
        if number:
            raise OSError(number, os.strerror(number))
        return super().send(data, flags)

    def recv_into(self, room: Any, size: int = 0, flags: int = 0) -> int:
        """Receive a datagram, or fail with EMSGSIZE if it is longer than the room.

        One of UDP always fits; here only SO_SNDBUF is the bound, and the rest would be cut off.
        """
        length = super().recv_into(room, size, flags | MSG_TRUNC)
        if length > len(room):
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return length

    def recvmsg(self, size: int, control: int = 0, flags: int = 0) -> Any:
        """Receive with control messages; never from an error queue, which it does not have.

        The kernel would pass over MSG_ERRQUEUE and give an ordinary datagram.
        """
        if flags & MSG_ERRQUEUE:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return super().recvmsg(size, control, flags)


def stream_socket() -> UnixSocket:
    """A socket for a stream to an endpoint."""
    socket = UnixSocket(SOCK_STREAM)
    set_options(socket, IN_LINE)
    return socket


class BacklogWait:
    """Asks again after a while; an item of the timer wheel."""

    __slots__ = ("_crashed", "_retry", "slot")

    def __init__(
        self, retry: Callable[[float], None], crashed: Callable[[Exception, float], None]
    ) -> None:
        self._retry = retry
        self._crashed = crashed
        self.slot: Slot | None = None

    def expire(self, now: float) -> None:
        """It is time."""
        self._retry(now)

    def crashed(self, error: Exception, now: float) -> None:
        """Pass on a fault of ours."""
        self._crashed(error, now)


class UnixReader:
    """Serves a leg whose socket is a Unix socket: has it receive until nothing is left."""

    __slots__ = ("_leg",)

    def __init__(self, leg: StreamLeg) -> None:
        self._leg = leg

    def ready(self, mask: int, now: float) -> None:
        """Serve the leg as if a failure might have come with the data."""
        self._leg.ready(mask | EPOLLHUP if mask & EPOLLIN else mask, now)

    def crashed(self, error: Exception, now: float) -> None:
        """Pass on a fault of ours."""
        self._leg.crashed(error, now)


def serve_unix_leg(pump: Pump, leg: StreamLeg) -> None:
    """Have the pump serve a relaying leg the way its Unix socket needs it."""
    fd = leg.socket.fileno()
    pump.hand_over(fd, UnixReader(leg))
    if leg.writable_watched and leg.other.pending is None:
        leg.writable_watched = False
        pump.modify(fd, WATCH)
