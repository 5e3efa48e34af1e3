"""Replies on their way to clients, gathered over a round and sent with one call per listener.

The endpoints' sockets receive straight into the batch, so a reply is copied by the kernel alone.
Order within a flow is the order of receipt. What the kernel does not take is dropped and counted,
never queued.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.engine.drops import drop_of
from proxy.engine.mmsg import BATCH, DatagramBatch

if TYPE_CHECKING:
    from proxy.engine.datagram import DatagramFlow
    from proxy.engine.pump import Pump


class ReplyBatch:
    """The replies of one round, all for one listener's socket; sent when another comes up."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._batch = DatagramBatch()
        self._data = self._batch.data
        self._flows: list[DatagramFlow] = []
        self._fd = -1

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

    def room(self, fd: int, now: float) -> memoryview:
        """Where to receive the next reply that shall go out through the socket ``fd``."""
        count = len(self._flows)
        if count and (count == BATCH or fd != self._fd):
            self.send(now)
            count = 0
        self._fd = fd
        return self._batch.data[count]

    def put(self, flow: DatagramFlow, size: int) -> None:
        """Take the reply of ``size`` bytes that has just been received into the room."""
        flows = self._flows
        if not flows:
            self._pump.after_round(self.send)
        self._batch.prepare(len(flows), size, flow.name, flow.control)
        flows.append(flow)

    def send(self, now: float) -> None:
        """Send all that is gathered."""
        flows = self._flows
        first, count = 0, len(flows)
        while first < count:
            try:
                first += self._batch.send(self._fd, first, count - first)
            except OSError as error:
                self._drop(first, error)
                first += 1
        flows.clear()

    def _drop(self, index: int, error: OSError) -> None:
        self._flows[index].reply_dropped(self._batch.prepared(index), drop_of(error))
