"""How the socket to an endpoint is made: from which address, with which marks.

A listener chooses its way once, as a function, and each attempt calls that: it takes the address
of the endpoint and that of the client, and gives a socket that is connecting, or says why there is
none. The plain way asks the kernel for nothing but the connection.

Without a port range IP_BIND_ADDRESS_NO_PORT (Linux 4.2) leaves the choice of the port to
connect(2), which knows the endpoint: so one source address carries as many TCP flows *to each
endpoint* as there are ports. With a range, SO_REUSEADDR lets a port be bound again, and connect(2)
refuses those whose 4-tuple is taken. A UDP port is exclusive on its address, whoever the endpoint
is.

Rejected: IP_LOCAL_PORT_RANGE, which has the kernel search the range, but needs Linux 6.3.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IP,
    SO_REUSEADDR,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
)
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from proxy.engine.copied import CopiedWay
from proxy.engine.marks import UNMARKED, MarkError, Marks
from proxy.engine.options import SocketOptions
from proxy.engine.sockaddr import family_of
from proxy.engine.tcp import CLOSED

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.source import Source, SourcePool

IP_BIND_ADDRESS_NO_PORT: Final = 24  # uapi/linux/in.h

NO_SOURCE: Final = -1
"""In place of an errno: every source that was tried is taken, or cannot be had."""

TAKEN: Final = frozenset(
    {
        errno.EADDRNOTAVAIL,  # TCP: this 4-tuple, or every port of the address
        errno.EADDRINUSE,
        errno.EAGAIN,  # UDP: every port of the address
    }
)

Connect: TypeAlias = "Callable[[Address, Address], tuple[Socket, int]]"
"""From the endpoint's and the client's address to a socket and 0, EINPROGRESS or what is wrong."""


class Outbound(NamedTuple):
    """How the flows of a listener leave for the endpoints of its upstream.

    Attributes:
        marks: of the sockets to endpoints.
        source: the addresses to leave from; None leaves them to the kernel.
        as_client: leave with the client's address, which ``marks.transparent`` allows.
        copies_dscp: have the DSCP of the client, in place of that of ``marks``.

    """

    marks: Marks = UNMARKED
    source: SourcePool | None = None
    as_client: bool = False
    copies_dscp: bool = False

    def way(self, kind: int, options: SocketOptions = ()) -> Connect:
        """Choose the function that makes sockets of this type, with these further options."""
        if self.copies_dscp:
            return CopiedWay(self._replace(copies_dscp=False), kind, options)
        maker = _Maker(kind, options, self.marks)
        if self.as_client:
            return _way_as_client(maker)
        if self.source is not None:
            return _way_from(maker, self.source, reuse=kind == SOCK_STREAM)
        return _plain_way(maker)

    def rehearse(self) -> None:
        """Do once, on a socket that goes nowhere, what each flow will have done.

        Raises:
            MarkError: an option is refused, or (``source``) an address is not to be had.

        """
        for host in self.source.hosts if self.source else ("0.0.0.0",):  # noqa: S104 - unbound
            socket = Socket(family_of((host, 0)), SOCK_STREAM)
            try:
                self.marks.set(socket)
                if self.source is not None:
                    _rehearse_source(socket, host, self.source.ports[0])
            finally:
                socket.close()


PLAIN: Final = Outbound()


class _Maker:
    """Makes unconnected sockets; what is to be set on them is worked out once."""

    __slots__ = ("_kind", "_options")

    def __init__(self, kind: int, options: SocketOptions, marks: Marks) -> None:
        self._kind = kind | SOCK_NONBLOCK
        self._options: dict[int, SocketOptions] = {
            family: options + marks.flat(family) for family in (AF_INET, AF_INET6)
        }

    def socket(self, family: int) -> Socket | None:
        """A socket with all its options; None if the kernel refuses one.

        Raises:
            OSError: there can be no further socket, such as EMFILE.

        """
        socket = Socket(family, self._kind)
        try:
            for level, name, value in self._options[family]:
                socket.setsockopt(level, name, value)
        except OSError:  # ENODEV: the interface has gone
            socket.close()
            return None
        return socket


def _plain_way(maker: _Maker) -> Connect:
    """The kernel chooses the source."""

    def connect(address: Address, client: Address) -> tuple[Socket, int]:
        socket = maker.socket(family_of(address))
        if socket is None:
            return CLOSED, NO_SOURCE
        return socket, socket.connect_ex(address)

    return connect


def _way_from(maker: _Maker, source: SourcePool, reuse: bool) -> Connect:
    """Addresses of our own, in turn."""

    def connect(address: Address, client: Address) -> tuple[Socket, int]:
        return _first_free(maker, source.candidates(address[0]), address, reuse)

    return connect


def _way_as_client(maker: _Maker) -> Connect:
    """The client's address and port; the address alone where that port is taken.

    The port may be bound again for UDP too: a client speaks to many from one port.
    """

    def connect(address: Address, client: Address) -> tuple[Socket, int]:
        candidates = ((client[0], client[1]), (client[0], 0))
        return _first_free(maker, candidates, address, reuse=True)

    return connect


def _first_free(
    maker: _Maker, candidates: Iterable[Source], address: Address, reuse: bool
) -> tuple[Socket, int]:
    family = family_of(address)
    for source in candidates:
        socket = maker.socket(family)
        if socket is None:
            break
        try:
            _bind(socket, source, reuse)
        except OSError:  # EADDRINUSE; EADDRNOTAVAIL: the address has left this host
            socket.close()
            continue
        error = socket.connect_ex(address)
        if error not in TAKEN:
            return socket, error
        socket.close()
    return CLOSED, NO_SOURCE


def _bind(socket: Socket, source: Source, reuse: bool) -> None:
    if not source[1]:
        socket.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    elif reuse:
        socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    socket.bind(source)


def _rehearse_source(socket: Socket, host: str, port: int) -> None:
    try:
        _bind(socket, (host, port), reuse=True)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # that may pass
            raise MarkError("source", error) from error
