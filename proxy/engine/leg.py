"""A leg: one socket of a stream flow, and the direction that begins at it.

Everything is edge-triggered. A leg that has news receives into one buffer that all flows share and
sends to the other leg at once; no byte is copied unless the other side would not take it. What it
would not take is the leg's ``pending``, and a leg with something pending is not read: that is the
whole of the back-pressure, and it bounds the memory of a flow to one chunk per direction. The
chunk starts small, doubles while both sides keep up and halves when the receiver falls behind, so
that thousands of stalled flows hold little and a few fast ones move much at a time.

Urgent data (RFC 6093) is one byte with a mark at its place in the stream. All sockets are read *in
line* (SO_OOBINLINE): a receive stops at the mark, and there the byte is received alone and sent as
urgent data again, after what stood before it and before what follows. The kernel knows one mark; a
byte whose mark was overtaken by the next is an ordinary one then, as for any receiver in line.
Rejected: to leave the byte out of line and take it by MSG_OOB, which costs an endpoint's socket no
option. When the next one is announced the kernel drops one that is not yet taken, and nobody knows:
of five that came at once, a byte or more was gone one time in four.

Two kinds of legs are served *apart* from this plain way. Bulk goes through a pipe (see ``splice``)
by the same rules. And a leg that is limited asks its meter (see ``throttle``), or looks at what is
left of its bytes, before it receives; it then moves once what it may, and no more. Far from all
limits it has a *lease* (see ``core.lease``) and moves in the ordinary ways until that is used up.
Where the meter is asked each time a request costs half as much again as without limits.

That is why this file is longer than most: what receives, holds back, splices and is held back must
agree on the same few fields.

Accepted sockets stay in blocking mode, because making them non-blocking costs a call per flow;
every call on them says MSG_DONTWAIT instead.
"""

from __future__ import annotations

from math import inf
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from socket import MSG_OOB, MSG_PEEK
from socket import SocketType as Socket
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import structlog

from proxy.core.flow import Direction
from proxy.core.lease import BUDGET_ROOM
from proxy.core.share import lend_budget
from proxy.core.stalls import Stalls
from proxy.engine.splice import PIPE_SIZE, Pipe, make_nonblocking
from proxy.engine.survival.shared import BUFFER, BUFFER_SIZE
from proxy.engine.tcp import at_urgent_mark, bytes_to_read, send_urgent, take_error

if TYPE_CHECKING:
    from proxy.core.counters import DirectionCounters
    from proxy.core.lease import Lease
    from proxy.core.share import Group, Share
    from proxy.engine.stream import StreamFlow
    from proxy.engine.throttle import Meter, Throttle

SMALLEST_CHUNK: Final = 16 * 1024
"""Bytes; a request or an answer, rarely more; what a stalled direction keeps in memory."""

LARGEST_CHUNK: Final = BUFFER_SIZE

LEAST_BULK: Final = 64 * 1024
"""Bytes of one turn; a direction that moves less has no need of a pipe."""

READS_PER_TURN: Final = 2
"""Receives until the other flows get their turn: half a MiB. The 99th percentile of small flows
beside a greedy one, in ms, with 1, 2, 4, 8 and 16: 1.2, 1.3, 2.3, 3.4 and 5.5; bulk costs the
same with all of them."""

BULK_TURN: Final = READS_PER_TURN * PIPE_SIZE
"""Bytes of a turn through a pipe at most."""

NEWS: Final = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR
HANGUP: Final = EPOLLRDHUP | EPOLLHUP | EPOLLERR
READ_ON: Final = HANGUP | EPOLLPRI
"""Events after which a short receive is not yet all; EPOLLRDHUP alone tells that it is all there
ever will be. So whoever makes up a mask, because an edge may have been missed, says EPOLLHUP."""

DONTWAIT: Final = 0x40
"""MSG_DONTWAIT (linux/socket.h) as a plain int, which costs less than a member of an enum."""

MORE: Final = 0x8000
"""MSG_MORE likewise."""

WATCH: Final = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET
WATCH_BOTH: Final = WATCH | EPOLLOUT

BLOCKED: Final = memoryview(b"")
"""Pending nothing, and yet not to be read: the other leg does not take bytes now."""

HELD_BACK: Final = memoryview(b"")
"""Pending nothing, and not to be read: it is not its turn, of those who share a bandwidth."""

IN_PIPE: Final = memoryview(b"pipe")
"""Pending, and not here: the pipe holds it."""

log = structlog.get_logger()

