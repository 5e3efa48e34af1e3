"""Which inherited socket serves which listener.

A socket that an operator's socket unit made is believed in what it is: its name says whose it is,
and where it listens is for the unit to say. One of our own store must be exactly what we would
bind now, or else it is dropped and we bind anew: its listener has been changed meanwhile.

The order is important: what is not wanted is closed, here and in the store, before anything is
bound; a socket of the store would still have the address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from ipaddress import ip_address
from itertools import count, takewhile
from socket import socket as Socket
from typing import TYPE_CHECKING

import structlog

from proxy.control.inherited import STORED, Inheritance, Inherited
from proxy.control.listen import grow_listener
from proxy.control.outbound import OptionError
from proxy.control.refit import differences, fit
from proxy.control.steering import lone_reason
from proxy.control.store import SocketStore, storable
from proxy.core.unix import unix_address
from proxy.engine.marks import MarkError
from proxy.engine.sockaddr import scoped

if TYPE_CHECKING:
    from proxy.config.model import Config, Listener
    from proxy.config.values import ListenAddress

log = structlog.get_logger()


def adopt(
    config: Config, inheritance: Inheritance, store: SocketStore, workers: int = 1
) -> dict[str, tuple[Socket, ...]]:
    """Choose the sockets that serve listeners, set their options, and close all others.

    Returns:
        The sockets by the names of their listeners; the caller owns them.

    Raises:
        OptionError: the kernel refuses an option to a socket that a socket unit made.
        BindError: a socket for a further worker could not be bound.

    """
    for name, reason in inheritance.rejected:
        log.warning("inherited_rejected", name=name, reason=reason, remedy="closed")
    chosen = allot(config, inheritance.sockets, workers)
    ready = {
        name: group
        for name, group in chosen.items()
        if all(_fit_out(config, name, given) for given in group)
    }
    used = {given for group in ready.values() for given in group}
    left = [given for given in inheritance.sockets if given not in used]
    for given in left:
        _tell_left(given)
        given.socket.close()
    for given in used:
        store.found(given)
    if gone := {name for name, _ in inheritance.rejected} | {given.name for given in left}:
        store.drop(gone)
    return _grown(config, ready, workers)


def allot(
    config: Config, sockets: Iterable[Inherited], workers: int = 1
) -> dict[str, tuple[Inherited, ...]]:
    """Decide which sockets are for which listener: by name first, then by address.

    A listener that workers share gets all the sockets that it had, however many there were, because
    the kernel knows each by its place: more are bound for more workers, and with fewer some workers
    have several. From a socket unit it gets one, which one worker serves.
    """
    free = list(sockets)
    chosen: dict[str, tuple[Inherited, ...]] = {}
    counts = {
        name: workers if lone_reason(listener) is None else 1
        for name, listener in config.listener.items()
    }
    for name, listener in config.listener.items():
        group = _stored_group(name, free)
        may_share = lone_reason(listener) is None or len(group) == 1
        if group and may_share and all(_is_kept(given, listener) for given in group):
            chosen[name] = group
            free = [given for given in free if given not in group]
    for rule in (is_named, is_there):
        for name, listener in config.listener.items():
            if name in chosen:
                continue
            candidates = [given for given in free if counts[name] == 1 or not given.stored]
            match = next((given for given in candidates if rule(given, name, listener)), None)
            if match is not None:
                free.remove(match)
                chosen[name] = (match,)
    return chosen


def _stored_group(name: str, free: Iterable[Inherited]) -> tuple[Inherited, ...]:
    """The sockets that were stored for a listener, in their order, as far as there is no gap."""
    by_name = {given.name: given for given in free}
    alone = by_name.get(STORED + name)
    if alone is not None:
        return (alone,)
    places = takewhile(by_name.__contains__, (f"{STORED}{name}/{place}" for place in count()))
    return tuple(by_name[label] for label in places)


def _grown(
    config: Config, ready: Mapping[str, tuple[Inherited, ...]], workers: int
) -> dict[str, tuple[Socket, ...]]:
    """The sockets that serve listeners, and further ones for workers that had none in our store."""
    given = {name: tuple(each.socket for each in group) for name, group in ready.items()}
    with ExitStack() as undo:
        for name, group in ready.items():
            listener = config.listener[name]
            if group[0].stored and len(group) < workers and lone_reason(listener) is None:
                new = grow_listener(name, listener, given[name], workers)
                for socket in new:
                    undo.callback(socket.close)
                given[name] += tuple(new)
        undo.pop_all()
    return given


def _is_kept(given: Inherited, listener: Listener) -> bool:
    """Whether a socket of the store listens where its listener shall."""
    listen = listener.listen
    return given.transport is listen.transport and _listens_at(given, listen, any_port=True)


def is_named(given: Inherited, name: str, listener: Listener) -> bool:
    """Whether a socket of a unit bears the listener's name."""
    return given.transport is listener.listen.transport and given.name == name


def is_there(given: Inherited, _name: str, listener: Listener) -> bool:
    """Whether a socket listens where the listener shall, whatever its name.

    One of several that workers shared is of no use alone.
    """
    listen = listener.listen
    alone = "/" not in given.name.removeprefix(STORED)
    return (
        alone and given.transport is listen.transport and _listens_at(given, listen, any_port=False)
    )


def _listens_at(given: Inherited, listen: ListenAddress, *, any_port: bool) -> bool:
    address = given.socket.getsockname()
    if listen.transport.is_unix:
        return bool(address == unix_address(listen.host))
    try:
        want = scoped(listen.host, listen.port)
    except OSError:  # its interface is not there; binding tells it better
        return False
    same_port = address[1] == listen.port or (any_port and listen.port == 0)
    return same_port and _host(address) == _host(want)


def _host(address: tuple[str, int] | tuple[str, int, int, int]) -> tuple[object, int]:
    """An address and its scope, to be compared."""
    scope = address[3] if len(address) == 4 else 0
    return ip_address(address[0].partition("%")[0]), scope


def _fit_out(config: Config, name: str, given: Inherited) -> bool:
    """Give a socket its listener's options; false if it cannot be what the listener wants."""
    listener = config.listener[name]
    if given.stored and (differences(given.socket, listener) or not storable(listener)):
        return False
    try:
        fit(given.socket, listener, stored=given.stored)
    except MarkError as error:
        if given.stored:
            return False
        raise OptionError(f"listener.{name}", error) from error
    except OSError as error:
        if given.stored:
            return False
        log.warning("inherited_option_refused", listener=name, error=error.strerror)
    for problem in differences(given.socket, listener):
        log.warning("inherited_differs", listener=name, name=given.name, difference=problem)
    log.info(
        "inherited",
        listener=name,
        name=given.name,
        listening=given.place,
        configured=str(listener.listen),
    )
    return True


def _tell_left(given: Inherited) -> None:
    if given.stored:
        log.info("stored_socket_dropped", name=given.name, listening=given.place)
        return
    log.warning(
        "inherited_unused",
        name=given.name,
        listening=given.place,
        remedy="closed; FileDescriptorName= names its listener, or give a listener its address",
    )
