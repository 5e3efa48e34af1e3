"""Stream flows that live on when their worker is killed: they leave a will.

They are flows like all others, and in addition write down what the kernel does not know (see
``will``). A request costs one number for each receive, the mark; a connection one record. Whatever
else is written is about what happens rarely: bytes that the other side does not take, pipes, urgent
data.

A flow is left behind from when it is established until it has ended, or fails: a reset is passed on
by whoever saw it, and by nobody after that. An urgent byte is deposited before it is taken out of
its socket, where it would be gone for ever.
"""

from __future__ import annotations

from socket import MSG_OOB, MSG_PEEK
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

from proxy.core.flow import CloseReason, CloseSide
from proxy.core.flow_state import write_states
from proxy.engine.handover.frozen import state_of
from proxy.engine.identified import IdentifiedFlow
from proxy.engine.leg import DONTWAIT, IN_PIPE, READS_PER_TURN, StreamLeg
from proxy.engine.routed import RoutedFlow
from proxy.engine.stream import StreamFlow
from proxy.engine.survival.reading import read_socket
from proxy.engine.survival.shared import LOW, MARK, leg_at, place_of
from proxy.engine.survival.will import FINISHED, FREE, LEAVING, STREAM

if TYPE_CHECKING:
    from proxy.core.counters import DirectionCounters
    from proxy.core.endpoint import Endpoint
    from proxy.engine.survival.will import Will

OFFSET_MAX: Final = 1 << 20
"""Bytes of headers before a flow; more than any header has."""


class SurvivingLeg(StreamLeg):
    """A leg of such a flow.

    Attributes:
        place: where it is written down, which its mark begins with; 0 while it is nowhere.
        deposited: whether it has bytes in the will.

    """

    __slots__ = ("deposited", "place")

    flow: Surviving

    def __init__(self, socket: Socket, counters: DirectionCounters) -> None:
        StreamLeg.__init__(self, socket, counters)
        self.place = 0
        self.deposited = False

    @property
    def will(self) -> Will:
        """In which it is written down, or will be."""
        will = self.flow.relay.will
        assert will is not None
        return will

    def begin_will(self, place: int) -> None:
        """Be written down from now on, with what is pending."""
        self.place = place
        if self.pending and self.pending is not IN_PIPE:
            self._deposit(self.pending, urgent=bool(self.send_flags & MSG_OOB))

    def _pull(self, mask: int, now: float, reads: int = READS_PER_TURN) -> None:
        """Receive and pass on; whatever happens, it will be known that it was this leg."""
        MARK[0] = self.place | (self.bytes & LOW)
        StreamLeg._pull(self, mask, now, reads)

    def _pass_urgent(self, mask: int, now: float) -> bool:
        try:
            byte = self.socket.recv(1, MSG_PEEK | DONTWAIT)
        except OSError:
            byte = b""
        if self.place and byte:
            kept = self.will.deposit(*leg_at(self.place), byte, urgent=True)
            self.deposited = kept is not None
        is_free = super()._pass_urgent(mask, now)
        if is_free and self.deposited:
            self._withdraw()
        MARK[0] = self.place | (self.bytes & LOW)
        return is_free

    def _hold(self, rest: memoryview, mask: int) -> None:
        super()._hold(rest, mask)
        if self.deposited:  # it is urgent, and there already
            return
        assert self.pending is not None
        self._deposit(self.pending, urgent=False)

    def open_way(self, now: float) -> None:
        """Receive again: the other leg takes bytes now."""
        if self.deposited:
            self._withdraw()
        super().open_way(now)

    def freeze(self) -> None:
        """Be on the way to another worker, and in its hands only."""
        if self.place:
            self.will.set_kind(leg_at(self.place)[0], LEAVING)
        if self.deposited and self.pending is not None:
            self.pending = memoryview(bytes(self.pending))
            self._withdraw()
        super().freeze()

    def _borrow_pipe(self) -> None:
        super()._borrow_pipe()
        if self.pipe is not None and self.place:
            self.will.set_pipe(*leg_at(self.place), self.pipe.ends)

    def _return_pipe(self) -> None:
        if self.place:
            self.will.set_pipe(*leg_at(self.place))
        super()._return_pipe()

    def _deposit(self, data: memoryview, *, urgent: bool) -> None:
        """Have what is pending outlive the worker, as far as there is room for it."""
        if self.place:
            kept = self.will.deposit(*leg_at(self.place), data, urgent=urgent)
            if kept is not None:
                self.pending = kept
                self.deposited = True

    def _withdraw(self) -> None:
        if self.deposited:
            self.deposited = False
            self.will.withdraw(*leg_at(self.place))


