"""The will: what a worker leaves behind of its flows, should it be killed.

It is shared memory, which the worker's standby (see ``standby``) has mapped, too. For each flow
that shall live on it has a *record*: what the kernel does not know of it. That is written once,
when the flow is established, and cleared when it ends; nothing is written for a request. What
changes now and then is written as it changes: bytes that are pending (they lie in *deposits* beside
the records), and a pipe. Where bytes are that were on their way at the last moment is told by the
mark, see ``shared``, and by the kernel's counters, see ``core.crossing``.

Whoever is killed is killed between any two instructions. So the first byte of a record, its kind,
is written last when it begins and first when it ends; the size of a deposit likewise.

The memory is private to worker and standby, and only ever read by the latter. Each worker of a line
has a will of its own: it is executed from the old one into the new, record by record, so that a
flow is in one of them, and for a moment in both, however often a worker is killed meanwhile.

Pages that were never touched cost nothing.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.engine.survival.deposit import AREA, Deposits
from proxy.engine.survival.ways import SIZE_OF_WAYS, Way, Ways

if TYPE_CHECKING:
    from proxy.core.flow import Direction

RECORDS: Final = 1 << 17
"""Flows of one worker that may live on; more than a table has by default. Of those beyond, nothing
is left behind: they end with their worker."""

RESTING: Final = 1024
"""Records that were released last are not used again yet: the sockets of a flow that has finished
are closed at the end of the round, which has 256 events, and its record tells so until then."""

FREE: Final = 0
STREAM: Final = 1
DATAGRAMS: Final = 2
ASSURED: Final = 5
"""Likewise, and the endpoint has answered."""

FINISHED: Final = 3
"""Both sides have ended; its sockets are just being closed, in order."""

LEAVING: Final = 4
"""On the way to another worker, which may have it already."""

NUMBER: Final = Struct("=Q")
NEXT_ID_AT: Final = 0
"""First of all: beyond the id of every flow that was written."""

SPARE_IDS: Final = 256
"""By so many beyond it that this is written seldom; ids are 64 bits long."""

OVER_AT: Final = 8
"""Whether the worker has ended in order."""

OFFSET_AT: Final = 16
OFFSET: Final = Struct("=d")
"""Unix time less monotonic time."""

SUSPECT_AT: Final = 24
SUSPECT: Final = Struct("=QQd")
"""A ``Suspect``."""

WAYS_AT: Final = mmap.PAGESIZE
RECORDS_AT: Final = WAYS_AT + SIZE_OF_WAYS
RECORD_SIZE: Final = 256

NOTE: Final = Struct("=QI")
"""At ``NOTE_AT``: where more about the flow is, and how many bytes; 0 for none."""

LEG: Final = Struct("=QIii")
"""At ``LEGS_AT``, twice: where bytes are pending, how many, and both ends of a pipe; 0 for none."""

LEGS_AT: Final = 64
NOTE_AT: Final = LEGS_AT + 2 * LEG.size

BODY: Final = Struct(f"=QdIiiIIQQ4x{2 * LEG.size}xQI")
"""At ``BODY_AT``: id, opened, way, both descriptors, bytes taken and added, what the flow had moved
each way when it was written here, legs that have nothing, and the note."""

BODY_AT: Final = 8

ENDING: Final = Struct("=24xI16xQQ4xQ12xQ12xQ4x")
"""What matters of a record when its stream ends: way, what it had moved, and where bytes are kept:
those that are pending on both legs, and the note."""

TEXT_AT: Final = NOTE_AT + NOTE.size + 4
TEXT_SIZE: Final = RECORD_SIZE - TEXT_AT
"""A note that is not longer stands in the record itself."""

SIZE_AT: Final = 8
"""Of the size of what is pending, in a leg."""

PIPE_AT: Final = 12
PIPE: Final = Struct("=ii")
SIZE: Final = Struct("=I")
SHOWN: Final = Struct("=QQQQ")
"""At ``LEGS_AT`` of a flow of datagrams, which has no legs."""

URGENT: Final = 1 << 31
"""In the size: it is one byte of urgent data."""

MAP_NORESERVE: Final = 0x4000
"""mmap(2): pages count when they are touched."""

DEPOSITS_AT: Final = RECORDS_AT + RECORDS * RECORD_SIZE
SIZE_OF_ALL: Final = DEPOSITS_AT + AREA

NO_FILE: Final = -1
"""In place of a flow's second descriptor, where it has only one."""


