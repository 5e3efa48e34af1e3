"""What a life of ours takes over from those before: their flows, and what was ordered there.

The order of things, so that at every step either the predecessors go on, or we do:

1. ``greet`` them all. Who is gone is forgotten; who cannot be understood drains.
2. Our workers are started. Each *expects* flows, by a socket from each predecessor, before it is
   told for the first time what to be; see ``Crew`` and ``House.begin``.
3. When all of them do, and whoever started us agrees, the predecessors are told to *leave*. They
   stop accepting, and hand over.
4. When all that is done, and whoever started us has heard of it, they are told that we are
   *settled*. Until then they take back what an heir of ours leaves that ends; from then on they
   drain what could not go.
5. Predecessors that drain are watched until they end. What they count is added to what we do.

A worker of ours that ends between 2 and 3 takes nothing along: a predecessor whose heir fails keeps
its flows, and drains them when nobody else comes.
"""

from __future__ import annotations

import socket as stdlib
from contextlib import ExitStack, suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

import structlog
import trio

from proxy.control.predecessor import Predecessor, PredecessorError, Report, StrangerError, Total

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
    from socket import SocketType as Socket
    from typing import Any

    from proxy.control.inherited import Channel
    from proxy.control.store import ChannelStore
    from proxy.engine.handover.forebears import Forebears
    from proxy.engine.port import PredecessorRow
    from proxy.engine.specs import LeaveOrder

WATCHING: Final = 1.0
"""Seconds between two looks at predecessors that drain."""

PRESENT: Final = 20.0
"""Seconds for all workers to be there; who is not by then inherits nothing."""

log = structlog.get_logger()


