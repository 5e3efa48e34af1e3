"""Flows that have gone to an heir, in custody until the hand-over as a whole is over.

An heir that dies in the middle of it must not take along what it had got already. So we keep every
flow's descriptors open, and shut the listening sockets only for ourselves, until the successor says
that it is settled. If an heir is over before that, its flows are taken back:

* A stream, if the kernel proves it whole (``core.crossing``): what was read from the one side was
  written to the other, or is the end of what was pending when it left. Bytes that the heir alone
  had are gone with it: such a flow is reset on both sides, told, and counted as ``internal``.
* A flow of datagrams as it had left, when all heirs are over: then the listening sockets are
  ours again, too. While others of them live, clients send to those.

Flows that an heir ended meanwhile stay ended. Whom it had let in by itself is gone with it.

That an heir is over is known from its process (``ProcessFile``), not from the end of the wire: one
that hung up may go on with what it has.

An heir with a standby is over when its whole line is. If it is killed alone, the standby goes on
with the flows: it has them, and knows what was in flight; to take them back we would have to be
sure that it never begins. If nobody wants it, as when the successor's supervisor has died, it ends
by itself. So a flow comes back only when the table of descriptors in which the heir had it is gone,
and with it everybody who could serve, reset or count it: once.

Two processes that hold a socket delay nothing but its close: an end (FIN) is sent at once by
shutdown(2), a reset only when we let go as well, which is a moment later in an ordinary hand-over.

If we are killed meanwhile, and have a standby, it must not reset what it finds of this in its
table: an heir serves it. So our will says so of each stream (``Will.lend``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from socket import SocketType as Socket
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import trio

from proxy.core.crossing import STATES, Crossing, Keeping, Reading, find_crossing
from proxy.core.flow import State
from proxy.engine.handover.revive import ReviveError, revive
from proxy.engine.handover.transfer import BATCH
from proxy.engine.identified import Identified
from proxy.engine.survival.reading import has_failed, read_socket
from proxy.engine.survival.ways import Way
from proxy.engine.survival.will import NO_FILE
from proxy.engine.tcp import CLOSE_IN_ORDER, reset_on_close, skip_urgent

if TYPE_CHECKING:
    from proxy.core.flow_state import FlowState, LegState
    from proxy.engine.handover.doors import Doors, Held
    from proxy.engine.handover.frozen import Frozen
    from proxy.engine.handover.process_file import ProcessFile
    from proxy.engine.relay import Relay
    from proxy.engine.roster import Roster

IDS: Final = 1_000_000
"""Ids that an heir may have given to flows of its own before it died; its log tells of them, and
none of ours shall have the same. More than can begin within any bound of a hand-over."""

FATE: Final = 1.0
"""Seconds for the kernel to end a process whose wire has ended."""

log = structlog.get_logger()

ANY_ID: Final = 1
"""In a will, of what is no flow yet; 0 is that of a record that was never used."""

Offsets = tuple[int, int]
"""Bytes that were read from the client, and written to the endpoint, before those of a flow."""

NO_HEADERS: Final = (0, 0)


class Gone(NamedTuple):
    """A flow that has gone to an heir.

    Attributes:
        state: as which it left.
        files: its descriptors; ours.
        offsets: of a stream.
        record: of them in our will; None if there is none.

    """

    state: FlowState
    files: tuple[int, ...]
    offsets: Offsets
    record: int | None


class GoneClient(NamedTuple):
    """A client that has gone to an heir before it was admitted.

    Attributes:
        held: which; the socket is ours.
        consumed: bytes that had been read from it, see ``consumed_of``.
        record: of it in our will; None if there is none.

    """

    held: Held
    consumed: int | None
    record: int | None


@dataclass(slots=True)
class Ward:
    """What one heir has got.

    Attributes:
        process: of the heir.
        gone: flows, by the order in which they went.
        clients: that went before they were admitted.
        over: whether the heir has ended, and its streams are back.
        settled: when that is so, or the heir is looked after no more.
        back: how many flows have come back.
        lost: how many could not.
        scope: of looking after it.

    """

    process: ProcessFile
    gone: list[Gone] = field(default_factory=list)
    clients: list[GoneClient] = field(default_factory=list)
    over: bool = False
    settled: trio.Event = field(default_factory=trio.Event)
    back: int = 0
    lost: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Custody:
    """What a worker may have to take back. Owns the descriptors.

    Args:
        relay: whose flows went.
        roster: its listeners.

    """

    def __init__(self, relay: Relay, roster: Roster) -> None:
        self._relay = relay
        self._roster = roster
        self._doors: Doors | None = None
        self._wards: list[Ward] = []
        self._nursery: trio.Nursery | None = None

    @property
    def has_all_back(self) -> bool:
        """Whether no heir is left, and everything is ours again."""
        return bool(self._wards) and all(ward.over for ward in self._wards)

    async def run(self) -> None:
        """Take back what heirs leave that end too early, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def begin(self, processes: Sequence[ProcessFile | None]) -> None:
        """Begin with a hand-over to these heirs; if one of them is not known, nothing is kept.

        Args:
            processes: of the heirs, by their numbers; ours from now on.

        """
        self.release()
        known = [each for each in processes if each is not None]
        if len(known) < len(processes) or self._nursery is None:
            for process in known:
                process.close()
            return
        self._wards = [Ward(process) for process in known]
        for ward in self._wards:
            self._nursery.start_soon(self._look_after, ward)

    def hold(self, doors: Doors) -> None:
        """Have the doors, which were lent to the heirs; leave them for good if nothing is kept."""
        if self._wards:
            self._doors = doors
            self._take_rest()
        else:
            doors.leave(monotonic())

    def keep(self, heir: int, frozen: Frozen, offsets: Offsets) -> None:
        """Keep a flow that goes to an heir, and is about to depart."""
        if self._wards:
            files: list[int] = []
            try:
                files += map(os.dup, frozen.files)
            except OSError:  # EMFILE: it is the heir's for good
                _close(files)
            else:
                record = self._note_flow(frozen.state, files)
                self._wards[heir].gone.append(Gone(frozen.state, tuple(files), offsets, record))

    def look_again(self, heir: int) -> None:
        """Take back what has just departed, if its heir was over before that."""
        if self._wards and self._wards[heir].over and self._nursery is not None:
            self._nursery.start_soon(self._take_back, self._wards[heir])

    def keep_client(self, heir: int, client: Held, consumed: int | None) -> None:
        """Keep a client that has gone to an heir without being admitted; its socket is taken.

        Args:
            heir: its number.
            client: which.
            consumed: of it, before it went; see ``consumed_of``.

        """
        if self._wards:
            state, socket = client
            way = Way(state.listener, state.transport, "", "")
            record = self._note(ANY_ID, 0.0, way, (socket.fileno(), NO_FILE))
            self._wards[heir].clients.append(GoneClient(client, consumed, record))
        else:
            client[1].close()

    async def end(self, heir: int, *, kill: bool) -> int:
        """Learn what has become of an heir that has failed.

        Args:
            heir: its number.
            kill: end it first: it stands still, and must not go on with what we take back. One with
                a standby is left to its supervisor: ended alone, it would be followed.

        Returns:
            How many of its flows have come back.

        """
        if not self._wards:
            return 0
        ward = self._wards[heir]
        process = ward.process
        if kill and ward.gone and not (process.has_standby or process.is_over):
            log.error("heir_killed", pid=process.pid, remedy="its flows are taken back")
            process.kill()
        with trio.move_on_after(FATE):
            await ward.settled.wait()
        return ward.back

    def release(self) -> None:
        """Let go of everything: the hand-over is over, or another one begins.

        What an heir has left that is over by now is taken back even so.
        """
        wards, self._wards = self._wards, []
        doors, self._doors = self._doors, None
        now = monotonic()
        for ward in wards:
            if ward.over or ward.process.is_over:
                self._take_streams(ward, len(ward.gone), now)
                for each in ward.gone:  # of datagrams: their clients are the other heirs' now
                    self._lose(ward, each.state, [Socket(fileno=fd) for fd in each.files])
            else:
                for each in ward.gone:
                    _close(each.files)
                    self._forget(each)
            for gone in ward.clients:
                gone.held[1].close()
                self._forget(gone)
            ward.scope.cancel()
        if doors is not None:
            self._relay.table.settle()
            doors.leave(now)

    async def _look_after(self, ward: Ward) -> None:
        try:
            with ward.scope:
                await ward.process.wait_over()
                await self._take_back(ward)
        finally:
            ward.process.close()
            ward.settled.set()

    async def _take_back(self, ward: Ward) -> None:
        """Take back all that an heir has left."""
        while self._take_streams(ward, BATCH, monotonic()):
            await trio.lowlevel.checkpoint()
        ward.over = True
        self._take_rest()
        self._relay.table.settle()
        log.error(
            "heir_died",
            pid=ward.process.pid,
            taken_back=ward.back,
            lost=ward.lost,
            remedy="its log may tell why",
        )

    def _take_streams(self, ward: Ward, most: int, now: float) -> bool:
        """Take back so many streams; return whether there are more."""
        streams = [each for each in ward.gone if each.state.datagrams is None]
        rest = [each for each in ward.gone if each.state.datagrams is not None]
        ward.gone = [*streams[most:], *rest]
        for each in streams[:most]:
            self._take_stream(ward, each, now)
            self._forget(each)
        return len(streams) > most

    def _take_rest(self) -> None:
        """Take back flows of datagrams, clients and the listening sockets, once no heir is left."""
        doors = self._doors
        if doors is None or not self.has_all_back:
            return
        self._doors = None
        now = monotonic()
        self._relay.table.skip(self._relay.table.id_after(IDS))
        for ward in self._wards:
            for each in ward.gone:
                if each.state.datagrams is not None:
                    self._revive(ward, each, each.state, now)
            ward.gone = [each for each in ward.gone if each.state.datagrams is None]
        doors.resume()
        for ward in self._wards:
            self._take_in(ward, doors, now)

    def _take_in(self, ward: Ward, doors: Doors, now: float) -> None:
        """Have clients wait again who had waited; not if the heir has begun with them."""
        clients, ward.clients = ward.clients, []
        for gone in clients:
            self._forget(gone)
            state, client = gone.held
            if gone.consumed is not None and consumed_of(client) == gone.consumed:
                doors.take_in(state, client, now)
            else:
                ward.lost += 1
                doors.refuse([(state, client)])

    def _take_stream(self, ward: Ward, gone: Gone, now: float) -> None:
        client, endpoint = (Socket(fileno=fd) for fd in gone.files)
        state = None
        with suppress(OSError):
            state = returned(gone, client, endpoint, now)
        if state is None:
            self._lose(ward, gone.state, (client, endpoint))
            return
        self._count(gone.state, state)
        if state.state is State.CLOSING:
            self._roster.counters_called(state.listener, state.transport).flow_finished()
            client.close()
            endpoint.close()
            return
        files = client.detach(), endpoint.detach()
        self._revive(ward, gone._replace(files=files), state, now)

    def _revive(self, ward: Ward, gone: Gone, state: FlowState, now: float) -> None:
        try:
            revive(self._relay, self._roster, state, gone.files, now)
        except (ReviveError, OSError) as error:
            log.error("flow_not_revived", flow=state.id, error=str(error))
            self._lose(ward, state, [Socket(fileno=fd) for fd in gone.files])
        else:
            ward.back += 1

    def _note_flow(self, state: FlowState, files: Sequence[int]) -> int | None:
        """Note a flow, if it is a stream: sockets of datagrams cannot be reset."""
        if state.datagrams is not None:
            return None
        client, endpoint = files
        way = Way(state.listener, state.transport, state.upstream, state.endpoint)
        return self._note(state.id, state.opened, way, (client, endpoint))

    def _note(self, id: int, opened: float, way: Way, files: tuple[int, int]) -> int | None:
        """Have our will say what is an heir's, too; return the record, if there is one."""
        will = self._relay.will
        return None if will is None else will.lend(id, opened, way, files)

    def _forget(self, gone: Gone | GoneClient) -> None:
        """Have it say so no more: the descriptors are closed, or ours alone."""
        if gone.record is not None:
            assert self._relay.will is not None
            self._relay.will.end_loan(gone.record)

    def _count(self, before: FlowState, state: FlowState) -> None:
        """Count what the heir has moved."""
        counters = self._roster.counters_called(state.listener, state.transport)
        for direction, left, came in (
            (counters.original, before.original, state.original),
            (counters.reply, before.reply, state.reply),
        ):
            direction.returned(came.received - left.received, len(left.pending), len(came.pending))

    def _lose(self, ward: Ward, state: FlowState, sockets: Iterable[Socket]) -> None:
        ward.lost += 1
        self._roster.counters_called(state.listener, state.transport).flow_lost()
        for socket in sockets:
            if state.datagrams is None:
                reset_on_close(socket)
            socket.close()


