"""Executing a will: what a killed worker left behind becomes states of flows, or is reset.

The descriptors are here already, under the numbers they had, because the standby shares the table.
Of each flow both sockets are asked what they have given and taken; a flow whose every byte is found
lives on, and any other is reset on both sides. One that was served last when ``SUSPECT_TIMES``
workers in a row were killed, each soon after it had begun, is reset as well: it may be what kills
them.

A descriptor that no flow claims is that of a client to whom nothing has happened yet, see
``unserved``; or belongs to nothing that could go on: an epoll instance, a pipe, a listening socket
(the supervisor has its duplicate), a flow that was failing. Connections are reset, so that nobody
takes it for an ordinary end; but not those of a flow that had finished, or had another worker. A
record of one that finished rests for a while, and its descriptors may be another's by then; so the
peer must have ended, too.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from select import POLLRDHUP, poll
from socket import (
    AF_INET,
    AF_INET6,
    SO_ACCEPTCONN,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
)
from socket import socket as Socket
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.core.address import Transport
from proxy.core.crossing import STATES, Crossing, Keeping, Reading, Store, find_crossing
from proxy.core.flow import State
from proxy.core.flow_state import FlowState, LegState, read_states
from proxy.engine.handover.transfer import Moving
from proxy.engine.sockaddr import canonical
from proxy.engine.survival.borrowed import borrowed
from proxy.engine.survival.reading import has_failed, peer_of, read_socket
from proxy.engine.survival.shared import BUFFER, Mark, read_mark
from proxy.engine.survival.unserved import find_untouched
from proxy.engine.survival.will import ASSURED, FINISHED, FREE, LEAVING, NO_FILE, STREAM, Suspect
from proxy.engine.tcp import bytes_to_read, reset_on_close, skip_urgent

if TYPE_CHECKING:
    from proxy.engine.survival.will import LegRecord, Record, Will

SUSPECT_TIMES: Final = 3
SHORT_LIFE: Final = 1.0
"""Seconds. What kills a worker is told again to the next one at once, because it was not taken."""

NOBODY: Final = Mark(-1, -1, 0, 0)
NO_SUSPECT: Final = Suspect(0, 0, 0.0)

Place: TypeAlias = tuple[str, str]
"""The name and the transport of a listener."""


@dataclass(slots=True)
class Carried:
    """What flows of a listener had moved in the life of the worker that was killed.

    Attributes:
        original: bytes received from clients.
        reply: bytes received from endpoints.
        waiting_original, waiting_reply: of them, those that were not yet sent.
        finished: flows that had ended in order.

    """

    original: int = 0
    reply: int = 0
    waiting_original: int = 0
    waiting_reply: int = 0
    finished: int = 0

    def add(self, state: FlowState, bases: tuple[int, int]) -> None:
        """Count a flow that lives on, and had moved so much in other workers."""
        self.original += state.original.received - bases[0]
        self.reply += state.reply.received - bases[1]
        self.waiting_original += len(state.original.pending)
        self.waiting_reply += len(state.reply.pending)


@dataclass(slots=True)
class Legacy:
    """What a worker that was killed has left.

    Attributes:
        flows: that live on; the receiver's, with their descriptors.
        lost: how many of each listener's do not.
        wills: in which it was written; to be cleared when the flows are in another one.
        next_id: beyond the id of each.
        offset: Unix time less monotonic time, as that worker saw it; None if it had not said.
        unserved: clients to whom nothing had happened; the receiver's.
        is_short: whether it had begun a moment before, and they may be what killed it.
        suspect: the flow that was served last.
        moved: what all flows of each listener had moved while that worker lived.

    """

    flows: list[Moving] = field(default_factory=list)
    lost: Counter[Place] = field(default_factory=Counter)
    wills: list[Will] = field(default_factory=list)
    next_id: int = 0
    offset: float | None = None
    unserved: list[int] = field(default_factory=list)
    is_short: bool = False
    suspect: Suspect = NO_SUSPECT
    moved: dict[Place, Carried] = field(default_factory=lambda: defaultdict(Carried))


def execute(wills: Sequence[Will], keep: Iterable[int]) -> Legacy:
    """Take over what was left, and close everything else.

    Args:
        wills: of the killed worker, and of those before it whose executor was killed too.
        keep: further descriptors that stay open.

    """
    return _Executor(wills).run(set(keep))


class _Executor:
    def __init__(self, wills: Sequence[Will]) -> None:
        self._wills = wills
        self._mark = read_mark()
        self._legacy = Legacy()
        self._now = monotonic()
        self._claimed = set[int]()
        self._refused = set[int]()  # of flows that are lost
        self._finished = set[int]()
        self._leaving = set[int]()
        self._legacy.suspect = NO_SUSPECT._replace(began=self._now)

    def run(self, keep: set[int]) -> Legacy:
        """Execute them, the newest first: what it has of a flow is how it is."""
        for will in reversed(self._wills):
            self._legacy.wills.append(will)
            for record in will.records():
                if not self._execute(will, record):
                    will.set_kind(record.number, FREE)
            for way, (original, reply, finished) in will.ways.totals():
                moved = self._legacy.moved[way[:2]]
                moved.original += original
                moved.reply += reply
                moved.finished += finished
            self._legacy.offset = self._legacy.offset or will.offset
            self._legacy.next_id = max(self._legacy.next_id, will.next_id)
        self._legacy.is_short = self._now < self._wills[-1].suspect.began + SHORT_LIFE
        self._settle(keep)
        return self._legacy

    def _settle(self, keep: set[int]) -> None:
        """Close what no flow has claimed, but for the clients that can be served as new ones."""
        files = _open_files() - keep - self._claimed
        finished = set(filter(_is_ended, self._finished - self._refused))
        plain = (finished | self._leaving) & files
        untouched = find_untouched(files - plain - self._refused)
        plain |= untouched.keys()
        self._legacy.unserved = [fd for fd, is_ours in untouched.items() if is_ours]
        for fd in files - set(self._legacy.unserved):
            with suppress(OSError):  # EBADF: that of the directory
                if fd not in plain:
                    _reset_if_connected(fd)
                os.close(fd)

    def _execute(self, will: Will, record: Record) -> bool:
        """Execute one record; return whether its flow lives on."""
        is_last = (self._mark.will, self._mark.record) == (will.number, record.number)
        is_suspect = is_last and self._suspect(will, record.id)
        if record.kind in {FINISHED, LEAVING}:
            (self._finished if record.kind == FINISHED else self._leaving).update(record.files)
            return False
        files = tuple(fd for fd in record.files if fd != NO_FILE)
        if not self._claimed.isdisjoint(files):  # by a newer record of it
            return False
        mark = self._mark if is_last else NOBODY
        state = None if is_suspect else self._state_of(will, record, mark)
        if state is None:  # its descriptors are claimed by nobody, and so it is reset
            self._refused.update(files)
            self._legacy.lost[record.way[:2]] += 1
            return False
        moved = self._legacy.moved[record.way[:2]]
        if record.kind == STREAM:
            moved.add(state, record.bases)
        if state.state is State.CLOSING:  # in truth it had finished
            self._finished.update(files)
            moved.finished += 1
            return False
        self._claimed.update(files)
        self._legacy.flows.append((state, files))
        return True

    def _suspect(self, will: Will, id: int) -> bool:
        """Suspect a flow; return whether it has killed enough."""
        former = will.suspect
        is_again = former.id == id and self._now < former.began + SHORT_LIFE
        times = former.times + 1 if is_again else 1
        self._legacy.suspect = Suspect(id, times, self._now)
        return times >= SUSPECT_TIMES

    def _state_of(self, will: Will, record: Record, mark: Mark) -> FlowState | None:
        if record.kind != STREAM:
            return _datagram_state(record, will.shown(record.number), self._now)
        ours, theirs = record.files
        with suppress(OSError), borrowed(ours) as client, borrowed(theirs) as endpoint:
            return _stream_state(record, mark, client, endpoint, self._now)
        return None  # EBADF, ENOTSOCK, ENOTCONN


def _stream_state(
    record: Record, mark: Mark, client: Socket, endpoint: Socket, now: float
) -> FlowState | None:
    """The state of a stream; None if it is not proven whole."""
    if has_failed(client) or has_failed(endpoint):
        return None
    source, target = read_socket(client, is_ours=False), read_socket(endpoint, is_ours=True)
    if source is None or target is None:
        return None
    original = _leg_state(record, mark, 0, source, target, client)
    reply = _leg_state(record, mark, 1, target, source, endpoint)
    if original is None or reply is None:
        return None
    state = STATES[original.ended, reply.ended]
    whole = _bare_state(record, client, endpoint, now)
    is_half_closed = state in {State.CLIENT_CLOSED, State.ENDPOINT_CLOSED}
    return whole._replace(
        state=state,
        original=original,
        reply=reply,
        half_closed=now if is_half_closed else None,
    )


def _bare_state(record: Record, client: Socket, endpoint: Socket, now: float) -> FlowState:
    """A stream without its directions."""
    if record.note:
        return read_states(record.note)[0]._replace(active=now)
    listener, transport, upstream, name = record.way
    return FlowState(
        record.id,
        listener,
        Transport(transport),
        upstream,
        name,
        peer_of(client),
        canonical(client.getsockname()),
        canonical(endpoint.getsockname()),
        peer_of(endpoint),
        State.ESTABLISHED,
        record.opened,
        now,
        LegState(0),
        LegState(0),
        headed=record.offsets != (0, 0),
    )


def _leg_state(
    record: Record, mark: Mark, index: int, source: Reading, target: Reading, socket: Socket
) -> LegState | None:
    """The state of a direction; None if it is not proven whole."""
    leg = record.legs[index]
    taken, added = record.offsets if index == 0 else (0, 0)
    is_marked = (mark.record, mark.leg) == (record.number, index)
    kept = Keeping(
        taken,
        added,
        mark.before_of(source.consumed - taken) if is_marked else None,
        len(leg.pending),
        leg.is_urgent,
        None if leg.pipe is None else bytes_to_read(leg.pipe[0]),
    )
    crossing = find_crossing(source, target, kept)
    if crossing is None:
        return None
    if crossing.is_again:
        skip_urgent(socket)
    data = _bytes_of(crossing, leg)
    if len(data) != crossing.size:
        return None
    return LegState(crossing.bytes, 0, data, crossing.is_urgent, crossing.ended)


def _bytes_of(crossing: Crossing, leg: LegRecord) -> bytes:
    """The bytes that are in flight."""
    span = slice(crossing.at, crossing.at + crossing.size)
    match crossing.store:
        case Store.PENDING:
            return bytes(leg.pending[span])
        case Store.BUFFER:
            return bytes(BUFFER[span])
        case Store.PIPE:
            assert leg.pipe is not None
            parts: list[bytes] = []
            while (left := crossing.size - sum(map(len, parts))) > 0:
                parts.append(os.read(leg.pipe[0], left))
            return b"".join(parts)
    return b""


def _datagram_state(record: Record, shown: tuple[int, ...], now: float) -> FlowState | None:
    """The state of a flow of datagrams; None if it has no socket any more."""
    if not _is_of_datagrams(record.files[0]):
        return None
    (state,) = read_states(record.note)
    original, reply = (LegState(shown[at], shown[at + 1]) for at in (0, 2))
    state = state._replace(active=now, original=original, reply=reply)
    if record.kind == ASSURED:
        state = state._replace(state=State.ASSURED)
    return state


def _is_of_datagrams(fd: int) -> bool:
    with suppress(OSError), borrowed(fd) as socket:  # EBADF, ENOTSOCK
        return socket.type == SOCK_DGRAM
    return False


def _open_files() -> set[int]:
    """All descriptors that are open; and that of their directory, which was."""
    return set(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - names alone


def _is_ended(fd: int) -> bool:
    """Whether the peer of a socket has ended its side."""
    events = poll()
    events.register(fd, POLLRDHUP)
    return any(mask & POLLRDHUP for _, mask in events.poll(0))


def _reset_if_connected(fd: int) -> None:
    with suppress(OSError), borrowed(fd) as socket:  # ENOTSOCK
        is_stream = socket.family in {AF_INET, AF_INET6} and socket.type == SOCK_STREAM
        if is_stream and not socket.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
            reset_on_close(socket)
