"""One reader of the event stream: what it is told, and in which order.

It gets a snapshot of the table, then what has happened since. So that nothing falls between the
two, the flows are watched before the snapshot begins; what happens meanwhile is told after it, and
the row of an event takes the place of what the reader knows of that flow.

A reader takes its time, and nobody waits for it: if the ring has moved on when it comes back, it is
told so by a ``gap``, and begins anew. Nothing is ever missing without a word.

Messages, each a JSON object with its ``event``:

    snapshot     the table follows, ``matched`` flows of it; it is that of ``seq`` or later
    flow         one row of it
    live         the snapshot is complete; what happens from ``seq`` on follows
    opened, established, assured, half_closed, limited, closed
                 what happened to a flow, with its row, and the ``limit`` that struck it
    counters     what flows have moved so far, of those that moved lately
    gap          something is missing: ``slow``, this reader was; ``lost``, the relay could not tell
                 everything; ``unknown``, it wanted to go on from where nobody knows any more
    heartbeat    nothing happened for a while
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from proxy.core.events import EventKind, FlowEvent

if TYPE_CHECKING:
    from proxy.core.query import FlowQuery
    from proxy.engine.port import MovedFlows
    from proxy.observe.events import EventHub, Watched

BATCH: Final = 50
"""Events that are looked at, and sent, at once."""

ROWS: Final = 25
"""Rows of a snapshot that are asked for at once: a tenth of a millisecond of the relay."""

HEARTBEAT: Final = 10.0
"""Seconds without a word after which a reader is told that there was none; and after which it is
noticed that a reader has gone who did not say so."""


class Message(NamedTuple):
    """What a reader is told.

    Attributes:
        event: of which kind it is.
        number: where a reader may go on from; None if not from here.
        text: all of it, as a JSON object.

    """

    event: str
    number: int | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a reader wants to be told.

    Attributes:
        query: of which flows; its order and limit are those of the snapshot.
        kinds: which events.
        snapshot: whether it begins with one, and after a gap, too.
        counters: whether it is told once a second what flows move.
        after: the number of the last event it has read; None if it begins.

    """

    query: FlowQuery
    kinds: frozenset[EventKind] = frozenset(EventKind)
    snapshot: bool = True
    counters: bool = False
    after: int | None = None


async def read_events(hub: EventHub, wish: Wish) -> AsyncGenerator[list[Message], None]:
    """Tell a reader what it wishes to know, for as long as it takes it.

    Who wants counters cannot go on where it was, since what moved meanwhile is not remembered.
    """
    watched, known = await hub.join(wish.query, counters=wish.counters)
    try:
        reader = _Reader(hub, wish, watched)
        goes_on = known and not wish.counters
        async with aclosing(reader.messages(wish.after, goes_on=goes_on)) as messages:
            async for some in messages:
                yield some
    finally:
        hub.leave(watched, counters=wish.counters)


