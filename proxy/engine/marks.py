"""What the kernel is told of packets of ours: mark, DSCP, priority, interface, whose address.

They are socket options. On a listening socket they are set once, because accepted sockets inherit
them; on the socket to an endpoint before it is bound, because routing looks at them.

The priority is not inherited (sk_clone_lock, net/core/sock.c): a listener sets it on each socket it
accepts. And it comes last, because the kernel makes one of a DSCP that is set (rt_tos2priority).

Some need a privilege, which is found out before anything runs: see ``MarkError``.

Source: socket(7) SO_MARK, SO_PRIORITY, SO_BINDTODEVICE; ip(7) IP_TOS, IP_TRANSPARENT; ipv6(7);
RFC 2474.
"""

from __future__ import annotations

from socket import (
    AF_INET6,
    IP_TOS,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_TCLASS,
    SO_BINDTODEVICE,
    SO_PRIORITY,
    SOL_SOCKET,
)
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from proxy.engine.options import SocketOptions

SO_MARK: Final = 36  # asm-generic/socket.h
IP_TRANSPARENT: Final = 19  # uapi/linux/in.h
IPV6_TRANSPARENT: Final = 75  # uapi/linux/in6.h

IFNAMSIZ: Final = 16  # uapi/linux/if.h
MARK_MAX: Final = 0xFFFFFFFF

ECN_BITS: Final = 2
"""The low bits of the traffic class, which are not DSCP's (RFC 3168)."""


class MarkError(OSError):
    """The kernel does not let us set an option.

    Attributes:
        key: the configuration's word for it.

    """

    def __init__(self, key: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.key = key


class Marks(NamedTuple):
    """The options of the sockets on one side of flows; None is the kernel's own.

    Attributes:
        mark: of packets, for routing and nft rules.
        dscp: 0 to 63.
        priority: for the queues of an interface; 0 to 15.
        interface: packets leave, and arrive, through this one only.
        transparent: the local address need not be one of this host's.

    """

    mark: int | None = None
    dscp: int | None = None
    priority: int | None = None
    interface: str | None = None
    transparent: bool = False

    def options(self, family: int) -> dict[str, SocketOptions]:
        """The options of a socket of this family, by the configuration's word for each.

        An IPv6 socket gets the option of IPv4 too, which rules its IPv4 clients.
        """
        found: dict[str, SocketOptions] = {}
        if self.transparent:
            found["transparent"] = (
                ((IPPROTO_IPV6, IPV6_TRANSPARENT, 1),)
                if family == AF_INET6
                else ((IPPROTO_IP, IP_TRANSPARENT, 1),)
            )
        if self.mark is not None:
            found["mark"] = ((SOL_SOCKET, SO_MARK, _signed(self.mark)),)
        if self.interface is not None:
            found["interface"] = ((SOL_SOCKET, SO_BINDTODEVICE, self.interface.encode()),)
        if self.dscp is not None:
            traffic_class = self.dscp << ECN_BITS
            found["dscp"] = ((IPPROTO_IP, IP_TOS, traffic_class),)
            if family == AF_INET6:
                found["dscp"] += ((IPPROTO_IPV6, IPV6_TCLASS, traffic_class),)
        if self.priority is not None:
            found["priority"] = ((SOL_SOCKET, SO_PRIORITY, self.priority),)
        return found

    def flat(self, family: int) -> SocketOptions:
        """The same, as one sequence."""
        return tuple(option for options in self.options(family).values() for option in options)

    def set(self, socket: Socket) -> None:
        """Set them all, each under its name.

        Raises:
            MarkError: the kernel refuses one.

        """
        for key, options in self.options(socket.family).items():
            for level, name, value in options:
                try:
                    socket.setsockopt(level, name, value)
                except OSError as error:
                    raise MarkError(key, error) from error


UNMARKED: Final = Marks()


def marks_of(socket: Socket) -> Marks:
    """The marks that a transparent socket has."""
    device = socket.getsockopt(SOL_SOCKET, SO_BINDTODEVICE, IFNAMSIZ).partition(b"\0")[0]
    return Marks(
        mark=socket.getsockopt(SOL_SOCKET, SO_MARK) & MARK_MAX or None,
        dscp=socket.getsockopt(IPPROTO_IP, IP_TOS) >> ECN_BITS or None,
        priority=socket.getsockopt(SOL_SOCKET, SO_PRIORITY),
        interface=device.decode() or None,
        transparent=True,
    )


def prioritize(socket: Socket, priority: int) -> None:
    """Set on an accepted socket what it has not inherited."""
    socket.setsockopt(SOL_SOCKET, SO_PRIORITY, priority)


def _signed(mark: int) -> int:
    """The same 32 bits as the C int that setsockopt takes."""
    return mark - (1 << 32) if mark >= 1 << 31 else mark
