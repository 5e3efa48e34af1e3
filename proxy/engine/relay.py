"""What all flows of a worker share: the pump, the table, the timers, the budget of descriptors.

Here a flow is admitted, and here it ends; the stream and datagram modules move the bytes between.
"""

from __future__ import annotations

from collections import Counter, deque
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, cast

import trio

from proxy.core.flow import CloseReason, CloseSide, Flow, Refusal
from proxy.core.table import FlowTable
from proxy.core.wheel import TimerWheel
from proxy.engine.errands import Errands
from proxy.engine.exits import Exits
from proxy.engine.files import FileBudget
from proxy.engine.mmsg import DatagramBatch
from proxy.engine.orders import Orders
from proxy.engine.pump import Pump
from proxy.engine.replies import ReplyBatch
from proxy.engine.splice import PipePool
from proxy.engine.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.core.address import Address, Transport
    from proxy.core.sources import SourceKey
    from proxy.engine.commons import Commons
    from proxy.engine.survival.will import Will
    from proxy.engine.watch import Watch

OUTBOX: Final = 65536
"""Ended flows that wait to be logged; beyond it records are dropped and counted, not held."""

GATHER: Final = 0.02
"""Seconds that ended flows gather before they are looked at: a task wakes fifty times a second at
most, however many flows end, and a turn of Trio costs as much as the lines of ten flows."""

TOLD_AT_ONCE: Final = 5
"""Deadlines told before a turn may end: a twentieth of a millisecond, if they end flows."""


class Evictable(Protocol):
    """What every flow of the engine can do."""

    def abort(self, reason: CloseReason, side: CloseSide, now: float) -> None:
        """End now."""
        ...


class Relay:
    """Pump, table, timers and budget of one worker.

    Args:
        table_limit: flows at once.
        recent: ended flows remembered.
        now: monotonic seconds.
        first_id: of its flows.
        step: from one id to the next.
        commons: what other workers tell, where there are any.

    Attributes:
        leaving: the flow that is evicted when the next one starts; see ``press``.
        watch: is told what happens to flows; None while nobody wants to know.
        will: where flows are left behind, should the worker be killed; None if it has no standby.

    """

    def __init__(
        self,
        table_limit: int,
        recent: int,
        now: float,
        first_id: int = 1,
        step: int = 1,
        commons: Commons | None = None,
    ) -> None:
        self.commons = commons
        self.index = (first_id - 1) % step
        self.pump = Pump()
        self.table = FlowTable(table_limit, recent, first_id, step)
        self.wheel = TimerWheel(now)
        self.files = FileBudget()
        self.pipes = PipePool(self.files)
        self.draining = False
        self.leaving: Evictable | None = None
        self.orders = Orders(self.pump.alarms)
        self.outbox = Outbox()
        self.watch: Watch | None = None
        self.will: Will | None = None
        self.requests = DatagramBatch()
        self.replies = ReplyBatch(self.pump)
        self.exits = Exits(self.pump, self.files)
        self.errands = Errands(self.pump.alarms)
        self._own: Counter[tuple[str, int]] = Counter()  # TCP and UDP may share one

    def refusal(self, files: int) -> Refusal | None:
        """Why a further flow, which needs so many descriptors, cannot be admitted; or None.

        Of a full table the caller may ``press`` for room.
        """
        self.leaving = None
        if self.draining:
            return Refusal.DRAINING
        if self.table.full:
            return Refusal.TABLE_FULL
        budget = self.files
        if budget.used + files > budget.limit:
            return Refusal.FILE_DESCRIPTORS
        return None

    def press(self, files: int, source: SourceKey | None, now: float) -> Refusal | None:
        """Decide whose place a newcomer takes; or say why it is refused.

        Nothing goes yet, since the newcomer may be refused for something else. If it starts, it
        calls ``evict`` before it enters the table, in the same turn.

        Sockets are closed at the end of a round only, those of whoever is evicted too. So where
        descriptors are short nobody goes for another: the reserve would be used up within a round.

        Args:
            files: descriptors that the newcomer needs.
            source: its source; None if its address is not proven.
            now: monotonic seconds.

        """
        victim = self.table.victim(source, now)
        if victim is None:
            return Refusal.TABLE_FULL
        if not self.files.has(files + self.pump.buried):
            return Refusal.FILE_DESCRIPTORS
        self.leaving = cast("Evictable", victim)
        return None

    def evict(self, now: float) -> None:
        """End the flow that was chosen, for one that starts."""
        leaving, self.leaving = self.leaving, None
        if leaving is not None:
            leaving.abort(CloseReason.EVICTED, CloseSide.PROXY, now)

    def own(self, address: Address) -> None:
        """Remember a listening address of ours."""
        self._own[address[0], address[1]] += 1

    def disown(self, address: Address) -> None:
        """Forget an address that is ours no more."""
        key = (address[0], address[1])
        self._own[key] -= 1
        if not self._own[key]:
            del self._own[key]

    def is_own(self, address: Address) -> bool:
        """Whether a datagram from this address is one of our own coming back."""
        return (address[0], address[1]) in self._own

    def end(self, flow: Flow, reason: CloseReason, side: CloseSide, now: float) -> bool:
        """Write the end of a flow into the books; false if it had ended already."""
        if not self.table.end(flow, reason, side, now):
            return False
        if self.orders.held:
            self.orders.let_go(flow)
        self.outbox.put(flow)
        if self.watch is not None:
            self.watch.closed(flow)
        return True

    async def keep_time(self) -> None:
        """Tell everything whose deadline has come, until cancelled."""
        while True:
            sooner = trio.Event()
            self.wheel.sooner = sooner.set
            with trio.move_on_after(self.wheel.quiet(monotonic())):
                await sooner.wait()
                continue
            turn = Turn()
            while self._tell_due(monotonic()) == TOLD_AT_ONCE:
                await turn.may_end()

    def _tell_due(self, now: float) -> int:
        """Tell some of what is due; return how many there were."""
        due = self.wheel.advance(now, TOLD_AT_ONCE)
        for item in due:
            try:
                item.expire(now)
            except Exception as error:
                item.crashed(error, now)
        return len(due)


class Outbox:
    """Ended flows on their way to the log: bounded, and the oldest falls out first.

    Attributes:
        wants: which flows have a line; None while nobody has said, and then each waits for it.
        dropped: flows that fell out.

    """

    def __init__(self) -> None:
        self.wants: Callable[[CloseReason, Transport], bool] | None = None
        self._flows: deque[Flow] = deque(maxlen=OUTBOX)
        self._filled = trio.Event()
        self.dropped = 0

    def put(self, flow: Flow) -> None:
        """Add a flow that has just ended, if it is to have a line."""
        if self.wants:
            assert flow.close_reason is not None
            if not self.wants(flow.close_reason, flow.counters.transport):
                return
        flows = self._flows
        if len(flows) == OUTBOX:
            self.dropped += 1
        flows.append(flow)
        if len(flows) == 1:
            self._filled.set()

    async def wait(self, many: int, gather: float = GATHER) -> None:
        """Wait until there are some, and have been for so many seconds, or are so many."""
        await self._filled.wait()
        await trio.sleep(gather if len(self._flows) < many else 0)

    def take(self, most: int) -> list[Flow]:
        """Take at most so many, oldest first."""
        flows = [self._flows.popleft() for _ in range(min(most, len(self._flows)))]
        if not self._flows:
            self._filled = trio.Event()
        return flows