def offsets_of(frozen: Frozen) -> Offsets:
    """Bytes of headers before those of a flow that has just been frozen."""
    flow = frozen.flow
    if not isinstance(flow, Identified):
        return NO_HEADERS
    source = read_socket(flow.original.socket, is_ours=False)
    target = read_socket(flow.reply.socket, is_ours=True)
    if source is None or target is None:  # they will not be proven later either
        return NO_HEADERS
    original = frozen.state.original
    written = original.received - len(original.pending)
    return source.consumed - original.received, target.written - written


def consumed_of(client: Socket) -> int | None:
    """Bytes that were read from a client; None if some were written, or it does not tell."""
    reading = read_socket(client, is_ours=False)
    return None if reading is None or reading.written else reading.consumed


def returned(gone: Gone, client: Socket, endpoint: Socket, now: float) -> FlowState | None:
    """The state of a stream that comes back, which nobody else serves any more.

    Returns:
        None if it is not proven whole.

    Raises:
        OSError: a socket has failed meanwhile.

    """
    if has_failed(client) or has_failed(endpoint):
        return None
    source, target = read_socket(client, is_ours=False), read_socket(endpoint, is_ours=True)
    if source is None or target is None:
        return None
    original = returned_leg(gone.state.original, gone.offsets, source, target, client)
    reply = returned_leg(gone.state.reply, NO_HEADERS, target, source, endpoint)
    if original is None or reply is None:
        return None
    for socket in (client, endpoint):  # an heir may have wanted to reset them
        socket.setsockopt(SOL_SOCKET, SO_LINGER, CLOSE_IN_ORDER)
    state = STATES[original.ended, reply.ended]
    is_half_closed = state in {State.CLIENT_CLOSED, State.ENDPOINT_CLOSED}
    since = now if gone.state.half_closed is None else gone.state.half_closed
    return gone.state._replace(
        state=state,
        active=now,
        original=original,
        reply=reply,
        half_closed=since if is_half_closed else None,
    )


def returned_leg(
    left: LegState, offsets: Offsets, source: Reading, target: Reading, socket: Socket
) -> LegState | None:
    """The state of a direction that comes back; None if it is not proven whole."""
    kept = Keeping(*offsets, pending=len(left.pending), is_urgent=left.urgent)
    crossing = find_crossing(source, target, kept)
    if crossing is None or not _is_ours(crossing, left):
        return None
    if crossing.is_again:
        skip_urgent(socket)
    pending = left.pending[crossing.at : crossing.at + crossing.size]
    return left._replace(
        received=crossing.bytes,
        pending=pending,
        urgent=crossing.is_urgent,
        ended=crossing.ended,
    )


def _is_ours(crossing: Crossing, left: LegState) -> bool:
    """Whether what is in flight is of what was pending already when the flow left."""
    return crossing.bytes == left.received or (crossing.bytes > left.received and not crossing.size)


def _close(files: Iterable[int]) -> None:
    for fd in files:
        os.close(fd)