class Heritage:
    """Predecessors, and what comes from them. Owns the channels, and the sockets for flows.

    Args:
        channels: to those who were left behind.
        store: where the service manager keeps the channels.

    """

    def __init__(self, channels: Iterable[Channel], store: ChannelStore) -> None:
        self._store = store
        self._predecessors = [Predecessor(channel) for channel in channels]
        self._strangers: list[Predecessor] = []
        self._heirs: list[list[Socket]] = []  # of each predecessor, to each worker
        self._bequests: list[list[Socket]] = []  # of each worker, from each predecessor
        self._absent = set[int]()
        self._present = trio.Event()
        self._alone = trio.Event()

    @property
    def is_empty(self) -> bool:
        """Whether nobody is there who would give anything."""
        return not self._bequests

    @property
    def is_anybody(self) -> bool:
        """Whether somebody has to be told that we are there."""
        return bool(self._bequests or self._strangers)

    def channels(self) -> list[tuple[str, Socket]]:
        """Our ends of the channels of those that are there, by their names; they stay ours."""
        return [each.channel for each in self._predecessors]

    @property
    def estate(self) -> dict[str, Any]:
        """What was left to us by the last life; empty if nothing was."""
        return next((each.estate for each in self._predecessors if not each.is_draining), {})

    def rows(self) -> list[PredecessorRow]:
        """Those that are there."""
        return [each.row() for each in self._predecessors]

    async def greet(self) -> None:
        """Learn who is there."""
        async with trio.open_nursery() as nursery:
            for each in list(self._predecessors):
                nursery.start_soon(self._greet, each)

    async def _greet(self, each: Predecessor) -> None:
        try:
            await each.greet()
        except StrangerError as error:
            log.warning("predecessor_left_alone", name=each.name, reason=str(error))
            self._strangers.append(each)
            self._predecessors.remove(each)
        except PredecessorError as error:
            log.warning("predecessor_left_alone", name=each.name, reason=str(error))
            self._forget(each)

    def prepare(self, workers: int) -> None:
        """Make the sockets for flows, from each predecessor to each worker of ours."""
        givers = [each for each in self._predecessors if not each.is_draining]
        self._heirs = [[] for _ in givers]
        self._bequests = [[] for _ in range(workers)] if givers else []
        self._absent = set(range(len(self._bequests)))
        for heirs in self._heirs:
            for bequests in self._bequests:
                theirs, ours = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_STREAM)
                heirs.append(theirs)
                bequests.append(ours)

    async def introduce(
        self, index: int, expect: Callable[[Sequence[Socket]], Awaitable[None]]
    ) -> bool:
        """Have a worker of ours expect flows; return when all of them do.

        Args:
            index: of the worker.
            expect: tells it the sockets by which they come.

        Returns:
            Whether there is anything to expect: not if another took its place.

        """
        if index not in self._absent:
            return False
        sockets, self._bequests[index] = self._bequests[index], []
        with ExitStack() as closing:
            for socket in sockets:
                closing.callback(socket.close)
            await expect(sockets)
        self._absent.discard(index)
        if not self._absent:
            self._present.set()
        await self._present.wait()
        return True

    async def take_over(self, order: LeaveOrder, served: Sequence[int]) -> list[Report]:
        """Have the predecessors hand over, when all workers of ours are there.

        Args:
            order: who gets which flows.
            served: the listening sockets that are ours now, by their cookies.

        """
        began = monotonic()
        givers = [each for each in self._predecessors if not each.is_draining]
        reports: list[Report] = []

        async def leave(each: Predecessor, heirs: Sequence[Socket]) -> None:
            with ExitStack() as closing:
                for heir in heirs:
                    closing.callback(heir.close)
                reports.append(await self._leave(each, order, heirs, served))

        async with trio.open_nursery() as nursery:
            for each, heirs in zip(givers, self._heirs, strict=True):
                nursery.start_soon(leave, each, heirs)
        self._heirs = []
        await self._send_away()
        _tell(reports, monotonic() - began)
        return reports

    async def settle(self) -> None:
        """Have the predecessors know that what they gave us is safe; from then on they drain."""
        async with trio.open_nursery() as nursery:
            for each in self._predecessors:
                nursery.start_soon(_settle, each)

    async def _send_away(self) -> None:
        """Have those that we do not understand drain."""
        strangers, self._strangers = self._strangers, []
        for each in strangers:
            with suppress(PredecessorError):
                await each.drain()
            each.close()
            self._store.forget(each.name)

    async def wait_present(self) -> None:
        """Wait until every worker of ours expects flows."""
        with trio.move_on_after(PRESENT):
            if self._absent:
                await self._present.wait()
        self._present.set()

    def remember(self, forebears: Forebears) -> None:
        """Have what the predecessors have counted so far added to what we do."""
        for each in self._predecessors:
            forebears.remember(each.name, each.counters)

    async def watch(self, forebears: Forebears, changed: Callable[[], Awaitable[None]]) -> None:
        """Look after predecessors that drain, until the last has ended.

        Args:
            forebears: have what they count added to what we do.
            changed: is told when that has changed.

        """
        await changed()
        while self._predecessors:
            for each in list(self._predecessors):
                try:
                    await each.look()
                except PredecessorError:
                    log.info("predecessor_ended", pid=each.pid)
                    forebears.settle(each.name)
                    self._forget(each)
                else:
                    forebears.remember(each.name, each.counters)
            await changed()
            await trio.sleep(WATCHING)

    async def wait_ended(self) -> None:
        """Wait until the last of those that drain has ended; for who watches them."""
        if self._predecessors:
            await self._alone.wait()

    async def end(self, pids: Collection[int] | None = None) -> None:
        """Have predecessors end; nothing is expected of anybody any more, before ``prepare``.

        Args:
            pids: of whom; None: of all that are left.

        """
        ending = [each for each in self._predecessors if pids is None or each.pid in pids]
        for each in ending:
            with suppress(PredecessorError):
                await each.end()
            self._forget(each)
        self._expect_nothing()

    def close(self) -> None:
        """Let go of everybody."""
        for each in (*self._predecessors, *self._strangers):
            each.close()
        self._expect_nothing()

    def _expect_nothing(self) -> None:
        for socket in (socket for group in (*self._heirs, *self._bequests) for socket in group):
            socket.close()
        self._heirs, self._bequests, self._absent = [], [], set()

    async def _leave(
        self,
        each: Predecessor,
        order: LeaveOrder,
        heirs: Sequence[Socket],
        served: Sequence[int],
    ) -> Report:
        try:
            return await each.leave(order, heirs, served)
        except PredecessorError as error:
            log.warning(
                "hand_over_refused", pid=each.pid, reason=str(error), remedy="its flows drain there"
            )
            with suppress(PredecessorError):
                await each.drain()
            return Report(0, each.flows, 0.0, str(error))

    def _forget(self, each: Predecessor) -> None:
        each.close()
        self._predecessors.remove(each)
        if not self._predecessors:
            self._alone.set()
        self._store.forget(each.name)


async def _settle(each: Predecessor) -> None:
    with suppress(PredecessorError):  # it is gone, or hangs: then it is missed when it is watched
        await each.settle()


def _tell(reports: Sequence[Report], seconds: float) -> None:
    """Say in the log how it went."""
    log.info(
        "handed_over",
        predecessors=len(reports),
        **Total.of(reports)._asdict(),
        seconds=round(seconds, 3),
        failures=[report.failure for report in reports if report.failure],
    )