@dataclass(slots=True)
class _Reader:
    """Where one reader is.

    Attributes:
        cursor: the number of the last event it has been told of, or that was not for it.
        looked: the same of looks at what flows have moved.
        spoken: when it was last told anything.

    """

    hub: EventHub
    wish: Wish
    watched: Watched
    cursor: int = field(init=False)
    looked: int = field(init=False)
    spoken: float = field(init=False)

    def __post_init__(self) -> None:
        self._begin()
        self.spoken = trio.current_time()

    async def messages(
        self, after: int | None, *, goes_on: bool
    ) -> AsyncGenerator[list[Message], None]:
        begins = after is None or not goes_on or self.hub.events.after(after, 0) is None
        if after is not None and begins:
            yield [self._gap("unknown")]
        elif after is not None:
            self.cursor = after
        while True:
            if begins and self.wish.snapshot:
                async with aclosing(self._snapshot()) as table:
                    async for some in table:
                        yield some
            begins = False
            told = self._next()
            if told is None:
                begins, reason = True, "lost" if self.cursor < self.hub.events.hole else "slow"
                self._begin()
                yield [self._gap(reason)]
            elif told:
                yield told
                self.spoken = trio.current_time()
            elif trio.current_time() >= self.spoken + HEARTBEAT:
                yield [_message("heartbeat", self.cursor)]
                self.spoken = trio.current_time()
            elif self._is_up_to_date:
                with trio.move_on_at(self.spoken + HEARTBEAT):
                    await self.hub.wait_news()
            else:  # there was much that is not for this reader
                await trio.lowlevel.checkpoint()

    def _begin(self) -> None:
        """Be where everybody is who has read everything."""
        self.cursor, self.looked = self.hub.events.newest, self.hub.looks.newest

    @property
    def _is_up_to_date(self) -> bool:
        has_looked = not self.wish.counters or self.looked == self.hub.looks.newest
        return has_looked and self.cursor == self.hub.events.newest

    def _next(self) -> list[Message] | None:
        """What comes next; empty if that is not for this reader. None if it is here no more."""
        events = self.hub.events.after(self.cursor, BATCH)
        looks = self.hub.looks.after(self.looked, 1) if self.wish.counters else []
        if events is None or looks is None:
            return None
        told = [
            _event(number, event)
            for number, event in enumerate(events, self.cursor + 1)
            if event.kind in self.wish.kinds and self.watched.number in event.watches
        ]
        self.cursor += len(events)
        self.looked += len(looks)
        return told + [each for look in looks for each in self._counters(look)]

    def _counters(self, look: MovedFlows) -> list[Message]:
        flows = [text for watches, text in look["flows"] if self.watched.number in watches]
        if not flows and not look["omitted"]:
            return []
        more = f',"omitted":{look["omitted"]},"flows":[{",".join(flows)}]'
        return [_message("counters", self.cursor, more)._replace(number=None)]

    def _gap(self, reason: str) -> Message:
        """Nobody may go on from a gap before the snapshot that comes after it."""
        gap = _message("gap", self.cursor, f',"reason":"{reason}"')
        return gap._replace(number=None) if self.wish.snapshot else gap

    async def _snapshot(self) -> AsyncGenerator[list[Message], None]:
        number, port = self.cursor, self.hub.port
        found = await port.flow_ids(self.wish.query)
        more = f',"matched":{found["matched"]},"silent":{found["silent"]}'
        yield [_message("snapshot", number, more)._replace(number=None)]
        for start in range(0, len(found["ids"]), ROWS):
            rows = await port.flow_rows(found["ids"][start : start + ROWS], recent=False)
            yield [_row(row) for row in rows if row is not None]
        yield [_message("live", number)]
        self.spoken = trio.current_time()


def _row(row: str) -> Message:
    return Message("flow", None, f'{{"event":"flow","flow":{row}}}')


def _event(number: int, event: FlowEvent) -> Message:
    limit = "" if event.limit is None else f',"limit":"{event.limit}"'
    more = f'{limit},"flow":{event.row}'
    return Message(event.kind, number, _text(event.kind, number, event.time, more))


def _message(event: str, number: int, more: str = "") -> Message:
    return Message(event, number, _text(event, number, time(), more))


def _text(event: str, number: int, when: float, more: str) -> str:
    return f'{{"event":"{event}","seq":{number},"time":{when:.6f}{more}}}'


def as_events(messages: Sequence[Message]) -> bytes:
    """Write messages as server-sent events (HTML, section 9.2)."""
    return "".join(
        f"event: {event}\ndata: {text}\n\n"
        if number is None
        else f"event: {event}\nid: {number}\ndata: {text}\n\n"
        for event, number, text in messages
    ).encode()


def as_lines(messages: Sequence[Message]) -> bytes:
    """Write messages as one JSON object a line."""
    return "".join(f"{each.text}\n" for each in messages).encode()
