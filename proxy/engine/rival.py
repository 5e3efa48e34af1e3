"""The second socket of a connection attempt: another address of the name, of the other IP version.

Where one version leads nowhere and says nothing, every client would wait for a time-out if the two
were tried one after the other. So they race, but not from the start: a quarter of a second is
enough for most that work, and endpoints are not to see twice as many connections (RFC 8305). There
are two racers at most, whatever the number of addresses.
"""

from __future__ import annotations

from select import EPOLLERR, EPOLLHUP
from typing import TYPE_CHECKING, Protocol

from proxy.engine.tcp import RESET_SINCE, take_error

if TYPE_CHECKING:
    from socket import SocketType as Socket

    from proxy.core.endpoint import Endpoint


class Race(Protocol):
    """An attempt that has a rival."""

    def rival_succeeded(self, error: int, mask: int, now: float) -> None:
        """Take the rival's socket: it has connected, though it may have been reset since."""
        ...

    def rival_failed(self, error: int, now: float) -> None:
        """Go on alone."""
        ...

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow: a fault of ours."""
        ...


class Rival:
    """A socket that connects beside another; the attempt owns it."""

    __slots__ = ("_race", "endpoint", "socket")

    def __init__(self, race: Race, endpoint: Endpoint, socket: Socket) -> None:
        self._race = race
        self.endpoint = endpoint
        self.socket = socket

    def ready(self, mask: int, now: float) -> None:
        """The kernel has an answer."""
        error = take_error(self.socket) if mask & (EPOLLERR | EPOLLHUP) else 0
        if error and error not in RESET_SINCE:
            self._race.rival_failed(error, now)
        else:
            self._race.rival_succeeded(error, mask, now)

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow: a fault of ours."""
        self._race.crashed(error, now)
