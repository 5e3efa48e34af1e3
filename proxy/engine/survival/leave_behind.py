"""Flows of datagrams that live on when their worker is killed: they are written into the will.

Of a datagram nothing is ever kept, so nothing changes in a record after the flow was opened, but
that its endpoint has answered. What was read and not yet sent when the worker was killed is lost,
as datagrams may be: a batch at most. What a flow has carried is written down when it is shown to
anybody: so it never goes back, and may fall short.

The state that is written is the one that is handed over to a successor; see ``core.flow_state``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.flow import State
from proxy.core.flow_state import write_states
from proxy.engine.handover.frozen import datagrams_of
from proxy.engine.survival.ways import Way
from proxy.engine.survival.will import ASSURED, DATAGRAMS, NO_FILE

if TYPE_CHECKING:
    from proxy.engine.datagram import DatagramFlow
    from proxy.engine.survival.will import Will


def leave_behind(will: Will, flow: DatagramFlow) -> None:
    """Write a flow down, as far as there is room; again, if it was on its way to another worker."""
    will.forget(flow.id)
    state, files = datagrams_of(flow)
    counters = flow.counters
    way = Way(counters.listener, counters.transport, "", "")
    both = files[0], files[1] if len(files) > 1 else NO_FILE
    note = write_states([state]).encode()
    kind = ASSURED if flow.state is State.ASSURED else DATAGRAMS
    will.remember(kind, flow.id, flow.opened, way, both, note)
    will.show(flow.id, flow.original, flow.reply)
