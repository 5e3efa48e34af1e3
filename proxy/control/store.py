"""The service manager's store of descriptors: listening sockets outlive us there, for a restart.

A listener's one socket is stored under its name, those of workers under its name and their place.

Each is stored as soon as it listens, not at the end: so a crash keeps it, too. While nobody serves
it, clients wait in its backlog, and datagrams in its buffer.

So is our end of the succession channel of each worker process, see ``handover.succession``: by it
our next life speaks to workers that this one has left behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from socket import SocketType as Socket
from typing import TYPE_CHECKING

from proxy.control.inherited import CHANNEL, STORED, Inherited

if TYPE_CHECKING:
    from proxy.config.model import Config, Listener
    from proxy.control.notify import Notifier


class SocketStore:
    """What the service manager keeps for our next life: one socket a listener.

    Args:
        notifier: the line to it.

    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._held: dict[str, int] = {}  # name -> inode of the socket
        self._foreign: set[int] = set()  # inodes of what socket units keep by themselves

    def found(self, given: Inherited) -> None:
        """Remember that the manager has a socket already: here, or in a socket unit."""
        if given.stored:
            self._held[given.name] = _inode(given.socket)
        else:
            self._foreign.add(_inode(given.socket))

    def drop(self, names: Iterable[str]) -> None:
        """Have everything under these names closed, and wait until that is done."""
        for name in sorted(set(names)):
            self._notifier.forget(name)
            self._held.pop(name, None)
        self._notifier.wait_done()

    def keep(self, sockets: Mapping[str, Sequence[Socket]]) -> None:
        """Have these in the store, by the names of their listeners, and no others.

        Those of socket units are left out, and those that are closed.

        For the start, and for every change of the listeners: one that is closed here and stays in
        the store would go on taking clients, whom nobody serves.
        """
        wanted = {
            label: socket
            for name, group in sockets.items()
            for label, socket in zip(labels(name, len(group)), group, strict=True)
            if socket.fileno() >= 0 and _inode(socket) not in self._foreign
        }
        inodes = {label: _inode(socket) for label, socket in wanted.items()}
        for label in [label for label, inode in self._held.items() if inodes.get(label) != inode]:
            self._notifier.forget(label)
            del self._held[label]
        for label in wanted.keys() - self._held.keys():
            self._notifier.store(label, [wanted[label]])
            self._held[label] = inodes[label]


class ChannelStore:
    """What the service manager keeps of the succession channels of our workers.

    Args:
        notifier: the line to it.

    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def keep(self, pid: int, end: Socket) -> None:
        """Have our end of the channel of the worker with this process id in the store."""
        self._notifier.store(channel_label(pid), [end])

    def drop(self, pid: int) -> None:
        """Have it there no more."""
        self.forget(channel_label(pid))

    def forget(self, name: str) -> None:
        """Have what is called so there no more."""
        self._notifier.forget(name)


def channel_label(pid: int) -> str:
    """What the channel of the worker with this process id is called in the store."""
    return f"{CHANNEL}{pid}"


def labels(name: str, count: int) -> list[str]:
    """What the sockets of a listener are called in the store."""
    base = STORED + name
    return [base] if count == 1 else [f"{base}/{place}" for place in range(count)]


def sockets_to_keep(
    config: Config, sockets: Mapping[str, Sequence[Socket]]
) -> dict[str, Sequence[Socket]]:
    """The listeners' sockets that may go on in our next life."""
    return {name: group for name, group in sockets.items() if storable(config.listener[name])}


def storable(listener: Listener) -> bool:
    """Whether a listener's socket may go on in our next life.

    Groups cannot be left that we do not know of. That the file of a Unix socket is still there is
    for the next life to see: at a stop it goes with us.
    """
    return not listener.multicast


def _inode(socket: Socket) -> int:
    return os.fstat(socket.fileno()).st_ino
