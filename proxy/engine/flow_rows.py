"""Flows as others see them: as rows, as JSON, as lines of the log.

Wall-clock times are monotonic ones and an *offset*, which stays the same, so that times do not
waver, until somebody sets the clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from time import monotonic, time
from typing import TYPE_CHECKING, Final

from proxy.core.expiry import FlowLimits, limits_in_force, limits_json
from proxy.core.live_limit import restrained
from proxy.core.past_flow import PastFlow
from proxy.core.query import FlowRow, flow_row
from proxy.core.row_json import closed_flow, counts_json, row_json
from proxy.engine.datagram import DatagramFlow
from proxy.engine.handover.frozen import state_of
from proxy.engine.handover.staying import why_stays
from proxy.engine.stream import StreamFlow

if TYPE_CHECKING:
    from proxy.core.flow import Flow
    from proxy.core.flow_state import FlowState
    from proxy.core.row_json import ClosedFlow
    from proxy.core.survive import Stay
    from proxy.engine.relay import Relay
    from proxy.engine.roster import Roster

CLOCK_SET: Final = 0.1
"""Seconds; a larger jump of the wall clock is followed in the times shown."""


class FlowRows:
    """Describes the flows of one worker.

    Args:
        relay: where they live.
        roster: their listeners.
        started: when the worker began, in Unix seconds.

    """

    def __init__(self, relay: Relay, roster: Roster, started: float) -> None:
        self._relay = relay
        self._roster = roster
        self._offset = started - monotonic()

    @property
    def offset(self) -> float:
        """Unix time less monotonic time."""
        offset = time() - monotonic()
        if abs(offset - self._offset) > CLOCK_SET:
            self.go_by(offset)
        return self._offset

    def go_by(self, offset: float | None) -> None:
        """Have this offset from now on, as a predecessor saw it; None leaves ours."""
        if offset is not None:
            self._offset = offset
        if self._relay.will is not None:
            self._relay.will.offset = self._offset

    def row(self, flow: Flow) -> FlowRow:
        """Describe a flow."""
        self._remember(flow)
        return flow_row(flow, self.offset, _limits_row(flow), self._stays(flow))

    def json(self, flow: Flow) -> str:
        """Describe a flow to who watches it."""
        return row_json(flow, self.offset, _limits_json(flow), self._stays(flow))

    def shown(self, flow: Flow | None) -> str | None:
        """Describe a flow to who has asked for it; None stays None."""
        if flow is None:
            return None
        self._remember(flow)
        return self.json(flow)

    def counts(self, flow: Flow) -> str:
        """Describe what a flow has moved."""
        self._remember(flow)
        return counts_json(flow, self.offset)

    def closed(self, flows: Iterable[Flow]) -> Iterable[ClosedFlow]:
        """Describe flows that have ended, for the log."""
        offset = self.offset
        return (closed_flow(flow, offset, _limits_json(flow)) for flow in flows)

    def ended(self, flows: Iterable[Flow]) -> list[FlowState]:
        """The states of flows that have ended, for a successor."""
        return [state_of(flow, _limits_json(flow)) for flow in flows]

    def _stays(self, flow: Flow) -> Stay | None:
        return None if flow.close_reason is not None else why_stays(flow, self._roster)

    def _remember(self, flow: Flow) -> None:
        """Have what is shown of a flow not go back, should this worker be killed.

        Of streams the kernel knows what they have moved; of datagrams nobody does but us.
        """
        will = self._relay.will
        if will is not None and isinstance(flow, DatagramFlow):
            will.show(flow.id, flow.original, flow.reply)


def _limits_json(flow: Flow) -> str:
    if isinstance(flow, PastFlow):
        return flow.limits_json
    return limits_json(flow.counters.transport, _limits_of(flow))


def _limits_row(flow: Flow) -> dict[str, float]:
    if isinstance(flow, PastFlow):
        return dict(json.loads(flow.limits_json))
    return limits_in_force(flow.transport, _limits_of(flow))


def _limits_of(flow: Flow) -> FlowLimits:
    if isinstance(flow, StreamFlow):
        return flow.limits
    assert isinstance(flow, DatagramFlow)
    if flow.allowance is None or flow.allowance.ordered is None:
        return flow.limits
    return restrained(flow.limits, flow.allowance.ordered.restraint)
