"""Clients of whom a worker that was killed had not taken a byte: the next one serves them.

A flow is in a will only when it is established: to write it down before would cost each connection
something. But the socket of its client is there, in the table of descriptors that the next worker
shares, and the kernel tells that nothing was read from it, and nothing written to it. So nobody is
wronged if the client is served like one that connects just now: its flow begins to connect anew, is
admitted anew, and has another id. The same goes for clients who wait to be admitted, or have yet to
say what they want; they may lose their place in the line.

A socket is that of a client, and not one of ours to an endpoint, if no SYN of ours is among what
was acknowledged (see ``core.crossing``). The listening socket must be there, too: a worker that
leaves closes that before it gives clients away, which may be another worker's by then.

Who has just come may be what kills workers. So the clients of one that lived shorter than
``SHORT_LIFE`` are reset.
"""

from __future__ import annotations

from contextlib import suppress
from socket import AF_INET, AF_INET6, SO_ACCEPTCONN, SO_LINGER, SOCK_STREAM, SOL_SOCKET
from socket import socket as Socket
from typing import TYPE_CHECKING, Final

from proxy.core.address import WILDCARDS
from proxy.engine.accept import StreamListener
from proxy.engine.sockaddr import canonical
from proxy.engine.survival.borrowed import borrowed
from proxy.engine.survival.reading import peer_of, read_socket
from proxy.engine.tcp import RESET_ON_CLOSE, reset_on_close

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.core.address import Address
    from proxy.engine.roster import Roster

FAMILIES: Final = frozenset({AF_INET, AF_INET6})


def find_untouched(files: Iterable[int]) -> dict[int, bool]:
    """Those of a killed worker's descriptors that are such clients.

    Args:
        files: that belong to no flow, listening sockets among them.

    Returns:
        By descriptor, whether its listening socket is there; or it may have another worker.

    """
    ports = set[int]()
    clients: dict[int, int] = {}
    for fd in files:
        with suppress(OSError), borrowed(fd) as socket:  # ENOTSOCK
            if socket.family not in FAMILIES or socket.type != SOCK_STREAM:
                continue
            port: int = socket.getsockname()[1]
            if socket.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
                ports.add(port)
            elif _is_untouched(socket):
                clients[fd] = port
    return {fd: port in ports for fd, port in clients.items()}


def _is_untouched(socket: Socket) -> bool:
    """Whether nothing has passed, and nobody has begun to reset it."""
    reading = read_socket(socket, is_ours=False)
    if reading is None or not reading.is_untouched:
        return False
    linger = socket.getsockopt(SOL_SOCKET, SO_LINGER, len(RESET_ON_CLOSE))
    return linger != RESET_ON_CLOSE


def serve_unserved(roster: Roster, clients: Iterable[int], now: float, *, trusted: bool) -> int:
    """Serve clients, now that the listeners are open; return how many.

    Args:
        roster: the listeners.
        clients: their descriptors, which are taken.
        now: monotonic seconds.
        trusted: whether none of them is suspected; else they are reset, and counted as lost.

    """
    served = 0
    for fd in clients:
        client = Socket(fileno=fd)
        local = canonical(client.getsockname())
        listener = _listener_at(roster, local)
        if listener is None:  # or its flows live on through less
            _reset(client)
        elif not trusted:
            listener.counters.flow_lost()
            _reset(client)
        else:
            _serve(listener, client, local, now)
            served += 1
    return served


def _serve(listener: StreamListener, client: Socket, local: Address, now: float) -> None:
    counters = listener.counters
    opened = counters.opened
    try:
        listener.receive(client, peer_of(client), local, now, None)
    except Exception as error:  # the flows that live on must not fail for it
        listener.crashed(error, now)
    if counters.opened > opened:
        counters.flow_resumed()


def _listener_at(roster: Roster, local: Address) -> StreamListener | None:
    """The listener whose clients hit this address of ours, if its flows outlive their worker."""
    there = {
        each.address: each
        for each in roster.accepting()
        if isinstance(each, StreamListener) and each.terms.will is not None
    }
    hosts = (local[0], *WILDCARDS)
    return next((there[host, local[1]] for host in hosts if (host, local[1]) in there), None)


def _reset(client: Socket) -> None:
    reset_on_close(client)
    client.close()
