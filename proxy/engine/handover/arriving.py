"""A worker that takes over: flows of predecessors come to life here.

Flows of datagrams are revived in the turn in which the listeners open; see ``handover``. Streams
come while everything runs. As long as not all are here, nobody knows whether there is a place where
there is a ceiling; so listeners that have one, or whose endpoints have, accept nobody until each
predecessor has given what it could, and those come first who had been waiting there.

A flow that cannot live here is reset on both sides, told, and counted as ``internal``: that must
not happen, for the predecessor gives only what it was asked for.

Until we are told that we *own* what came, predecessors take it back if we end (``custody``). So a
worker whose supervisor is gone by then lets go of it without a word: it goes on there, and it is
there that its end is counted and told. What a killed worker left us may be theirs in the same way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from socket import SocketType as Socket
from time import monotonic
from typing import TYPE_CHECKING

import structlog
import trio

from proxy.core.address import Transport
from proxy.core.past_flow import PastFlow
from proxy.engine.datagram import DatagramFlow
from proxy.engine.handover.doors import Doors
from proxy.engine.handover.frozen import can_freeze, depart, freeze
from proxy.engine.handover.revive import ReviveError, revive
from proxy.engine.handover.transfer import (
    CLIENTS,
    NOTHING_MORE,
    PATIENCE,
    STREAMS,
    Bequest,
    HandOverError,
    Heir,
    Moving,
    Waiting,
)
from proxy.engine.stream import StreamFlow
from proxy.engine.survival.shared import take_mark
from proxy.engine.survival.unserved import serve_unserved
from proxy.engine.tcp import reset_on_close

if TYPE_CHECKING:
    from proxy.core.flow_state import FlowState
    from proxy.engine.relay import Relay
    from proxy.engine.roster import Roster
    from proxy.engine.survival.executor import Legacy

log = structlog.get_logger()


class Arriving:
    """The flows that come to one worker.

    Args:
        relay: where they live.
        roster: its listeners.

    Attributes:
        offset: Unix time less monotonic time, as a predecessor saw it; None if there was none.
        bereaved: awaited when a predecessor gives nothing, before anything is done without that.

    """

    def __init__(self, relay: Relay, roster: Roster) -> None:
        self._relay = relay
        self._roster = roster
        self._doors = Doors(roster)
        self._heirs: list[Heir] = []
        self._bequests: list[Bequest] = []
        self._awaited: list[Heir] = []
        self._clients: list[Waiting] = []
        self._begun = trio.Event()
        self._over = trio.Event()
        self.offset: float | None = None
        self.bereaved: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self._flows = 0
        self._lost = 0
        self._legacy: Legacy | None = None
        self._borrowed = set[int]()  # ids of flows that predecessors may take back
        self._is_owner = False

    def expect(self, heirs: Sequence[Heir]) -> None:
        """Have flows come by these wires."""
        self._heirs += heirs

    def inherit(self, legacy: Legacy) -> None:
        """Have all flows come to life with those of datagrams, left by a killed worker."""
        self._legacy = legacy

    async def take_datagrams(self) -> None:
        """Receive all flows of datagrams that will come; ``revive_datagrams`` follows.

        A predecessor that fails keeps its flows.
        """
        heirs, self._heirs = self._heirs, []
        async with trio.open_nursery() as nursery:
            for heir in heirs:
                nursery.start_soon(self._take_datagrams, heir)
        if len(self._heirs) < len(heirs):
            await self.bereaved()

    def revive_datagrams(self, now: float) -> None:
        """Bring to life what has come, now that the listeners are open."""
        bequests, self._bequests = self._bequests, []
        for _, papers in bequests:
            self._relay.table.skip(papers.next_id - 1)
            self._doors.know_drops(papers.drops)
            self.offset = papers.offset
        for bequest in bequests:
            self._borrow(bequest.flows, now)
        if self._legacy is not None:
            legacy, self._legacy = self._legacy, None
            self._relay.table.skip(legacy.next_id - 1)
            self.offset = legacy.offset
            self._borrow(legacy.flows, now)
            self._settle(legacy, now)
        if self._heirs:
            self._doors.hold_full()
            self._begun.set()

    def _settle(self, legacy: Legacy, now: float) -> None:
        """Count what of a legacy could not live on, and say how it went."""
        for (name, transport), count in legacy.lost.items():
            counters = self._roster.counters_called(name, Transport(transport))
            for _ in range(count):
                counters.flow_lost()
            self._lost += count
        for (name, transport), moved in legacy.moved.items():
            counters = self._roster.counters_called(name, Transport(transport))
            counters.finished_before = moved.finished
            counters.original.moved_before = moved.original, moved.waiting_original
            counters.reply.moved_before = moved.reply, moved.waiting_reply
        self._relay.table.settle()
        for will in legacy.wills:
            will.clear()
        if self._relay.will is not None:
            take_mark(self._relay.will.number)
        trusted = not legacy.is_short
        served = serve_unserved(self._roster, legacy.unserved, now, trusted=trusted)
        self._lost += len(legacy.unserved) - served
        log.info("survived", flows=self._flows, lost=self._lost, clients=served)

    async def run(self) -> None:
        """Receive streams, once they are expected, until there are no more."""
        await self._begun.wait()
        began = monotonic()
        self._awaited = list(self._heirs)
        async with trio.open_nursery() as watched:
            watched.start_soon(self._let_in_late)
            with self._relay.pump.short_rounds():
                async with trio.open_nursery() as nursery:
                    for heir in self._heirs:
                        nursery.start_soon(self._take_streams, heir)
            watched.cancel_scope.cancel()
        self._relay.table.settle()
        self._over.set()
        seconds = round(monotonic() - began, 3)
        log.info("took_over", flows=self._flows, lost=self._lost, seconds=seconds)

    def own(self) -> None:
        """Know that what has come stays, whatever becomes of its predecessors."""
        self._is_owner = True
        self._borrowed.clear()

    def give_back(self, now: float) -> None:
        """Let go of what predecessors take back when this process ends, which it is about to."""
        for flow in list(self._relay.table):
            if flow.id in self._borrowed and can_freeze(flow):
                assert isinstance(flow, StreamFlow | DatagramFlow)
                depart(freeze(flow), now)

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
            while (batch := await heir.take_next()).kind != NOTHING_MORE:
                if batch.kind == STREAMS:
                    self._borrow(batch.flows, monotonic())
                    await heir.be_ready()
                elif batch.kind == CLIENTS:
                    self._clients += batch.clients
                    self._know_all(heir)
                else:
                    ended += [state for state, _ in batch.flows]
        except HandOverError as error:
            log.warning("hand_over_failed", error=str(error))
        self._know_all(heir)
        self._remember(ended)

    def _know_all(self, heir: Heir) -> None:
        """Know that what a predecessor could give at once is here; if of all, let others in."""
        if heir in self._awaited:
            self._awaited.remove(heir)
        if not self._awaited:  # or it is late
            self._let_all_in()

    async def _let_in_late(self) -> None:
        """Let others in though a predecessor says nothing."""
        await trio.sleep(PATIENCE)
        self._awaited.clear()
        self._let_all_in()

    def _let_all_in(self) -> None:
        """Take in who waited, and then whoever comes."""
        clients, self._clients = self._clients, []
        for state, (fd,) in clients:
            self._doors.take_in(state, Socket(fileno=fd), monotonic())
        self._doors.let_in()

    def _borrow(self, flows: Sequence[Moving], now: float) -> None:
        """Bring to life what a predecessor may take back, unless it is told already not to."""
        if not self._is_owner:
            self._borrowed.update(state.id for state, _ in flows)
        self._revive(flows, now)

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
