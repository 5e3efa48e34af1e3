"""A flow that ended in another process: of it there is only what the table tells.

Its listener's counters are there for its name; it is counted nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.core.endpoint import Endpoint
from proxy.core.flow import Direction, Flow
from proxy.core.responders import Responders
from proxy.core.stalls import Stalls, insight_of

if TYPE_CHECKING:
    from proxy.core.counters import ListenerCounters
    from proxy.core.flow_state import EndState, FlowState, LegState
    from proxy.core.identity import Identity
    from proxy.core.sample import Insight
    from proxy.core.unix import Credentials


class PastFlow(Flow):
    """A flow that ended in another process.

    Args:
        state: what it was.
        counters: of its listener.

    """

    __slots__ = ("_end", "_state")

    def __init__(self, state: FlowState, counters: ListenerCounters) -> None:
        assert state.end is not None
        self._state = state
        self._end: EndState = state.end
        self.id = state.id
        self.counters = counters
        self.client_remote = state.client_remote
        self.client_local = state.client_local
        self.endpoint_local = state.endpoint_local
        self.endpoint_remote = state.endpoint_remote
        self.endpoint = _endpoint_of(state)
        self.state = state.state
        self.opened = state.opened
        self.active = state.active
        self.closed = self._end.closed
        self.close_reason = self._end.reason
        self.close_side = self._end.side
        self.original = _direction(state.original)
        self.reply = _direction(state.reply)

    @property
    def limits_json(self) -> str:
        """The limits that were in force for it."""
        return self._end.limits

    @property
    def identity(self) -> Identity | None:
        """What is known of the client beyond its address."""
        return self._state.identity

    @property
    def half_closed(self) -> float | None:
        """When the first side ended its direction."""
        return self._state.half_closed

    @property
    def unsent(self) -> tuple[int, int] | None:
        """Bytes received and thrown away when it ended."""
        return self._end.unsent

    @property
    def insight(self) -> Insight | None:
        """What held it up, and what the kernel told of it, where anybody looked."""
        state = self._state
        original, reply = (
            None if leg.stalls is None else Stalls.restored(leg.stalls)
            for leg in (state.original, state.reply)
        )
        return insight_of(state.sample, original, reply, self.active, self.closed)

    @property
    def responders(self) -> Responders | None:
        """Who answered, where the endpoint is a broadcast or multicast address."""
        if self._end.responders is None:
            return None
        responders = Responders()
        responders.restore(self._end.responders)
        return responders

    @property
    def credentials(self) -> Credentials | None:
        """The client's process."""
        return self._state.credentials

    @property
    def endpoint_credentials(self) -> Credentials | None:
        """The process that listened at the endpoint."""
        return self._state.endpoint_credentials


def _endpoint_of(state: FlowState) -> Endpoint | None:
    if state.endpoint_remote is None or not state.upstream:
        return None
    return Endpoint(state.upstream, state.endpoint, state.endpoint_remote)


def _direction(state: LegState) -> Direction:
    direction = Direction()
    direction.bytes = state.received
    direction.packets = state.packets
    return direction
