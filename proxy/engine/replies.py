"""Replies on their way to clients, gathered over a round and sent with one call per listener.

The endpoints' sockets receive straight into the batch, so a reply is copied by the kernel alone.
Order within a flow is the order of receipt. What the kernel does not take is dropped and counted,
never queued.

A reply may be a train of datagrams (see ``trains``): it goes out as one, with UDP_SEGMENT, and if
the kernel does not take it so, datagram by datagram.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.engine.drops import drop_of
from proxy.engine.mmsg import BATCH, DatagramBatch
from proxy.engine.runs import segment_control

if TYPE_CHECKING:
    from proxy.engine.datagram import DatagramFlow
    from proxy.engine.pump import Pump

MANY: Final = 16
"""Replies, or trains, of one flow a turn: a megabyte, as much as a stream may move."""

FEW_FLOWS: Final = 8
"""With more flows in a round each call is worth its while already."""

BUSY_ROUNDS: Final = 32
"""Rounds on end in which the same few flows have replies, until they are read in bulk."""

BUSY_ROUNDS_MAX: Final = 1 << 14
"""The same at most, where bulk was not found again and again: one question and one answer at a time
looks busy, and costs half as much again when it is read in bulk."""


class ReplyBatch:
    """The replies of one round, all for one listener's socket; sent when another comes up."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._batch = DatagramBatch()
        self._data = self._batch.data
        self._flows: list[DatagramFlow] = []
        self._trains: dict[int, int] = {}
        self._fd = -1
        self._busy = _BusyFlows()

    def receive(self, flow: DatagramFlow, now: float) -> int:
        """Receive one reply of a flow and take it along; return its bytes.

        Raises:
            OSError: what the flow's socket reports; EAGAIN too.

        """
        flows = self._flows
        count = len(flows)
        if count and (count == BATCH or flow.fd != self._fd):
            self.send(now)
            count = 0
        size = flow.socket.recv_into(self._data[count])
        if not count:
            self._fd = flow.fd
            self._pump.after_round(self.send)
        self._batch.prepare(count, size, flow.name, flow.control)
        flows.append(flow)
        return size

    def receive_many(self, flow: DatagramFlow, now: float) -> int:
        """Receive many replies of a flow, trains among them, and take them along.

        Returns:
            How many datagrams they are; the flow has counted them.

        Raises:
            OSError: as ``receive``.

        """
        flows, batch = self._flows, self._batch
        first = len(flows)
        if first and (first > BATCH - MANY or flow.fd != self._fd):
            self.send(now)
            first = 0
        count = batch.receive_more(flow.socket.fileno(), first, MANY)
        if count and not first:
            self._fd = flow.fd
            self._pump.after_round(self.send)
        datagrams = 0
        for index in range(first, first + count):
            size = batch.length(index)
            segment = batch.take_segment(index)
            packets = -(-size // segment) if segment else 1
            control = flow.control + segment_control(segment) if segment else flow.control
            batch.prepare(index, size, flow.name, control)
            if segment:
                self._trains[index] = segment
            flows.append(flow)
            flow.count_reply(size, packets)
            datagrams += packets
        return datagrams

    def room(self, fd: int, now: float) -> memoryview:
        """Where to receive the next reply that shall go out through the socket ``fd``."""
        count = len(self._flows)
        if count and (count == BATCH or fd != self._fd):
            self.send(now)
            count = 0
        self._fd = fd
        return self._data[count]

    def put(self, flow: DatagramFlow, size: int) -> None:
        """Take the reply of ``size`` bytes that has just been received into the room."""
        flows = self._flows
        if not flows:
            self._pump.after_round(self.send)
        self._batch.prepare(len(flows), size, flow.name, flow.control)
        flows.append(flow)

    def found_bulk(self, *, found: bool) -> None:
        """Know whether many waited for a flow that was read in bulk."""
        needed = BUSY_ROUNDS if found else min(2 * self._busy.needed, BUSY_ROUNDS_MAX)
        self._busy.needed = needed

    def send(self, now: float) -> None:
        """Send all that is gathered."""
        flows = self._flows
        first, count = 0, len(flows)
        while first < count:
            try:
                first += self._batch.send(self._fd, first, count - first)
            except OSError as error:
                self._send_apart(first, error)
                first += 1
        if count <= FEW_FLOWS:
            self._busy.look(flows, self._pump.rounds)
        self._trains.clear()
        flows.clear()

    def _send_apart(self, index: int, error: OSError) -> None:
        """Send the datagrams of a train one by one; drop what is none."""
        flow, size = self._flows[index], self._batch.prepared(index)
        segment = self._trains.get(index)
        if segment is None:
            flow.reply_dropped(size, drop_of(error))
            return
        for start in range(0, size, segment):
            length = min(segment, size - start)
            try:
                self._batch.send_part(self._fd, index, start, length, flow.control)
            except OSError as part_error:
                flow.reply_dropped(length, drop_of(part_error))


class _BusyFlows:
    """Finds the few flows that have replies in every round: more may wait for each than one.

    Attributes:
        needed: rounds on end; more after each time that there was only one, and few again when
            there were many.

    """

    def __init__(self) -> None:
        self._flows: list[DatagramFlow] = []
        self._round = 0
        self._streak = 0
        self.needed = BUSY_ROUNDS

    def look(self, flows: list[DatagramFlow], round: int) -> None:
        """Take note of who had replies in this round."""
        if round != self._round + 1 or flows != self._flows:
            self._flows = flows.copy()
            self._streak = 0
        self._round = round
        self._streak += 1
        if self._streak == self.needed:
            for flow in flows:
                flow.read_trains()
