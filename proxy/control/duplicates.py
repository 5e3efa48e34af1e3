"""The supervisor's duplicates of all listening sockets.

As long as it has them, clients wait in the queue of a socket while its worker is away, and go to
nobody else. Those that no worker serves any more are closed; nobody would ever come for who waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.engine.specs import cookie_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from socket import SocketType as Socket


class Duplicates:
    """Sockets of workers, by listener. Owns them.

    Args:
        workers: how many there are.

    """

    def __init__(self, workers: int) -> None:
        self._groups: list[tuple[Socket, ...]] = []
        self._in_use: list[set[int] | None] = [None] * workers

    def add(self, groups: Iterable[tuple[Socket, ...]]) -> None:
        """Keep those of these listeners, too; and close what no worker serves."""
        self._groups += [group for group in groups if group not in self._groups]
        self._close_unused()

    def serves(self, index: int, cookies: set[int]) -> None:
        """Know which sockets a worker has, by their cookies; close what none serves any more."""
        self._in_use[index] = cookies
        self._close_unused()

    def lost(self, index: int) -> None:
        """Know that a worker is away; it may have to serve everything again."""
        self._in_use[index] = None

    def close(self) -> None:
        """Close all of them."""
        for socket in (socket for group in self._groups for socket in group):
            socket.close()

    def _close_unused(self) -> None:
        """Close the listeners that no worker serves; one that is away may have to again."""
        if None in self._in_use:
            return
        used = set[int]().union(*filter(None, self._in_use))
        self._groups = [group for group in self._groups if group[0].fileno() >= 0]
        for group in self._groups:
            if not any(cookie_of(socket) in used for socket in group):
                for socket in group:
                    socket.close()