class Suspect(NamedTuple):
    """The flow that was served last when a worker was killed.

    Attributes:
        id: of the flow; 0 if nobody knows.
        times: how many workers in a row.
        began: when the last of them began; then the one whose will this is.

    """

    id: int
    times: int
    began: float


class LegRecord(NamedTuple):
    """What is known of a direction.

    Attributes:
        pending: bytes that were kept for it.
        is_urgent: whether that is urgent data.
        pipe: the reading and the writing end of its pipe; None if it has none.

    """

    pending: memoryview
    is_urgent: bool
    pipe: tuple[int, int] | None


class Record(NamedTuple):
    """A flow, as a will has it.

    Attributes:
        number: of the record.
        kind: of the record.
        id: of the flow.
        opened: when.
        way: that it goes.
        files: of a stream the client's and the endpoint's descriptor; of datagrams the endpoint's,
            and that by which many hosts answer, or ``NO_FILE``.
        offsets: bytes read from the client, and written to the endpoint, before those of the flow.
        bases: bytes that it had moved elsewhere, each way.
        legs: its directions, if it is a stream.
        note: more about it, if there is more.

    """

    number: int
    kind: int
    id: int
    opened: float
    way: Way
    files: tuple[int, int]
    offsets: tuple[int, int]
    bases: tuple[int, int]
    legs: tuple[LegRecord, ...]
    note: bytes


