"""A predecessor, seen from its successor: a worker that another supervisor left behind.

See ``handover.succession`` for what is said. What it says is only data: it has read what strangers
send. Every word is bounded in time; who does not answer is left alone, and drains by itself in the
end, which loses nothing that a drain would not.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from proxy.core.flow_state import READABLE_STATES
from proxy.engine.handover.succession import VERSION, knock, write_leave_order
from proxy.engine.wire import Wire, WireError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import SocketType as Socket

    from proxy.control.inherited import Channel
    from proxy.engine.port import PredecessorRow
    from proxy.engine.specs import LeaveOrder

WORD: Final = 5.0
"""Seconds for an answer; who is busy for so long hangs."""

HAND_OVER: Final = 60.0
"""Seconds for a hand-over: those of flows that are connecting, and many flows."""

UNREADABLE: Final = (KeyError, TypeError, ValueError, OverflowError)
"""What comes of reading JSON that has not what it should."""


class PredecessorError(Exception):
    """It is gone, does not answer, or says that it cannot."""


class StrangerError(PredecessorError):
    """It is of a version that we do not know; but it knows how to drain."""


class Report(NamedTuple):
    """What became of the flows of a predecessor.

    Attributes:
        handed: how many have come.
        stayed: how many drain there.
        longest: seconds that one of them stood still at most.
        failure: why no more could come; "" if nothing failed.

    """

    handed: int
    stayed: int
    longest: float
    failure: str


class Total(NamedTuple):
    """What became of the flows of all predecessors together.

    Attributes:
        flows: how many have come.
        stayed: how many drain where they are.
        pause: seconds that one of them stood still at most.

    """

    flows: int = 0
    stayed: int = 0
    pause: float = 0.0

    @classmethod
    def of(cls, reports: Sequence[Report]) -> Total:
        """Add up what was reported."""
        return cls(
            sum(report.handed for report in reports),
            sum(report.stayed for report in reports),
            round(max((report.longest for report in reports), default=0.0), 3),
        )


class Predecessor:
    """A worker that was left behind. Owns our end of its channel.

    Args:
        channel: to it.

    Attributes:
        name: of the channel, in the store.
        pid: of its process; 0 before it has answered.
        flows: how many it had when it last spoke.
        is_draining: whether it has been told to leave already, or to drain.
        counters: its last reading, as it gave it.
        estate: what its supervisor left to us, as JSON.

    """

    def __init__(self, channel: Channel) -> None:
        self.name = channel.name
        self._end = channel.end
        self._wire: Wire | None = None
        self.pid = 0
        self.worker = 0
        self.flows = 0
        self.is_draining = False
        self.counters: Any = None
        self.estate: dict[str, Any] = {}

    async def greet(self) -> None:
        """Learn who it is.

        Raises:
            StrangerError: it is of a version that we do not know.
            PredecessorError: it does not say.

        """
        greeting = await self._ask({"ask": "greet"})
        version, states = greeting.get("version"), greeting.get("states")
        if version != VERSION or states not in READABLE_STATES:
            known = f"{VERSION} and {' or '.join(map(str, sorted(READABLE_STATES)))}"
            raise StrangerError(
                f"it speaks versions {version} and {states}, not {known}; it drains"
            )
        try:
            self.pid, self.worker = int(greeting["pid"]), int(greeting["worker"])
            self.is_draining = bool(greeting["draining"])
            self.estate = dict(greeting["estate"])
            self._read(greeting)
        except UNREADABLE as error:
            raise PredecessorError(f"its greeting cannot be read: {error!r}") from error

    async def leave(
        self, order: LeaveOrder, heirs: Sequence[Socket], served: Sequence[int]
    ) -> Report:
        """Have it hand its flows over.

        Args:
            order: who gets which.
            heirs: the sockets to our workers, by their numbers; they stay the caller's.
            served: the listening sockets that we have, by their cookies.

        Raises:
            PredecessorError: it cannot; nothing has changed.

        """
        question = {"ask": "leave", "order": write_leave_order(order), "served": list(served)}
        files = [heir.fileno() for heir in heirs]
        answer = await self._ask(question, files, HAND_OVER)
        try:
            report = Report(
                int(answer["handed"]),
                int(answer["flows"]),
                float(answer["longest"]),
                str(answer["failure"]),
            )
        except UNREADABLE as error:
            raise PredecessorError(f"its report cannot be read: {error!r}") from error
        self.is_draining = not report.failure
        self._read(answer)
        return report

    async def settle(self) -> None:
        """Have it know that what it gave us is safe; it drains then, if it has left."""
        self._read(await self._ask({"ask": "settle"}))

    async def drain(self) -> None:
        """Have it accept no more, and end when its last flow has."""
        await self._ask({"ask": "drain"})
        self.is_draining = True

    async def end(self) -> None:
        """Have it end now, and wait until it has."""
        await self._ask({"ask": "end"})
        if self._wire is not None:
            with trio.move_on_after(WORD), suppress(WireError):
                await self._wire.receive()

    async def look(self) -> None:
        """Learn what it has counted since."""
        self._read(await self._ask({"ask": "counters"}))

    def row(self) -> PredecessorRow:
        """Describe it."""
        return {"pid": self.pid, "flows": self.flows, "draining": self.is_draining}

    @property
    def channel(self) -> tuple[str, Socket]:
        """Our end of its channel, and what that is called; it stays ours."""
        return self.name, self._end

    def close(self) -> None:
        """Let go of it."""
        self._end.close()
        if self._wire is not None:
            self._wire.close()

    def _read(self, answer: dict[str, Any]) -> None:
        try:
            self.flows, self.counters = int(answer["flows"]), answer["counters"]
        except UNREADABLE as error:
            raise PredecessorError(f"its reading cannot be read: {error!r}") from error

    async def _ask(
        self, question: dict[str, Any], files: Sequence[int] = (), patience: float = WORD
    ) -> dict[str, Any]:
        try:
            with trio.fail_after(patience):
                wire = await self._send(json.dumps(question).encode(), files)
                message = await wire.receive()
            answer = json.loads(message.body)
        except trio.TooSlowError as error:
            self._hang_up()
            raise PredecessorError(f"no answer within {patience:g} s") from error
        except (WireError, ValueError, RecursionError) as error:
            self._hang_up()
            raise PredecessorError(str(error)) from error
        if not isinstance(answer, dict) or "error" in answer:
            raise PredecessorError(str(answer["error"] if isinstance(answer, dict) else answer))
        return answer

    async def _send(self, body: bytes, files: Sequence[int]) -> Wire:
        """Send a question; by another conversation if the last is over, and a standby is there."""
        if self._wire is not None:
            with suppress(WireError):
                await self._wire.send(body, files, whole=False)
                return self._wire
            self._hang_up()
        self._wire = knock(self._end)
        await self._wire.send(body, files, whole=False)
        return self._wire

    def _hang_up(self) -> None:
        """End a conversation in which nothing more can be understood; there may be another."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
