"""Sockets that answers leave by when they must not leave from the listener's port.

An exit is bound to the address that clients sent to, and all their flows to it share it. It must
not hear what they send next, for which a rule such as ``socket transparent 1`` of nft would choose
it before the listener. So it is connected to an address that never sends; the kernel then gives it
nothing, and it may send to anybody all the same.

Source: ip(7) IP_TRANSPARENT; udp(7); compute_score in net/ipv4/udp.c, nft_socket.c.
"""

from __future__ import annotations

import errno
import os
from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

from proxy.engine.datagram_options import set_pmtu
from proxy.engine.marks import Marks, marks_of
from proxy.engine.sockaddr import family_of
from proxy.engine.tcp import take_error

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.engine.datagram_options import Pmtu
    from proxy.engine.files import FileBudget
    from proxy.engine.pump import Pump

EXITS_MAX: Final = 1024
"""Addresses that flows of a worker answer from at once; each holds a descriptor."""

NOBODY: Final[dict[int, Address]] = {AF_INET: ("127.0.0.1", 9), AF_INET6: ("::1", 9)}
"""Whom exits are connected to. Port 9 is discard (RFC 863): it does not speak."""


class Exit:
    """One such socket. Owns it. The pump serves it, so that it is closed after a round's answers.

    Attributes:
        flows: how many answer from it.

    """

    __slots__ = ("flows", "key", "socket")

    def __init__(self, key: tuple[int, Address], socket: Socket) -> None:
        self.key = key
        self.socket = socket
        self.flows = 0

    def ready(self, mask: int, now: float) -> None:
        """Forget an error that concerns nobody."""
        take_error(self.socket)

    def crashed(self, error: Exception, now: float) -> None:
        """Live on."""


class Exits:
    """The exits of a worker, by listener and address; at most ``EXITS_MAX``."""

    __slots__ = ("_by_fd", "_by_key", "_files", "_pump")

    def __init__(self, pump: Pump, files: FileBudget) -> None:
        self._pump = pump
        self._files = files
        self._by_key: dict[tuple[int, Address], Exit] = {}
        self._by_fd: dict[int, Exit] = {}

    def __len__(self) -> int:
        return len(self._by_fd)

    def take(self, listening: Socket, address: Address, pmtu: Pmtu) -> int:
        """The descriptor of the exit at this address, for one more flow of the listener.

        Raises:
            OSError: EMFILE, there are too many; or the address cannot be bound.

        """
        key = (listening.fileno(), address)
        exit = self._by_key.get(key)
        if exit is None:
            exit = self._by_key[key] = self._open(key, listening, pmtu)
        exit.flows += 1
        return exit.socket.fileno()

    def give_back(self, fd: int) -> None:
        """Close the exit if this was its last flow."""
        exit = self._by_fd[fd]
        exit.flows -= 1
        if not exit.flows:
            del self._by_fd[fd], self._by_key[exit.key]
            self._files.used -= 1
            self._pump.bury(exit.socket)

    def _open(self, key: tuple[int, Address], listening: Socket, pmtu: Pmtu) -> Exit:
        if len(self._by_fd) >= EXITS_MAX or not self._files.has(1):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        address = key[1]
        family = family_of(address)
        socket = Socket(family, SOCK_DGRAM | SOCK_NONBLOCK)
        try:
            Marks(transparent=True).set(socket)
            socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)  # a client of ours may be there, too
            socket.bind(address)
            socket.connect(NOBODY[family])
            marks_of(listening).set(socket)  # now, since nobody is at another interface
            set_pmtu(socket, pmtu)
        except OSError:
            socket.close()
            raise
        exit = self._by_fd[socket.fileno()] = Exit(key, socket)
        self._files.used += 1
        self._pump.register(socket.fileno(), exit, 0)
        return exit
