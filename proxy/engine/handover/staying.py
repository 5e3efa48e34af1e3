"""Which flows would stay in their process, and drain there, when it leaves for another.

That is told before it happens, as far as it is known: by what the listener is now. In the end the
next process decides, by its own configuration; see ``control.heirs`` and ``leaving``. It may have
no such listener any more, or give it another socket.

What passes within seconds, as a rule, is no reason: a flow that is connecting, or flushes the last
bytes of a side that was reset, is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.survive import Stay, Survive
from proxy.engine.datagram import DatagramFlow

if TYPE_CHECKING:
    from proxy.core.flow import Flow
    from proxy.engine.roster import Roster


def why_stays(flow: Flow, roster: Roster) -> Stay | None:
    """Why a live flow would stay; None if it would go."""
    spec = roster.spec_of(flow.counters.listener, flow.counters.transport)
    if spec is None or (isinstance(flow, DatagramFlow) and flow.listener.draining):
        return Stay.LEFT
    if spec.survive is Survive.OFF:
        return Stay.SURVIVE
    return Stay.MULTICAST if spec.datagrams.multicast else None
