"""The doors of a worker: what becomes of its listening sockets while flows change their worker.

One that leaves shuts them first, so that who comes waits in the kernel, and lends them to its
heirs when those have what belongs to them, until it is sure that they stay. One that arrives keeps
those shut behind which there may be no place. Who has connected and waits to be admitted goes
along; see ``leaving``, ``arriving``.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from math import inf
from socket import SocketType as Socket
from typing import TYPE_CHECKING, TypeAlias

from proxy.core.flow import Refusal
from proxy.core.flow_state import ClientState
from proxy.engine.accept import StreamListener
from proxy.engine.datagram_listener import DatagramListener
from proxy.engine.specs import cookie_of
from proxy.engine.tcp import reset_on_close

if TYPE_CHECKING:
    from proxy.core.counters import ListenerCounters
    from proxy.engine.roster import Listener, Roster

Held: TypeAlias = tuple[ClientState, Socket]
"""A client that waited to be admitted, and its socket."""


class Doors:
    """The listening sockets of one worker.

    Args:
        roster: which they are.

    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._shut: list[Listener] = []

    def pause(self) -> None:
        """Take neither clients nor datagrams, until ``resume``: they wait in the kernel."""
        self._shut = list(self._roster.accepting())
        for listener in self._shut:
            listener.pause()

    def resume(self) -> None:
        """Take clients and datagrams again, where others were to."""
        shut, self._shut = self._shut, []
        for listener in shut:
            if listener.is_open:
                if isinstance(listener, DatagramListener):
                    listener.is_counted = True
                listener.resume()

    def lend(self, now: float, served: Container[int] | None = None) -> None:
        """Leave the sockets to others, after a ``pause``; ``leave`` or ``resume`` follows.

        Those that nobody else has are left for good.

        Args:
            now: monotonic seconds.
            served: the sockets that others have, by their cookies; None: all.

        """
        shut, self._shut = self._shut, []
        for listener in shut:
            if served is None or cookie_of(listener.socket) in served:
                self._shut.append(listener)
                if isinstance(listener, DatagramListener):
                    listener.is_counted = False
            elif isinstance(listener, DatagramListener):
                listener.resume()
                listener.retire(now)
            else:
                listener.close()

    def leave(self, now: float) -> None:
        """Leave for good what was lent.

        A socket of datagrams stays open for the answers of flows that stay.
        """
        shut, self._shut = self._shut, []
        for listener in shut:
            if isinstance(listener, DatagramListener):
                listener.retire(now)
            else:
                listener.close()

    def hold_full(self) -> None:
        """Have clients wait in the kernel where others, yet to come, may have taken all places."""
        for listener in self._roster.accepting():
            if isinstance(listener, StreamListener) and self._is_limited(listener.counters):
                listener.pause()

    def let_in(self) -> None:
        """Take those clients too."""
        for listener in self._roster.accepting():
            if isinstance(listener, StreamListener):
                listener.resume()

    def count_waiting(self) -> int:
        """How many wait to be admitted: so many flows may be opened though the doors are shut."""
        return sum(
            len(room)
            for terms in self._roster.terms.values()
            for room in (terms.prefaces, terms.waiting)
            if room is not None
        )

    def take_waiting(self, names: Container[str]) -> list[Held]:
        """Have nobody wait at these listeners any more; the sockets are the caller's."""
        held: list[Held] = []
        for name, terms in self._roster.terms.items():
            if name not in names:
                continue
            for preface in () if terms.prefaces is None else terms.prefaces.take_out():
                counters, (remote, local) = preface.listener.counters, preface.arrival
                state = ClientState(name, counters.transport, remote, local)
                held.append((state, preface.socket))
            for client in () if terms.waiting is None else terms.waiting.take_out():
                transport = client.listener.counters.transport
                ends = client.remote, client.local
                state = ClientState(name, transport, *ends, client.identity)
                held.append((state, client.socket))
        return held

    def refuse(self, held: Iterable[Held]) -> None:
        """Reset clients that waited, and can do so nowhere any more."""
        for state, socket in held:
            counters = self._roster.counters_called(state.listener, state.transport)
            counters.refused[Refusal.DRAINING] += 1
            reset_on_close(socket)
            socket.close()

    def take_in(self, state: ClientState, client: Socket, now: float) -> None:
        """Have a client be where it would be if it had connected just now; the socket is taken."""
        listener = self._roster.stream_listener(state.listener, state.transport)
        if listener is None:
            self.refuse([(state, client)])
        else:
            listener.receive(client, state.remote, state.local, now, state.identity)

    def counted_drops(self) -> dict[int, int]:
        """Count what the kernel has dropped so far, and tell it by the sockets' cookies."""
        self._roster.count_kernel_drops()
        return {
            cookie_of(each.socket): each.kernel_drops
            for each in self._roster.accepting()
            if isinstance(each, DatagramListener)
        }

    def know_drops(self, counted: Mapping[int, int]) -> None:
        """Know what a predecessor has counted, by the cookies of sockets that are ours now."""
        for listener in self._roster.accepting():
            if isinstance(listener, DatagramListener):
                known = counted.get(cookie_of(listener.socket))
                listener.kernel_drops = listener.kernel_drops if known is None else known

    def _is_limited(self, counters: ListenerCounters) -> bool:
        """Whether there is a ceiling for the flows of a listener, or of its endpoints."""
        spec = self._roster.specs[counters.listener]
        admission = spec.admission
        if admission.flows is not None or admission.source_flows is not None:
            return True
        routed = () if spec.routes is None else (name for _, name in spec.routes.upstreams)
        return any(
            endpoint.ceiling < inf
            for name in (spec.upstream, *routed)
            for endpoint in self._roster.upstreams[name].spec.endpoints
        )