_buffer: Final = BUFFER


class _Ended:
    """Stands for the flow, and for the other leg, of a leg whose flow has ended."""

    pending: memoryview | None = None
    writable_watched = True

    def ended_unread(self, leg: StreamLeg, now: float) -> None:
        """Act on the end of a peer that is not being read."""

    def failed_unread(self, leg: StreamLeg, now: float) -> None:
        """There is nothing left to end."""

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours in a flow that had ended."""
        log.error("ended_flow_crashed", exc_info=error)


ENDED: Final[Any] = _Ended()


class StreamLeg(Direction):
    """One socket of a stream flow, and the direction that begins at it.

    Attributes:
        other: the leg this direction ends at.
        counters: the direction's running aggregate.
        pending: received here and not yet taken by the other leg; None while the way is free.
        pipe: what bytes go through in place of the buffer, while there is bulk.
        meter: what is asked before bytes are received, where bandwidth is limited.
        throttle: where it gets its meter when it has to ask for the first time; None if it has it.
        lease: what may be received without asking, if there is anything; set where it is limited.
        left: of its own lease, while it has no share (see ``core.share``); beside
        source: with that of its source, and
        whole: that of its listener.
        limited: whether there is a meter, a throttle, or a budget of bytes.
        apart: whether it is limited or has a pipe, and so is not served in the plain way.
        send_flags: how to send what is pending: as urgent data, or not.
        unserved: events that came while the way was not free.
        chunk: bytes to ask for at a time.
        ended: nothing more will be received.
        unsent: bytes of this direction that were received, and thrown away when the flow ended.
        stalls: how long this direction stood still; None if it never did.
        writable_watched: whether EPOLLOUT is asked for.

    """

    __slots__ = (
        "apart",
        "chunk",
        "counters",
        "ended",
        "flow",
        "lease",
        "left",
        "limited",
        "meter",
        "other",
        "pending",
        "pipe",
        "send_flags",
        "socket",
        "source",
        "stalls",
        "throttle",
        "unsent",
        "unserved",
        "whole",
        "writable_watched",
    )

    other: StreamLeg
    flow: StreamFlow
    left: int
    source: Group
    whole: Lease

    def __init__(self, socket: Socket, counters: DirectionCounters) -> None:
        self.bytes = 0
        self.packets = 0
        self.socket = socket
        self.counters = counters
        self.pending: memoryview | None = None
        self.pipe: Pipe | None = None
        self.meter: Meter | None = None
        self.throttle: Throttle | None = None
        self.lease: Share | StreamLeg | None = None
        self.apart = False
        self.limited = False
        self.send_flags: int = DONTWAIT
        self.unserved = 0
        self.chunk = SMALLEST_CHUNK
        self.ended = False
        self.unsent = 0
        self.stalls: Stalls | None = None
        self.writable_watched = False

    def ready(self, mask: int, now: float) -> None:
        """Serve the socket: write what waited for it, then receive from it."""
        if mask & EPOLLOUT and self.other.pending:
            self.other.flush(now)
        if mask & NEWS:
            if self.pending is not None or self.ended:
                self._not_read(mask, now)
            elif not self.apart:
                self._pull(mask, now)
            else:
                lease = self.lease
                if lease is not None and self.pipe is None:
                    most, source, whole = self.chunk, lease.source, lease.whole
                    if lease.left > most and source.left > most and whole.left > most:
                        before = self.bytes
                        self._pull(mask, now, 1)
                        moved = self.bytes - before
                        lease.left -= moved
                        source.left -= moved
                        whole.left -= moved
                        return
                self._pull_apart(mask, now)

    def pull(self, mask: int, now: float) -> None:
        """Receive and pass on, as much as there is and the turn and the limits allow."""
        if self.apart:
            self.ready(mask & ~EPOLLOUT | EPOLLIN, now)
        else:
            self._pull(mask, now)

    def _pull(self, mask: int, now: float, reads: int = READS_PER_TURN) -> None:
        """Receive and pass on, until there is nothing left, the way is blocked, or the turn is up.

        A short receive has emptied the socket, and what comes after it is a new edge. After
        EPOLLRDHUP nothing comes any more: the kernel tells that FIN is there when all before it is,
        so the end need not be read. After a failure it must: its edge has been seen already. So
        nearly always this is one receive and one send, and it is written for that: as a loop, with
        both methods bound before it, it cost a tenth more of a whole request.

        Source: tcp_poll, tcp_fin and tcp_recvmsg_locked in net/ipv4/tcp.c and tcp_input.c.

        Args:
            mask: the events that tell of it.
            now: the round's time.
            reads: receives at most; 0 is a single one, after which the caller goes on.

        """
        if mask & EPOLLPRI and at_urgent_mark(self.socket):
            if self._pass_urgent(mask, now):
                self._passed_urgent(mask, now, reads)
            return
        chunk = self.chunk
        try:
            size = self.socket.recv_into(_buffer, chunk, DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self.flow.failed(self, error.errno, now)
            return
        if not size:
            self.ended = True
            self.flow.leg_ended(self, now)
            return
        self.bytes += size
        self.counters.received += size
        self.flow.active = now
        is_last = mask & READ_ON and size < chunk and reads
        flags = self._last_flags(mask) if is_last else DONTWAIT
        try:
            sent = self.other.socket.send(_buffer[:size], flags)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._discard(size)
            self.other_failed(error, now)
            return
        if sent < size:
            self._hold(_buffer[sent:size], mask)
        elif is_last:
            self._passed_last(mask, now, reads - 1)
        elif reads and size == chunk:
            self._filled(mask, now, reads - 1)

    def _last_flags(self, mask: int) -> int:
        """How to send a short receive after which there is an end, urgent data, or a failure.

        If it is the end alone, and this end is passed on at once, both go in one packet: MSG_MORE
        has the kernel keep the bytes for what follows, and that is FIN. Two packets cost a
        connection with one answer a microsecond and a half more, and its client an event.
        """
        is_end = mask & READ_ON == EPOLLRDHUP
        passes_end = is_end and not self.other.ended and self.flow.broken is None
        return DONTWAIT | MORE if passes_end else DONTWAIT

    def _passed_last(self, mask: int, now: float, reads: int) -> None:
        """Go on after it: with the end, or to find out what there is."""
        if mask & READ_ON == EPOLLRDHUP:
            self.ended = True
            self.flow.leg_ended(self, now)
        else:
            self._read_on(mask, now, reads)

    def flush(self, now: float) -> None:
        """Write what is pending to the other leg; when all is written, go on receiving."""
        pending = self.pending
        assert pending is not None
        if self.pipe is not None:
            self._drain_pipe(now)
            if self.pending is None:
                self.open_way(now)
            return
        try:
            sent = self.other.socket.send(pending, self.send_flags)
        except BlockingIOError:
            return
        except OSError as error:
            self.other_failed(error, now)
            return
        self.flow.active = now
        self.counters.buffered -= sent
        if sent < len(pending):
            self.pending = pending[sent:]
        else:
            self.send_flags = DONTWAIT
            self.open_way(now)

    def open_way(self, now: float) -> None:
        """Receive again: the other leg takes bytes now."""
        self.pending = None
        if self.stalls is not None:
            self.stalls.end(now)
        if self.unserved:
            mask, self.unserved = self.unserved, 0
            # Urgent data may have come since then, and its event may still be on the way.
            self.pull(mask if self.pipe is not None else mask | EPOLLPRI, now)

    def begin(self, now: float) -> None:
        """Receive for the first time: everything since the beginning lies there, unread."""
        self.pending = None
        if self.unserved:
            mask, self.unserved = self.unserved, 0
            self.pull(mask, now)

    def block(self) -> None:
        """Receive no more, and throw away what is pending: nobody will take it."""
        if self.pending:
            held = self.pipe.held if self.pipe is not None else len(self.pending)
            self.counters.buffered -= held
            self._discard(held)
        self.pending = BLOCKED
        if self.pipe is not None:
            self._return_pipe()

    def _discard(self, size: int) -> None:
        """Know that bytes were received, and will not go on."""
        self.counters.discarded += size
        self.unsent += size

    def freeze(self) -> None:
        """Be as it is without pipe, meter and turn: what a pipe holds becomes pending."""
        self._leave_meter()
        if self.pending is HELD_BACK:
            self._release(monotonic())
        if self.pipe is not None:
            held = self.pipe.take_out()
            self.pending = memoryview(held) if held else None
            self._return_pipe()
        self.apart = self.limited = False
        self.unserved = 0

    def hold_again(self, rest: bytes, *, urgent: bool) -> None:
        """Have bytes pending that another process had received; it was told when to go on."""
        self.pending = memoryview(rest)
        self.counters.arrived(len(rest))
        if urgent:
            self.send_flags = MSG_OOB | DONTWAIT

    def part(self) -> None:
        """Block, and let go of the flow and of the other leg: the flow has ended.

        Legs and flow refer to each other; without this their memory would wait for a collector
        that looks for circles. An event of this round may still come, and finds nothing to do.
        """
        if self.pending or self.pipe is not None:
            self.block()
        self.pending = BLOCKED
        if self.limited:
            if self.throttle is not None and self.source.members > 1:  # nearly always
                self.source.members -= 1
                self.throttle = self.lease = None
            else:
                self._leave_meter()
        self.ended = True
        self.flow = self.other = ENDED

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow: a fault of ours."""
        self.flow.crashed(error, now)

    def _leave_meter(self) -> None:
        """Share no bandwidth any more."""
        if self.throttle is not None:
            self.throttle.shaper.let_go(self.source)
        elif self.meter is not None:
            self.meter.leave()
        self.throttle = self.meter = self.lease = None

    def _pull_apart(self, mask: int, now: float) -> None:
        """Do as ``pull`` says in the other ways than the plain one."""
        if not self.limited:
            if self._splice(mask, now):
                self._go_on_later(mask)
            return
        lease = self.lease
        if lease is not None and self.pipe is not None and self._splice_by(lease, mask, now):
            return
        left = self._left_of_budget(mask, now)
        if not left:
            return
        meter = self.own_meter()
        grant = LARGEST_CHUNK if meter is None else meter.ask(now)
        if grant:
            self._move(min(grant, left), mask, now)
        else:
            assert meter is not None
            limit = meter.held_by
            self.flow.counters.strikes(limit)
            self.flow.struck(limit)
            self._hold_back(mask, now)

    def _splice_by(self, lease: Share | StreamLeg, mask: int, now: float) -> bool:
        """Do as ``ready`` does by a lease, through the pipe; false if it does not suffice."""
        source, whole = lease.source, lease.whole
        if min(lease.left, source.left, whole.left) <= BULK_TURN:
            return False
        before = self.bytes
        if self._splice(mask, now):
            self._go_on_later(mask)
        moved = self.bytes - before
        for level in (lease, source, whole):
            level.left -= moved
        return True

    def granted(self, grant: int, now: float) -> None:
        """Move so many bytes at most: its turn has come, of those who share a bandwidth."""
        assert self.meter is not None
        if self.pending is not HELD_BACK:  # the other leg does not take bytes now, or has ended
            self.meter.spent(0, now)
            return
        mask = self._release(now)
        left = self._left_of_budget(mask, now)
        if left:
            self._move(min(grant, left), mask, now)
        elif self.meter is not None:
            self.meter.spent(0, now)

    def own_meter(self) -> Meter | None:
        """The meter, which is made when it is needed; None where bandwidth is not limited."""
        if self.throttle is not None:
            self.meter, self.throttle = self.throttle.meter_of(self), None
            self._take_lease()
        return self.meter

    def use_meter(self, meter: Meter) -> None:
        """Ask this meter before anything is received from now on, in place of any other."""
        former = self.own_meter()
        if former is not None:
            former.leave()
        self.meter = meter
        self.limit()
        if self.pending is HELD_BACK:  # by the other one
            self.flow.relay.pump.again(self, self._release(monotonic()))

    def meter_changed(self) -> None:
        """Ask what the meter has become, or nothing; who was held back asks again."""
        self.limited = self.own_meter() is not None or self.flow.limits.bytes < inf
        self._take_lease()
        self.apart = self.limited or self.pipe is not None
        if self.pending is HELD_BACK:
            self.flow.relay.pump.again(self, self._release(monotonic()))

    def limit(self) -> None:
        """Look at the limits of the flow before anything is received from now on."""
        self.limited = self.apart = True
        self._take_lease()

    def _take_lease(self) -> None:
        """Go by a lease, if the flow may move all of it, both ways."""
        flow, meter = self.flow, self.meter
        if flow.limits.bytes - flow.original.bytes - flow.reply.bytes < BUDGET_ROOM:
            self.lease = None
        elif meter is not None:
            self.lease = meter.share
        else:
            lend_budget(self)
            self.lease = self

    def _move(self, most: int, mask: int, now: float) -> None:
        """Receive and pass on once, and see that the rest has its turn."""
        before = self.bytes
        if self.pipe is not None:
            is_more = self._splice(mask, now, most, 1)
            moved = self.bytes - before
        else:
            chunk = self.chunk = min(most, LARGEST_CHUNK)
            self._pull(mask, now, 0)
            moved = self.bytes - before
            is_more = moved >= chunk or (moved > 0 and bool(mask & READ_ON))
            self.chunk = LEAST_BULK if moved >= LEAST_BULK else SMALLEST_CHUNK  # may be doubled
            is_bulk = chunk >= LEAST_BULK and moved >= chunk and not self.ended
            if is_bulk and self.pending is None:  # what is pending would not be in the pipe
                self._borrow_pipe()
        meter = self.meter
        if meter is not None:
            meter.spent(moved, now)
        if self.ended:
            return
        self._take_lease()  # which is a new one, and the budget less
        if not is_more or self.pending is not None:
            return
        mask |= EPOLLPRI  # urgent data may have come since then, its event still on the way
        if meter is not None and meter.in_line:
            self._hold_back(mask, now)
        else:
            self.flow.relay.pump.again(self, mask)

    def _hold_back(self, mask: int, now: float) -> None:
        """Receive no more until it is granted."""
        self.pending = HELD_BACK
        self.unserved |= mask
        self._stalled(now, by_limit=True)

    def _release(self, now: float) -> int:
        """Be held back no more; return the events that came meanwhile."""
        self.pending = None
        if self.stalls is not None:
            self.stalls.end(now)
        mask, self.unserved = self.unserved, 0
        return mask

    def _stalled(self, now: float, *, by_limit: bool = False) -> None:
        """Know that this direction stands still."""
        if self.stalls is None:
            self.stalls = Stalls()
        self.stalls.begin(now, by_limit=by_limit)

    def _left_of_budget(self, mask: int, now: float) -> int:
        """How many bytes the flow may still receive; at 0 it has ended, or there is nothing."""
        left = self.flow.limits.bytes - self.flow.bytes
        if left > 0:
            return int(min(left, LARGEST_CHUNK))
        try:
            has_more = bool(self.socket.recv(1, MSG_PEEK | DONTWAIT))
        except BlockingIOError:
            return 0
        except OSError:
            has_more = False
        if has_more:
            return 0 if self.flow.overdrawn(now) else LARGEST_CHUNK
        self._pull(mask, now, 0)  # the end, or a failure
        return 0

    def _not_read(self, mask: int, now: float) -> None:
        """Keep the news of a socket that is not to be read, now or ever; a failure may matter."""
        if self.pending is not None:
            self.unserved |= mask
            if mask & EPOLLERR:
                self.flow.failed_unread(self, now)
            elif mask & EPOLLRDHUP:
                self.flow.ended_unread(self, now)
        elif mask & EPOLLERR:
            self.flow.failed(self, take_error(self.socket), now)

    def _filled(self, mask: int, now: float, reads: int) -> None:
        """Go on after a receive that was as long as it could be; unless at urgent data, longer."""
        if at_urgent_mark(self.socket):
            mask |= EPOLLPRI
        elif self.chunk < LARGEST_CHUNK:
            self.chunk *= 2
        self._read_on(mask, now, reads)

    def _read_on(self, mask: int, now: float, reads: int) -> None:
        """Receive again, if so many reads are left in this turn, or in the next one."""
        if reads:
            self._pull(mask, now, reads)
            return
        if self.chunk == LARGEST_CHUNK and not at_urgent_mark(self.socket):
            self._borrow_pipe()
        self._go_on_later(mask)

    def _pass_urgent(self, mask: int, now: float) -> bool:
        """Pass on the urgent byte whose mark has been reached; false if nothing may follow yet."""
        try:
            byte = self.socket.recv(1, DONTWAIT)
        except BlockingIOError:  # it is announced, and not there yet
            return False
        except OSError as error:
            self.flow.failed(self, error.errno, now)
            return False
        if not byte:
            self.ended = True
            self.flow.leg_ended(self, now)
            return False
        self.bytes += 1
        self.counters.received += 1
        self.flow.active = now
        try:
            send_urgent(self.other.socket, byte)
        except BlockingIOError:
            self._hold(memoryview(byte), mask)
            self.send_flags = MSG_OOB | DONTWAIT
            return False
        except OSError as error:
            self._discard(1)
            self.other_failed(error, now)
            return False
        return True

    def _passed_urgent(self, mask: int, now: float, reads: int) -> None:
        """Go on after it, unless nothing is there, whose edge is still to come.

        Else the next urgent byte might come after the look for its mark and before the receive,
        which would not stop at it.
        """
        if reads and (mask & HANGUP or bytes_to_read(self.socket.fileno())):
            self._read_on(mask, now, reads - 1)

    def _hold(self, rest: memoryview, mask: int) -> None:
        """Keep what the other leg did not take, and wait until it takes more."""
        self.pending = memoryview(bytes(rest))
        self.counters.buffered += len(rest)
        self.unserved |= mask
        self.chunk = max(SMALLEST_CHUNK, self.chunk // 2)
        self._stalled(self.flow.active)  # which is now: it has just received
        self._watch_other()

    def _watch_other(self) -> None:
        """Ask to be told when the other leg takes bytes again; asked for once, it stays."""
        other = self.other
        if not other.writable_watched:
            other.writable_watched = True
            self.flow.relay.pump.modify(other.socket.fileno(), WATCH_BOTH)

    def other_failed(self, error: OSError, now: float) -> None:
        """The other leg takes no more; pass on what it sent before that, then end the flow.

        An endpoint may answer and reset because it did not want all of the request. Its answer
        lies in our receive queue, and the client shall have it before the reset.
        """
        self.block()
        other, flow = self.other, self.flow
        if other.ended or other.pending is BLOCKED:
            flow.break_off(other, error.errno, now)
            assert flow.broken is not None
            flow.failed(flow.broken, flow.fault, now)
            return
        flow.break_off(other, error.errno, now)
        if other.pending is None:
            other.pull(READ_ON, now)
        else:
            other.unserved |= READ_ON

    def _borrow_pipe(self) -> None:
        """Go over to splicing, if a pipe is free."""
        self.pipe = self.flow.relay.pipes.take()
        if self.pipe is not None:
            self.apart = True
            make_nonblocking(self.socket)
            make_nonblocking(self.other.socket)

    def _return_pipe(self) -> None:
        """Go back to copying."""
        assert self.pipe is not None
        self.flow.relay.pipes.give_back(self.pipe)
        self.pipe = None
        self.apart = self.limited
        self.chunk = SMALLEST_CHUNK

    def _splice(
        self, mask: int, now: float, most: int = PIPE_SIZE, reads: int = READS_PER_TURN
    ) -> bool:
        """Receive and pass on through the pipe, which is empty; return whether there may be more.

        Args:
            mask: the events that tell of it.
            now: the round's time.
            most: bytes at a time.
            reads: times at most.

        """
        pipe = self.pipe
        assert pipe is not None
        moved = 0
        for _ in range(reads):
            try:
                size = pipe.fill(self.socket.fileno(), most)
            except BlockingIOError:
                return self._dried_up(moved, mask, now)
            except OSError as error:
                self.flow.failed(self, error.errno, now)
                return False
            if not size:  # the end; or, with the end behind it, an urgent byte
                return self._copy_again(mask | READ_ON, now)
            moved += size
            self.bytes += size
            self.counters.received += size
            self.flow.active = now
            self.counters.buffered += size
            self.pending = IN_PIPE
            self._drain_pipe(now)
            if self.pending is IN_PIPE:
                self._stalled(now)
                self.unserved |= mask
                self._watch_other()
                return False
            if self.pending is not None:  # blocked: the other leg has failed, and may be gone
                return False
        return True

    def _copy_again(self, mask: int, now: float) -> bool:
        """Return the pipe, and do without it what no pipe can do; whether there may be more."""
        self._return_pipe()
        self._pull(mask, now, 0 if self.limited else READS_PER_TURN)
        return self.limited and not self.ended  # where there is no limit it has gone on itself

    def _go_on_later(self, mask: int) -> None:
        """The turn is up: go on in the next round, where urgent data may have come meanwhile."""
        self.flow.relay.pump.again(self, mask if self.pipe is not None else mask | EPOLLPRI)

    def _dried_up(self, moved: int, mask: int, now: float) -> bool:
        """Nothing more can be spliced: keep the pipe only while there is bulk to come.

        An urgent byte stops a splice as it stops a receive, and no pipe can carry it.
        """
        if mask & EPOLLPRI and at_urgent_mark(self.socket):
            return self._copy_again(mask, now)
        if moved < (1 if self.limited else LEAST_BULK):
            self._return_pipe()
        return False

    def _drain_pipe(self, now: float) -> None:
        """Pass on what the pipe holds; when all is gone, the way is free."""
        pipe = self.pipe
        assert pipe is not None
        target = self.other.socket.fileno()
        while pipe.held:
            try:
                self.counters.buffered -= pipe.drain(target)
            except BlockingIOError:
                return
            except OSError as error:
                self.other_failed(error, now)
                return
            self.flow.active = now
        self.pending = None
