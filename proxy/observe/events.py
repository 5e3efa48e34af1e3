"""The event hub: numbers what happens to flows, and keeps the last of it for those who read.

A reader (see ``observe.reader``) has a query and a cursor. The relay watches for the queries that
somebody reads, and tells what happens in one stream, that of all workers together; so the numbers
are those of the whole house, and a reader with a filter sees some of them only.

Invariants:

* The hub never waits for a reader.
* What the relay could not tell, because there was too much of it or a worker died, leaves a hole in
  the ring that no cursor passes.
* Everything is bounded: the rings, the readers, the queries watched.
* Nobody is watched for longer than ``KEPT`` after the last reader has left, which is how long one
  may be away and go on where it was.

Units: seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from time import time
from typing import TYPE_CHECKING, Final

import trio

from proxy.core.events import FlowEvent, Ring
from proxy.core.query import FlowQuery

if TYPE_CHECKING:
    from proxy.engine.port import MovedFlows, RelayPort

HELD: Final = 16_384
"""Events in the ring: 12 MB; some seconds of the busiest house, hours of a quiet one."""

LOOKS_HELD: Final = 8
"""Looks at what flows have moved: a quarter of a megabyte each, for each worker, at most."""

READERS_MAX: Final = 32
"""Readers at once: half of the connections that a listener of the admin has."""

QUERIES_MAX: Final = 2 * READERS_MAX
"""Queries watched: those that are read, and as many whose readers may come back."""

KEPT: Final = 60.0
LOOK: Final = 1.0
"""Seconds between two looks at what flows have moved."""


@dataclass(slots=True, eq=False)
class Watched:
    """A query that the relay watches for.

    Attributes:
        number: of it; never given again.
        readers: how many read.
        left: when the last of them did, if none does.

    """

    number: int
    query: FlowQuery
    readers: int = 0
    left: float = 0.0


@dataclass(slots=True, eq=False)
class EventHub:
    """Numbers what happens, for readers.

    Args:
        port: the relay.

    Attributes:
        events: what happened.
        looks: what flows have moved, one for each second that somebody wanted to know.
        readers: how many read.

    """

    port: RelayPort
    events: Ring[FlowEvent] = field(init=False)
    looks: Ring[MovedFlows] = field(init=False)
    readers: int = field(init=False, default=0)
    _watched: dict[FlowQuery, Watched] = field(init=False, default_factory=dict)
    _given: int = field(init=False, default=0)
    _lookers: int = field(init=False, default=0)
    _changing: trio.Lock = field(init=False, default_factory=trio.Lock)
    _news: trio.Event = field(init=False, default_factory=trio.Event)
    _looked_for: trio.Event = field(init=False, default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.events = Ring(HELD, time())
        self.looks = Ring(LOOKS_HELD, 0.0)

    @property
    def full(self) -> bool:
        """Whether there are as many readers as there may be."""
        return self.readers >= READERS_MAX

    async def run(self) -> None:
        """Take what the relay tells, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._collect)
            nursery.start_soon(self._look)
            nursery.start_soon(self._forget)

    async def wait_news(self) -> None:
        """Wait until something is in a ring that was not."""
        await self._news.wait()

    async def join(self, query: FlowQuery, *, counters: bool) -> tuple[Watched, bool]:
        """Have the relay watch for a query, for one reader more.

        Args:
            query: which flows; its order and limit mean nothing here.
            counters: whether the reader wants to know what flows move.

        Returns:
            What is watched, and whether it was watched before.

        """
        self.readers += 1
        query = replace(query, sort="id", limit=0)
        # Half a change would be no change to the next reader, so it is not left half done.
        with trio.CancelScope(shield=True):
            async with self._changing:
                known = query in self._watched
                watched = self._watched[query] if known else await self._watch(query)
                watched.readers += 1
                if counters:
                    await self._begin_looking()
        return watched, known

    def leave(self, watched: Watched, *, counters: bool) -> None:
        """Forget a reader; what it read is watched for a while."""
        self.readers -= 1
        self._lookers -= counters
        watched.readers -= 1
        watched.left = trio.current_time()

    async def _watch(self, query: FlowQuery) -> Watched:
        if len(self._watched) >= QUERIES_MAX:
            idle = [each for each in self._watched.values() if not each.readers]
            self._drop(sorted(idle, key=lambda each: each.left)[:1])
        self._given += 1
        watched = self._watched[query] = Watched(self._given, query)
        await self._tell_relay()
        return watched

    async def _begin_looking(self) -> None:
        if not self._lookers:
            await self.port.moved_flows()  # from here on; the reader's snapshot has what was before
        self._lookers += 1
        self._looked_for.set()

    async def _tell_relay(self) -> None:
        await self.port.watch({each.number: each.query for each in self._watched.values()})

    def _drop(self, idle: Iterable[Watched]) -> None:
        for each in idle:
            del self._watched[each.query]

    async def _collect(self) -> None:
        while True:
            events, lost = await self.port.wait_flow_events()
            if lost:
                self.events.lose()
            for event in events:
                self.events.put(event)
            self._wake()

    async def _look(self) -> None:
        while True:
            await self._looked_for.wait()
            await trio.sleep(LOOK)
            if self._lookers:
                self.looks.put(await self.port.moved_flows())
                self._wake()
            else:
                self._looked_for = trio.Event()

    async def _forget(self) -> None:
        """Have the relay watch no more for what nobody has read for long."""
        while True:
            await trio.sleep(KEPT / 4)
            now = trio.current_time()
            async with self._changing:
                idle = [
                    each
                    for each in self._watched.values()
                    if not each.readers and now - each.left >= KEPT
                ]
                if idle:
                    self._drop(idle)
                    await self._tell_relay()
                    if not self._watched:
                        self.events.lose()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()
