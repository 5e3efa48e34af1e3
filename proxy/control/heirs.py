"""Which worker gets which flows of a predecessor: the one that their clients come to.

Clients are steered by the prefix of their address, see ``steering``; who serves a listener alone
has all of its flows. Whoever is not named here stays with the predecessor, and drains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.control.division import lone_worker
from proxy.control.steering import attach, program_of, steered_by
from proxy.engine.specs import Steered

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from proxy.control.sockets import Bound
    from proxy.engine.specs import LeaveOrder


def leave_order(bound: Mapping[str, Bound], workers: int, adopted: Collection[str]) -> LeaveOrder:
    """Which of so many workers gets which flows, by listener.

    Flows of datagrams belong to their listener's socket: where that is another, they stay.

    Args:
        bound: the listeners, and their sockets.
        workers: how many there are.
        adopted: the names of listeners whose sockets are those they had before.

    """
    return {
        name: _steered(name, each, workers)
        for name, each in bound.items()
        if each.listener.survive != "off"
        and (name in adopted or not each.listener.listen.transport.is_datagram)
    }


def steer(bound: Iterable[Bound], workers: int) -> None:
    """Have the kernel divide the clients of these among so many workers."""
    for each in bound:
        if len(each.sockets) > 1:
            attach(each.sockets[0], program_of(each.listener, workers))


def _steered(name: str, bound: Bound, workers: int) -> Steered:
    if len(bound.sockets) < workers:
        return Steered(1, lone_worker(name, workers))
    return Steered(workers, 0, *steered_by(bound.listener))
