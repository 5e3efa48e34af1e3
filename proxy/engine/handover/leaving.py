"""A worker that leaves: it hands its flows over, and keeps those that cannot go.

First it takes no more clients and datagrams; they wait in the kernel. Then all flows of datagrams
go, or none: if an heir fails, everything is as if nobody had asked. From then on the listening
sockets are the heirs' alone, and streams follow. What has gone stays in ``custody`` for a while.
Then come those who are no flows yet: clients whose PROXY header is awaited, which is still in their
sockets, and clients who wait for a place; the heir takes them in as if it had accepted them. Flows
that are connecting, or have yet to say where they want to go, are waited for. What is left at the
end stays, and is for others to drain.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import repeat
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
import trio

from proxy.engine.datagram import DatagramFlow
from proxy.engine.handover.custody import NO_HEADERS, consumed_of, offsets_of
from proxy.engine.handover.doors import Doors
from proxy.engine.handover.frozen import AnyFlow, Frozen, can_freeze, depart, freeze
from proxy.engine.handover.revive import thaw
from proxy.engine.handover.transfer import BATCH, Bequeather, HandOverError, Papers
from proxy.engine.stream import StreamFlow

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.flow import Flow
    from proxy.core.flow_state import ClientState, FlowState
    from proxy.core.identity import Identity
    from proxy.engine.handover.custody import Custody, Offsets
    from proxy.engine.handover.doors import Held
    from proxy.engine.handover.process_file import ProcessFile
    from proxy.engine.relay import Relay
    from proxy.engine.roster import Roster
    from proxy.engine.specs import LeaveOrder

AGAIN: Final = 0.05
"""Seconds until flows are asked again that could not go: a tick of the timers."""

Kind = TypeVar("Kind", StreamFlow, DatagramFlow)

log = structlog.get_logger()


@dataclass(slots=True)
class Left:
    """What became of the flows of a worker that left.

    Attributes:
        handed: how many have gone.
        longest: seconds that one of them stood still at most, until its heir served it.
        failure: why no more could go; "" if nothing failed.

    """

    handed: int = 0
    longest: float = 0.0
    failure: str = ""


class Leaving:
    """One worker's leave.

    Args:
        relay: whose flows go.
        roster: its listeners.
        order: who gets which.
        heirs: the ends of the wires to them, by their numbers.
        offset: Unix time less monotonic time.
        custody: has what is handed over until that is over.
        served: the listening sockets that heirs have, by their cookies; None: all.

    """

    def __init__(
        self,
        relay: Relay,
        roster: Roster,
        order: LeaveOrder,
        heirs: Sequence[Bequeather],
        offset: float,
        custody: Custody,
        served: Container[int] | None = None,
    ) -> None:
        self._relay = relay
        self._roster = roster
        self._doors = Doors(roster)
        self._order = order
        self._heirs = heirs
        self._offset = offset
        self._custody = custody
        self._served = served
        self._are_lent = False
        self._left = Left()
        self._began = 0.0
        self._held: list[Held] = []

    async def give_datagrams(self) -> None:
        """Hand over the listening sockets, and all flows of datagrams.

        Raises:
            HandOverError: an heir has failed; everything is as it was before.

        """
        processes: list[ProcessFile | None] = []
        async with self._or_back(self._heirs):
            with ExitStack() as met:
                for heir in self._heirs:
                    process = await heir.meet()
                    if process is not None:
                        met.callback(process.close)
                    processes.append(process)
                met.pop_all()
        self._custody.begin(processes)
        self._began = monotonic()
        self._doors.pause()
        next_id = self._relay.table.id_after(self._doors.count_waiting())
        papers = Papers(next_id, self._offset, self._doors.counted_drops())
        parts = [
            [freeze(flow) for flow in self._ready(heir, DatagramFlow)]
            for heir in range(len(self._heirs))
        ]
        async with self._or_back(self._heirs, *parts, doors=True):
            for heir, part in zip(self._heirs, parts, strict=True):
                moving = [(each.state, each.files) for each in part]
                await heir.give_datagrams(moving, papers)
        for number, part in enumerate(parts):
            await self._heirs[number].commit()
            self._let_go(number, part)
        self._held = self._doors.take_waiting(self._order)
        self._doors.lend(monotonic(), self._served)
        self._are_lent = True
        self._custody.hold(self._doors)

    async def give_streams(self, patience: float) -> None:
        """Hand over streams, those too that can go within so many seconds."""
        until = monotonic() + patience
        try:
            for heir in self._heirs:
                await self._wait_served(heir, self._began)
            await self._give_ready()
            for number, heir in enumerate(self._heirs):
                await self._give_clients(number, heir)
            while monotonic() < until and self._is_awaited():
                await trio.sleep(AGAIN)
                await self._give_ready()
        except HandOverError as error:
            self._left.failure = str(error)
            log.warning("hand_over_failed", error=str(error), left=len(self._relay.table))
            for number, heir in enumerate(self._heirs):
                self._left.handed -= await self._custody.end(number, kill=heir.stands_still)
        finally:
            self._take_leave_of_held()

    def _take_leave_of_held(self) -> None:
        """Let those in again who still wait, if everybody is; else they can wait nowhere."""
        held, self._held = self._held, []
        if not self._custody.has_all_back:
            self._doors.refuse(held)
            return
        for state, client in held:
            self._doors.take_in(state, client, monotonic())

    async def finish(self, ended: Sequence[FlowState]) -> Left:
        """Hand over what is known of flows that ended, and say that this is all."""
        for heir in self._heirs:
            if not self._left.failure:
                try:
                    await heir.give_ended(ended if heir is self._heirs[0] else ())
                except HandOverError as error:
                    self._left.failure = str(error)
            await heir.finish()
        return self._left

    @asynccontextmanager
    async def _or_back(
        self, heirs: Sequence[Bequeather], *parts: Sequence[Frozen], doors: bool = False
    ) -> AsyncIterator[None]:
        """Take back what is being given, and go on with it, if anything goes wrong.

        Whatever that is, a cancellation too; it is raised again.

        Args:
            heirs: to whom it is given; nothing more will be.
            parts: what is given.
            doors: whether the listening sockets are, too.

        """
        try:
            yield
        except BaseException:
            with trio.CancelScope(shield=True):
                for heir in heirs:
                    await heir.abandon()
            for part in parts:
                self._keep(part)
            if doors:
                self._doors.resume()
                self._custody.release()
            raise

    async def _give_ready(self) -> None:
        """Hand over all streams that can go now."""
        for number in range(len(self._heirs)):
            ready = self._ready(number, StreamFlow)
            for start in range(0, len(ready), BATCH):
                part = ready[start : start + BATCH]
                await self._give_batch(number, [flow for flow in part if can_freeze(flow)])

    async def _give_clients(self, number: int, heir: Bequeather) -> None:
        """Hand over the clients that wait; they are held while all streams are on their way."""
        part = [each for each in self._held if self._heir_of(each[0]) == number]
        consumed = [consumed_of(each[1]) for each in part]
        async with self._or_back([heir]):
            await heir.give_clients([(state, (socket.fileno(),)) for state, socket in part])
        await heir.commit()
        if not self._custody.has_all_back:
            for each, before in zip(part, consumed, strict=True):
                self._held.remove(each)
                self._custody.keep_client(number, each, before)

    def _heir_of(self, client: ClientState) -> int:
        return self._order[client.listener].heir_of(_peer(client.remote, client.identity))

    async def _give_batch(self, number: int, flows: Sequence[AnyFlow]) -> None:
        if not flows:  # they have ended meanwhile
            return
        heir = self._heirs[number]
        began = monotonic()
        part = [freeze(flow) for flow in flows]
        offsets = [offsets_of(each) for each in part]
        async with self._or_back([heir], part):
            await heir.give_streams([(each.state, each.files) for each in part])
        await heir.commit()
        self._let_go(number, part, offsets)
        await self._wait_served(heir, began)

    async def _wait_served(self, heir: Bequeather, began: float) -> None:
        """Wait until an heir serves what it was given, if anything, and can take more."""
        await heir.wait_ready()
        if self._left.handed:
            self._left.longest = max(self._left.longest, monotonic() - began)

    def _is_awaited(self) -> bool:
        """Whether any flow may yet go."""
        return any(self._is_for(flow) is not None for flow in self._relay.table)

    def _ready(self, heir: int, kind: type[Kind]) -> list[Kind]:
        """The flows of an heir, of one kind, that can go now."""
        return [
            flow
            for flow in self._relay.table
            if isinstance(flow, kind) and self._is_for(flow) == heir and can_freeze(flow)
        ]

    def _is_for(self, flow: Flow) -> int | None:
        """Whose a flow is to be; None if it stays."""
        counters = flow.counters
        steered = self._order.get(counters.listener)
        if steered is None or self._roster.spec_of(counters.listener, counters.transport) is None:
            return None
        if isinstance(flow, DatagramFlow) and (self._are_lent or flow.listener.draining):
            return None  # clients send to a socket that the heirs do not have; or they had it all
        return steered.heir_of(_peer(flow.client_remote, flow.identity))

    def _keep(self, part: Sequence[Frozen]) -> None:
        now = monotonic()
        for each in part:
            if each.flow.close_reason is None:
                thaw(each.flow, self._roster, now)

    def _let_go(self, heir: int, part: Sequence[Frozen], offsets: Sequence[Offsets] = ()) -> None:
        now = monotonic()
        for each, before in zip(part, offsets or repeat(NO_HEADERS), strict=False):
            if each.flow.close_reason is None:  # by an order that came meanwhile
                self._custody.keep(heir, each, before)
                depart(each, now)
        self._custody.look_again(heir)
        self._left.handed += len(part)


def _peer(client: Address, identity: Identity | None) -> str:
    """The host that has connected, by which the kernel steers: the client, or who speaks for it."""
    via = None if identity is None else identity.via
    return client[0] if via is None else via.remote[0]
