"""A worker that takes over: flows of predecessors come to life here.

Flows of datagrams are revived in the turn in which the listeners open; see ``handover``. Streams
come while everything runs. A flow that cannot live here is reset on both sides, told, and counted
as ``internal``: that must not happen, for the predecessor gives only what it was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from socket import SocketType as Socket
from time import monotonic
from typing import TYPE_CHECKING

import structlog
import trio

from proxy.core.past_flow import PastFlow
from proxy.engine.handover import Bequest, HandOverError, Heir, Moving
from proxy.engine.revive import ReviveError, revive
from proxy.engine.tcp import reset_on_close

if TYPE_CHECKING:
    from proxy.core.flow_state import FlowState
    from proxy.engine.relay import Relay
    from proxy.engine.roster import Roster

log = structlog.get_logger()


class Arriving:
    """The flows that come to one worker.

    Args:
        relay: where they live.
        roster: its listeners.

    Attributes:
        offset: Unix time less monotonic time, as a predecessor saw it; None if there was none.

    """

    def __init__(self, relay: Relay, roster: Roster) -> None:
        self._relay = relay
        self._roster = roster
        self._heirs: list[Heir] = []
        self._bequests: list[Bequest] = []
        self._begun = trio.Event()
        self._over = trio.Event()
        self.offset: float | None = None
        self._flows = 0
        self._lost = 0

    def expect(self, heirs: Sequence[Heir]) -> None:
        """Have flows come by these wires."""
        self._heirs += heirs

    async def take_datagrams(self) -> None:
        """Receive all flows of datagrams that will come; ``revive_datagrams`` follows.

        A predecessor that fails keeps its flows.
        """
        heirs, self._heirs = self._heirs, []
        async with trio.open_nursery() as nursery:
            for heir in heirs:
                nursery.start_soon(self._take_datagrams, heir)

    def revive_datagrams(self, now: float) -> None:
        """Bring to life what has come, now that the listeners are open."""
        bequests, self._bequests = self._bequests, []
        for _, papers in bequests:
            self._relay.table.skip(papers.next_id - 1)
            self._roster.know_drops(papers.drops)
            self.offset = papers.offset
        for bequest in bequests:
            self._revive(bequest.flows, now)
        if self._heirs:
            self._begun.set()

    async def run(self) -> None:
        """Receive streams, once they are expected, until there are no more."""
        await self._begun.wait()
        began = monotonic()
        async with trio.open_nursery() as nursery:
            for heir in self._heirs:
                nursery.start_soon(self._take_streams, heir)
        self._relay.table.settle()
        self._over.set()
        seconds = round(monotonic() - began, 3)
        log.info("took_over", flows=self._flows, lost=self._lost, seconds=seconds)

    async def wait_over(self) -> None:
        """Wait until all that was expected has come."""
        await self._over.wait()

    async def _take_datagrams(self, heir: Heir) -> None:
        try:
            self._bequests.append(await heir.take_datagrams())
        except HandOverError as error:
            log.warning("hand_over_failed", error=str(error))
        else:
            self._heirs.append(heir)

    async def _take_streams(self, heir: Heir) -> None:
        ended: list[FlowState] = []
        try:
            await heir.be_ready()
            while flows := await heir.take_streams():
                if flows[0][0].end is None:
                    self._revive(flows, monotonic())
                else:
                    ended += [state for state, _ in flows]
        except HandOverError as error:
            log.warning("hand_over_failed", error=str(error))
        self._remember(ended)

    def _revive(self, flows: Sequence[Moving], now: float) -> None:
        for state, files in flows:
            try:
                revive(self._relay, self._roster, state, files, now)
            except (ReviveError, OSError) as error:
                log.error("flow_not_revived", flow=state.id, error=str(error))
                self._lose(state, files)
            else:
                self._flows += 1

    def _lose(self, state: FlowState, files: Sequence[int]) -> None:
        self._lost += 1
        self._roster.counters_called(state.listener, state.transport).flow_lost()
        for fd in files:
            socket = Socket(fileno=fd)
            if state.datagrams is None:
                reset_on_close(socket)
            socket.close()

    def _remember(self, ended: Sequence[FlowState]) -> None:
        """Have flows that ended before any of ours in the ring, as far as there is room."""
        recent = self._relay.table.recent
        room = (recent.maxlen or 0) - len(recent)
        for state in islice(reversed(ended), room):
            counters = self._roster.counters_called(state.listener, state.transport)
            recent.appendleft(PastFlow(state, counters))
