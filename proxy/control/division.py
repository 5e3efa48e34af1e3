"""What belongs to which worker of a crew: listening sockets, parts of the bounds, flow ids.

Clients are steered to workers by the prefix of their address (see ``steering``), each worker by a
listening socket of its own; what cannot be shared (see ``lone_reason`` there) belongs to one
worker. The table limit is divided among them, and so is the rate at which a drain ends flows. Flow
ids tell whose a flow is: worker ``k`` of ``n`` gives ``k + 1``, ``k + 1 + n`` and so on; one that
takes another's place begins far beyond what that may have given.

Nothing here waits or speaks to anybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from math import inf
from typing import TYPE_CHECKING, Final
from zlib import crc32

from proxy.core.steering import worker_of
from proxy.engine.child import Hello
from proxy.engine.specs import Change, DrainOrder, OpenListener, UpstreamSpec

if TYPE_CHECKING:
    from socket import SocketType as Socket

    from proxy.core.pace import Pace

GENERATION: Final = 1_000_000_000
"""Ids of one life of a worker; its successor goes on with the next ones."""


class Division:
    """How so many workers share.

    Args:
        size: how many they are.
        table_limit: flows at once, of all together.
        recent: ended flows remembered, of all together.

    """

    def __init__(self, size: int, table_limit: int, recent: int) -> None:
        self._size = size
        self._bounds = (table_limit, recent)
        self._generations = [0] * size

    def settings(self, index: int) -> Hello:
        """What a worker is made of that begins now; each time another."""
        generation = self._generations[index]
        self._generations[index] += 1
        first_id = index + 1 + self._size * GENERATION * generation
        table_limit, recent = (self._share(bound, index) for bound in self._bounds)
        return Hello(table_limit, recent, first_id, self._size)

    def worker_of(self, id: int) -> int:
        """Whose a flow is."""
        return (id - 1) % self._size

    def worker_for(self, opened: OpenListener, host: str) -> int:
        """Who serves a host that comes to a listener."""
        if not self._is_shared(opened):
            return self._lone_worker(opened)
        limits = opened.spec.admission
        return worker_of(ip_address(host), self._size, limits.prefix_v4, limits.prefix_v6)

    def _is_shared(self, opened: OpenListener) -> bool:
        """Whether each worker has a socket of a listener, or several that others had once."""
        return len(opened.sockets) >= self._size

    def _lone_worker(self, opened: OpenListener) -> int:
        """Who serves a listener that cannot be shared."""
        return lone_worker(opened.spec.name, self._size)

    def part(self, change: Change, index: int) -> Change:
        """What of a change is for one worker."""
        return replace(
            change,
            upstreams=self.upstreams(change.upstreams, index),
            opened=tuple(self._opened(change.opened, index)),
            pace=self._pace(change.pace),
            table_limit=self._share(change.table_limit, index),
            recent=self._share(change.recent, index),
        )

    def upstreams(self, specs: Sequence[UpstreamSpec], index: int) -> tuple[UpstreamSpec, ...]:
        """Upstreams as one worker has them: its part of each ceiling, and of those who may wait."""
        return tuple(self._upstream(spec, index) for spec in specs)

    def _upstream(self, spec: UpstreamSpec, index: int) -> UpstreamSpec:
        endpoints = tuple(
            each if each.ceiling == inf else each._replace(ceiling=self._some(each.ceiling, index))
            for each in spec.endpoints
        )
        waiting = spec.waiting
        if waiting is not None:
            waiting = waiting._replace(flows=self._some(waiting.flows, index))
        return replace(spec, endpoints=endpoints, waiting=waiting)

    def _some(self, bound: float, index: int) -> int:
        """A worker's part of a bound, and 1 where there is less than one for each."""
        return max(1, self._share(int(bound), index))

    def order(self, order: DrainOrder) -> DrainOrder:
        """What of a drain is for each worker."""
        return order._replace(pace=self._pace(order.pace))

    def _opened(self, opened: Sequence[OpenListener], index: int) -> Iterator[OpenListener]:
        """A worker's listeners; of one that was drained the sockets are closed.

        It is the worker's all the same, without any: so that it says that nobody can come by it.
        """
        for each in opened:
            own = self._sockets_of(each, index)
            if own:
                there = (socket for socket in own if socket.fileno() >= 0)
                yield each._replace(sockets=tuple(there))

    def _sockets_of(self, opened: OpenListener, index: int) -> Sequence[Socket]:
        """A worker's sockets of a listener, closed ones among them."""
        if self._is_shared(opened):
            return opened.sockets[index :: self._size]
        return opened.sockets if self._lone_worker(opened) == index else ()

    def _pace(self, pace: Pace) -> Pace:
        """A worker's part of a pace: it ends its own flows, and knows nothing of the others'."""
        return pace._replace(rate=pace.rate / self._size)

    def _share(self, bound: int, index: int) -> int:
        """A worker's part of a bound; the parts add up to it."""
        return bound // self._size + (index < bound % self._size)


def lone_worker(listener: str, size: int) -> int:
    """Which of so many workers serves a listener that cannot be shared."""
    return crc32(listener.encode()) % size


def whole(before: Change | None, change: Change) -> Change:
    """What a worker that begins now has to be."""
    if before is None:
        return change
    specs = {spec.name: spec for spec in change.changed}
    listeners = {
        each.spec.name: each._replace(spec=specs.get(each.spec.name, each.spec))
        for each in before.opened
        if each.spec.name not in change.closed
    }
    listeners |= {each.spec.name: each for each in change.opened}
    return replace(change, opened=tuple(listeners.values()), changed=(), closed=())