class Surviving(StreamFlow):
    """A TCP flow that leaves a will."""

    __slots__ = ()

    leg_type = SurvivingLeg

    original: SurvivingLeg
    reply: SurvivingLeg

    def connected(self, socket: Socket, endpoint: Endpoint, now: float) -> None:
        """Relay from now on, and be written down before the first byte moves."""
        self.endpoint = endpoint
        files = self.original.socket.fileno(), socket.fileno()
        self._begin_will(files, self._offsets())
        StreamFlow.connected(self, socket, endpoint, now)

    def resume(self) -> None:
        """Be written down again, or for the first time here: it was on its way to a worker."""
        self._close_will(FREE)
        client, endpoint = self.original.socket, self.reply.socket
        source = read_socket(client, is_ours=False)
        target = read_socket(endpoint, is_ours=True)
        if source is not None and target is not None:
            held = len(self.original.pending or b"")
            taken = source.consumed - self.original.bytes
            added = target.written - (self.original.bytes - held)
            if 0 <= taken < OFFSET_MAX and 0 <= added < OFFSET_MAX:
                self._begin_will((client.fileno(), endpoint.fileno()), (taken, added))

    def failed(self, leg: StreamLeg, error: int | None, now: float) -> None:
        """End, because one socket has failed: what follows is not for others to do."""
        self._disown()
        StreamFlow.failed(self, leg, error, now)

    def abort(self, reason: CloseReason, side: CloseSide, now: float) -> None:
        """End the flow now and reset both sides."""
        self._disown()
        StreamFlow.abort(self, reason, side, now)

    def depart(self, now: float) -> None:
        """Live on in another process."""
        self._close_will(FREE)
        StreamFlow.depart(self, now)

    def _close(self, reason: CloseReason, side: CloseSide, now: float) -> None:
        self._close_will(FINISHED if reason is CloseReason.FINISHED else FREE)
        StreamFlow._close(self, reason, side, now)

    def _begin_will(self, files: tuple[int, int], offsets: tuple[int, int]) -> None:
        will = self.relay.will
        assert will is not None
        assert self.endpoint is not None
        record = will.begin()
        if record is None:
            return
        note = b""
        if self.identity is not None:
            note = write_states([state_of(self)]).encode()
        way = will.ways.between(self.counters, self.endpoint)
        moved = self.original.bytes, self.reply.bytes
        if way is None or not will.write(
            record, STREAM, self.id, self.opened, way, files, offsets, note, moved
        ):
            will.release(record)
            return
        self.original.begin_will(place_of(record, 0))
        self.reply.begin_will(place_of(record, 1))

    def _offsets(self) -> tuple[int, int]:
        """Bytes that were read from the client, and written to the endpoint, already."""
        return 0, 0

    def _disown(self) -> None:
        """Have nobody go on with it who comes after us."""
        leg = self.original
        if leg.place:
            leg.will.set_kind(leg_at(leg.place)[0], FREE)

    def _close_will(self, kind: int) -> None:
        """Be left behind no more, but for a word on how it ended."""
        original, reply = self.original, self.reply
        if original.place:
            will, (record, _) = original.will, leg_at(original.place)
            original.place = reply.place = 0
            original.deposited = reply.deposited = False
            will.close(record, kind, original.bytes, reply.bytes)


class SurvivingIdentified(IdentifiedFlow, Surviving):
    """The same of a flow with an identity, or with a header for its endpoint."""

    __slots__ = ()

    original: SurvivingLeg
    reply: SurvivingLeg

    def _offsets(self) -> tuple[int, int]:
        taken = 0
        if self.identity is not None and self.identity.via is not None:
            reading = read_socket(self.original.socket, is_ours=False)
            taken = 0 if reading is None else reading.consumed
        return taken, 0 if self.style is None else len(self._header(self.style))


class SurvivingRouted(RoutedFlow, SurvivingIdentified):
    """The same of a flow that goes where its first bytes say."""

    __slots__ = ()

    original: SurvivingLeg
    reply: SurvivingLeg


SURVIVING: Final[dict[type[StreamFlow], type[StreamFlow]]] = {
    StreamFlow: Surviving,
    IdentifiedFlow: SurvivingIdentified,
    RoutedFlow: SurvivingRouted,
}
"""What leaves a will in place of what does not."""
