"""What becomes of the flows of an endpoint that is down, or ejected.

Streams are kept, or are closed as ``endpoint_down``, as the upstream says. Datagram flows that are
kept leave the index: the next datagram of their client opens another flow, at an endpoint that is
usable, while answers of the old one still come back until its clocks end it. So nobody who only
sends goes on talking to a dead endpoint. They stay while no endpoint is usable: a new flow would be
no better off.

The table is gone through once for each change, a slice a turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from proxy.core.condition import Condition
from proxy.core.flow import CloseReason, CloseSide, Flow
from proxy.engine.datagram import DatagramFlow
from proxy.engine.drains import slices
from proxy.engine.stream import StreamFlow

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.upstream import Upstream
    from proxy.engine.relay import Relay

FALLEN: Final = frozenset({Condition.DOWN, Condition.EJECTED})

log = structlog.get_logger()


class Downfall:
    """Sees to the flows of endpoints that are down; a ``Handler`` without a socket.

    Args:
        relay: where flows live.

    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._fallen: dict[Endpoint, bool] = {}  # whether its flows are closed
        self._parts: Iterator[Sequence[Flow]] | None = None  # what is left to go through

    def look(self, upstream: Upstream) -> None:
        """See to the flows of an upstream whose endpoints are in another condition than before."""
        for endpoint in upstream.endpoints:
            if endpoint.condition not in FALLEN or not endpoint.flows:
                continue
            if upstream.closes_fallen or upstream.usable:
                self._fallen[endpoint] = upstream.closes_fallen
        if self._fallen:
            self._parts = None  # from the start, for those that have just been added
            self._relay.pump.again(self, 0)

    def ready(self, mask: int, now: float) -> None:
        """Go through a slice of the table."""
        if self._parts is None:
            self._parts = slices(list(self._relay.table))
        part = next(self._parts, None)
        if part is None:
            self._forget()
            return
        for flow in part:
            if flow.endpoint in self._fallen and flow.close_reason is None:
                self._end(flow, now, closes=self._fallen[flow.endpoint])
        self._relay.pump.again(self, 0)

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours, and leave the rest of the flows as they are."""
        log.error("downfall_crashed", exc_info=error)
        self._forget()

    def _forget(self) -> None:
        self._fallen.clear()
        self._parts = None

    def _end(self, flow: Flow, now: float, *, closes: bool) -> None:
        assert isinstance(flow, StreamFlow | DatagramFlow)
        if closes:
            flow.abort(CloseReason.ENDPOINT_DOWN, CloseSide.ENDPOINT, now)
        elif isinstance(flow, DatagramFlow):
            flow.leave_index()