class Will:
    """One worker's will. Owns its memory, which is given back with the last reference to it.

    Args:
        number: of the worker in its line, from 0 on.
        life: the descriptor by which others see that its line is over, see ``process_file``; None
            if nobody shall.

    Attributes:
        ways: that its flows go.

    """

    def __init__(self, number: int = 0, life: int | None = None) -> None:
        self.number = number
        self.life = life
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self._memory = mmap.mmap(-1, SIZE_OF_ALL, flags=flags)
        self._view = memoryview(self._memory)
        self._deposits = Deposits(self._memory, DEPOSITS_AT)
        self._free: deque[int] = deque()  # those that are free longest stand first
        self._next = 0
        self._next_id = 0
        self.ways = Ways(self._view, WAYS_AT)
        self._remembered: dict[int, int] = {}  # records of flows of datagrams, by their ids

    def begin(self) -> int | None:
        """Take a record; None if there is none left."""
        if len(self._free) > RESTING or self._next == RECORDS:
            return self._free.popleft() if self._free else None
        self._next += 1
        return self._next - 1

    def write(
        self,
        number: int,
        kind: int,
        id: int,
        opened: float,
        way: int,
        files: tuple[int, int],
        offsets: tuple[int, int] = (0, 0),
        note: bytes = b"",
        bases: tuple[int, int] = (0, 0),
    ) -> bool:
        """Leave a flow behind by a record of one's own; false if there is no room for the note.

        Args:
            number: of the record, which is not in force.
            kind: of the record.
            id: of the flow.
            opened: when.
            way: the number of the way it goes.
            files: its descriptors.
            offsets: bytes read from the client, and written to the endpoint, before it began.
            note: more about it.
            bases: bytes that it has moved elsewhere, each way.

        """
        at = _at(number)
        where = self._write_note(at, note) if note else 0
        if where is None:
            return False
        noted = where, len(note)
        BODY.pack_into(self._view, at + BODY_AT, id, opened, way, *files, *offsets, *bases, *noted)
        self._view[at] = kind
        if id >= self._next_id:
            self._next_id = id + SPARE_IDS
            NUMBER.pack_into(self._view, NEXT_ID_AT, self._next_id)
        return True

    def close(self, number: int, kind: int, original: int, reply: int) -> None:
        """Leave a stream behind no more, which ends or goes elsewhere, and release its record.

        Args:
            number: of the record.
            kind: ``FINISHED``, or ``FREE`` if it ended otherwise.
            original: bytes that it has moved that way, here and before.
            reply: the same of the other direction.

        """
        at = _at(number)
        self._view[at] = kind
        way, base, reply_base, pending, reply_pending, note = ENDING.unpack_from(self._view, at)
        self.ways.count(way, original - base, reply - reply_base, kind == FINISHED)
        if pending or reply_pending or note:
            self.withdraw(number, 0)
            self.withdraw(number, 1)
            self.release(number)
        else:
            self._free.append(number)

    def remember(
        self,
        kind: int,
        id: int,
        opened: float,
        way: Way,
        files: tuple[int, int],
        note: bytes,
    ) -> None:
        """Leave a flow of datagrams behind, if there is room; see ``write``."""
        number = self.begin()
        if number is None:
            return
        known = self.ways.number_of(way)
        if known is not None and self.write(number, kind, id, opened, known, files, note=note):
            self._remembered[id] = number
        else:
            self.release(number)

    def lend(self, id: int, opened: float, way: Way, files: tuple[int, int]) -> int | None:
        """Know that a stream is another worker's, and these descriptors of ours are for safety.

        Returns:
            The record, for ``end_loan``; None if there is no room.

        """
        known = self.ways.number_of(way)
        number = None if known is None else self.begin()
        if known is not None and number is not None:
            self.write(number, LEAVING, id, opened, known, files)
        return number

    def end_loan(self, number: int) -> None:
        """Know no more of it: the descriptors are closed, or a stream of ours has them again."""
        self.set_kind(number, FREE)
        self.release(number)

    def become(self, id: int, kind: int) -> None:
        """Have the record of a flow of datagrams mean something else."""
        number = self._remembered.get(id)
        if number is not None:
            self.set_kind(number, kind)

    def show(self, id: int, original: Direction, reply: Direction) -> None:
        """Know what a flow of datagrams has moved, for it has been shown; see ``shown``."""
        number = self._remembered.get(id)
        if number is not None:
            at = _at(number) + LEGS_AT
            SHOWN.pack_into(
                self._view, at, original.bytes, original.packets, reply.bytes, reply.packets
            )

    def shown(self, number: int) -> tuple[int, ...]:
        """Bytes and datagrams, of both directions, of a flow of datagrams."""
        return SHOWN.unpack_from(self._view, _at(number) + LEGS_AT)

    def forget(self, id: int) -> None:
        """Leave a flow of datagrams behind no more, if it was."""
        number = self._remembered.pop(id, None)
        if number is not None:
            self.set_kind(number, FREE)
            self.release(number)

    def set_kind(self, number: int, kind: int) -> None:
        """Have a record mean something else, or nothing."""
        self._view[_at(number)] = kind

    def release(self, number: int) -> None:
        """Use a record again, which is out of force."""
        at = _at(number)
        where, size = NOTE.unpack_from(self._view, at + NOTE_AT)
        if where >= DEPOSITS_AT:
            NOTE.pack_into(self._view, at + NOTE_AT, 0, 0)
            self._deposits.give_back(where, size)
        self._free.append(number)

    def deposit(
        self, number: int, leg: int, data: memoryview | bytes, *, urgent: bool = False
    ) -> memoryview | None:
        """Keep bytes of a direction until ``withdraw``; None if there is no room."""
        where = self._deposits.take(data)
        if not where:
            return None
        at = self._leg_at(number, leg)
        NUMBER.pack_into(self._view, at, where)
        SIZE.pack_into(self._view, at + SIZE_AT, len(data) | (URGENT if urgent else 0))
        return self._view[where : where + len(data)]

    def withdraw(self, number: int, leg: int) -> None:
        """Keep nothing of a direction any more."""
        at = self._leg_at(number, leg)
        where, size, _, _ = LEG.unpack_from(self._view, at)
        if where:
            SIZE.pack_into(self._view, at + SIZE_AT, 0)
            NUMBER.pack_into(self._view, at, 0)
            self._deposits.give_back(where, size & ~URGENT)

    def set_pipe(self, number: int, leg: int, ends: tuple[int, int] = (0, 0)) -> None:
        """Say which pipe a direction has; none by default."""
        PIPE.pack_into(self._view, self._leg_at(number, leg) + PIPE_AT, *ends)

    @property
    def next_id(self) -> int:
        """Beyond the id of every flow that was written here."""
        return int(NUMBER.unpack_from(self._view, NEXT_ID_AT)[0])

    @property
    def offset(self) -> float | None:
        """Unix time less monotonic time, as the worker sees it: what it told shall not waver."""
        return float(OFFSET.unpack_from(self._view, OFFSET_AT)[0]) or None

    @offset.setter
    def offset(self, offset: float) -> None:
        OFFSET.pack_into(self._view, OFFSET_AT, offset)

    @property
    def suspect(self) -> Suspect:
        """What may have killed the worker before this one."""
        return Suspect(*SUSPECT.unpack_from(self._view, SUSPECT_AT))

    @suspect.setter
    def suspect(self, suspect: Suspect) -> None:
        SUSPECT.pack_into(self._view, SUSPECT_AT, *suspect)

    def clear(self) -> None:
        """Have no record in force: its flows are in another will."""
        for record in self.records():
            self.set_kind(record.number, FREE)

    def say_over(self) -> None:
        """Say that the worker ends in order, and that nothing is left behind."""
        NUMBER.pack_into(self._view, OVER_AT, 1)

    @property
    def is_over(self) -> bool:
        """Whether the worker has ended in order."""
        return bool(NUMBER.unpack_from(self._view, OVER_AT)[0])

    @property
    def is_in_force(self) -> bool:
        """Whether any record of it is."""
        return any(True for _ in self.records())

    def records(self) -> Iterator[Record]:
        """Every record that is in force."""
        ways = self.ways.read()
        for number in range(RECORDS):
            at = _at(number)
            kind = self._view[at]
            if kind != FREE:
                yield self._read(number, kind, ways)
            elif not NUMBER.unpack_from(self._view, at + BODY_AT)[0]:  # no id: it was never used
                return

    def _write_note(self, at: int, note: bytes) -> int | None:
        """Write more about a flow; return where it is, or None if there is no room."""
        if len(note) > TEXT_SIZE:
            return self._deposits.take(note) or None
        self._view[at + TEXT_AT : at + TEXT_AT + len(note)] = note
        return at + TEXT_AT

    def _read(self, number: int, kind: int, ways: list[Way]) -> Record:
        at = _at(number)
        id, opened, way, *known, where, size = BODY.unpack_from(self._view, at + BODY_AT)
        client, endpoint, taken, added, *bases = known
        legs: tuple[LegRecord, ...] = ()
        if kind == STREAM:
            legs = (self._read_leg(number, 0), self._read_leg(number, 1))
        return Record(
            number,
            kind,
            id,
            opened,
            ways[way],
            (client, endpoint),
            (taken, added),
            (bases[0], bases[1]),
            legs,
            bytes(self._view[where : where + size]),
        )

    def _read_leg(self, number: int, leg: int) -> LegRecord:
        where, size, out, into = LEG.unpack_from(self._view, self._leg_at(number, leg))
        is_urgent, size = bool(size & URGENT), size & ~URGENT
        pipe = (out, into) if out else None
        return LegRecord(self._view[where : where + size], is_urgent, pipe)

    def _leg_at(self, number: int, leg: int) -> int:
        return _at(number) + LEGS_AT + leg * LEG.size


def _at(number: int) -> int:
    """Where a record is."""
    return RECORDS_AT + number * RECORD_SIZE
