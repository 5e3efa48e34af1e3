"""The listening sockets through a reload: which stay, which change hands, which are new.

A socket is bound for good to its address and to the few keys of ``binding_of``; as long as these
stay, so does the socket, with the connections in its queue, and whatever else is said of it is set
on it as it is. A listener with another name may take it over. New sockets are bound before any old
one closes.

A new socket may have to stand beside an old one that is about to close and is in its way: the
wildcard beside one address, IPv6 beside dual stack. For streams SO_REUSEPORT lets both be bound for
that moment, and is taken off again. (The kernel goes on allowing a program of the same user that
asks for it, too, to bind the port.) For datagrams it would not do: the old socket goes on serving
its flows, and the kernel would give it new clients.

The sockets belong to the worker; here they are known by name. One that is closed (its listener was
drained) has no descriptor any more.

Source: socket(7) SO_REUSEPORT; inet_csk_bind_conflict in net/ipv4/inet_connection_sock.c.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from socket import socket as Socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from proxy.control.listen import BindError, bind_listener, option_errors
from proxy.control.refit import Former, Setter, changes
from proxy.control.steering import lone_reason, steered_by
from proxy.control.unix import socket_files

if TYPE_CHECKING:
    from proxy.config.model import Listener

STILL_SERVING: Final = (
    "a socket of ours that gives up this port still serves its flows; "
    "choose another port, or restart"
)

Given: TypeAlias = Mapping[str, "tuple[Socket, ...]"]

NONE_GIVEN: Final[Given] = {}


class Bound(NamedTuple):
    """The sockets of a listener, and the listener they were last set up for.

    There is one; or one for each worker, in their order.
    """

    listener: Listener
    sockets: tuple[Socket, ...]

    @property
    def is_open(self) -> bool:
        """Whether some worker still serves it; the sockets are closed together."""
        return all(socket.fileno() >= 0 for socket in self.sockets)


class Arrangement(NamedTuple):
    """The sockets as they shall be, by listener; and those that nobody has any more."""

    bound: dict[str, Bound]
    leaving: list[Bound]


def binding_of(listener: Listener, workers: int = 1) -> tuple[Any, ...]:
    """What the sockets must be bound anew for."""
    shared = workers > 1 and lone_reason(listener) is None
    return (
        listener.listen,
        listener.dual_stack,
        listener.tcp.mptcp,
        listener.transparent,
        steered_by(listener) if shared else None,
    )


def arrange(
    listeners: Mapping[str, Listener],
    before: Mapping[str, Bound],
    others: Iterable[Bound],
    undo: ExitStack,
    workers: int = 1,
    given: Given = NONE_GIVEN,
) -> Arrangement:
    """Find or bind the sockets of every listener, and set them up as the listener says.

    Args:
        listeners: as they shall be.
        before: the sockets by the names they have now.
        others: sockets that serve their last flows, and have no name.
        undo: is given whatever takes everything back.
        workers: how many share a listener, if they can.
        given: sockets that were set up already, for the listeners of these names.

    Raises:
        BindError: one could not be bound, or set up.
        OptionError: the kernel refuses an option.

    """
    free = {name: each for name, each in before.items() if each.is_open}
    nameless = [each for each in others if each.is_open]
    found = {name: Bound(listeners[name], sockets) for name, sockets in given.items()}
    found |= _own(listeners, free, workers)
    for name, listener in listeners.items():
        if name not in found and (taken := _taken(listener, free, nameless, workers)):
            found[name] = taken
    for name, former in found.items():
        with option_errors(name, listeners[name]):
            _adjust(former, listeners[name], undo)
    leaving = [*free.values(), *nameless]
    bound: dict[str, Bound] = {}
    for name, listener in listeners.items():
        kept = found.get(name)
        sockets = kept.sockets if kept else _bind(name, listener, leaving, undo, workers)
        bound[name] = Bound(listener, sockets)
    return Arrangement(bound, leaving)


def _own(
    listeners: Mapping[str, Listener], free: dict[str, Bound], workers: int
) -> dict[str, Bound]:
    """The sockets that stay with their names; they are free no more."""
    return {
        name: free.pop(name)
        for name, listener in listeners.items()
        if name in free
        and binding_of(free[name].listener, workers) == binding_of(listener, workers)
    }


def _taken(
    listener: Listener, free: dict[str, Bound], nameless: list[Bound], workers: int
) -> Bound | None:
    """The socket that another name had, at the same address; it is free no more."""
    if not listener.listen.port and not listener.listen.transport.is_unix:
        return None  # the kernel chose
    wanted = binding_of(listener, workers)
    for name, each in free.items():
        if binding_of(each.listener, workers) == wanted:
            return free.pop(name)
    for index, each in enumerate(nameless):
        if binding_of(each.listener, workers) == wanted:
            return nameless.pop(index)
    return None


def _bind(
    name: str, listener: Listener, leaving: Iterable[Bound], undo: ExitStack, workers: int
) -> tuple[Socket, ...]:
    in_the_way = [each for each in leaving if _in_the_way(each.listener, listener)]
    beside = [socket for each in in_the_way for socket in each.sockets]
    datagrams = listener.listen.transport.is_datagram
    try:
        sockets = bind_listener(name, listener, workers, () if datagrams else beside)
    except BindError as error:
        if datagrams and beside and _is_in_use(error):
            busy = OSError(errno.EBUSY, STILL_SERVING)
            raise BindError(f"listener.{name}", str(listener.listen), busy) from error
        raise
    for socket in sockets:
        undo.callback(socket.close)
    for file in socket_files(sockets):
        undo.callback(file.remove)
    return tuple(sockets)


def _in_the_way(old: Listener, new: Listener) -> bool:
    """Whether the kernel may refuse an address because of a socket that has the other's."""
    one, other = old.listen, new.listen
    return one.transport is other.transport and 0 != one.port == other.port


def _is_in_use(error: BindError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE


def _adjust(former: Bound, new: Listener, undo: ExitStack) -> None:
    """Set on a socket what is said of it now and was not before.

    Raises:
        OSError: the kernel refuses it; what was set before is taken back by ``undo``.

    """
    old = former.listener
    for setter in changes(old, new):
        for socket in former.sockets:
            undo.callback(_quietly, setter, socket, Former(new), old)
            setter(socket, Former(old), new)


def _quietly(setter: Setter, socket: Socket, former: Former, listener: Listener) -> None:
    with suppress(OSError):  # it was so before
        setter(socket, former, listener)
