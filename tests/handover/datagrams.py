"""Flows of datagrams: each has a number and content that follows from it.

A datagram that does not come is told as ``lost``: whether the kernel had no room for it, is for
others to find out, who see all sockets. Everything else, one too many, out of order, with other
content or from somewhere else, must never be.
"""

from __future__ import annotations

import socket
import struct
from random import Random
from select import EPOLLIN
from typing import Final, Protocol

from tests.handover.kinds import DatagramKind
from tests.handover.loop import Loop
from tests.handover.sequence import Sequence
from tests.handover.told import LOST, ORIGINAL, REPLY, Account, Fault, text

HEAD: Final = struct.Struct("!4sII")
MAGIC: Final = b"gram"
LARGEST: Final = 1200
MOST: Final = 65535
READS_PER_TURN: Final = 64
ROOM: Final = 4 << 20
"""Bytes of the receive buffer of an endpoint, which a thousand flows share."""

Address = tuple[str, int]


class Company(Protocol):
    """Whom a flow belongs to; see ``streams.Company``."""

    loop: Loop
    seed: int
    stuck: float
    stopping: bool
    waits: list[float]

    def fault(self, fault: Fault) -> None: ...


def datagram(sequence: Sequence, flow: int, number: int) -> bytes:
    """The datagram of a flow that has this number."""
    return HEAD.pack(MAGIC, flow, number) + sequence.piece(number * LARGEST, _size(flow, number))


def _size(flow: int, number: int) -> int:
    """Any size, and sometimes none at all."""
    return (flow * 7919 + number * 104_729) % LARGEST


class Receiver:
    """What one side has received of one flow.

    Attributes:
        received: datagrams.
        next: the number that must come now.

    """

    __slots__ = (
        "_company",
        "_direction",
        "_flow",
        "_group",
        "_sequence",
        "_side",
        "next",
        "received",
    )

    def __init__(self, company: Company, side: str, group: str, flow: int, direction: str) -> None:
        self.received = 0
        self.next = 0
        self._company = company
        self._side = side
        self._group = group
        self._flow = flow
        self._direction = direction
        self._sequence = Sequence(company.seed, f"{flow} {direction}")

    def take(self, data: bytes) -> int | None:
        """Look at a datagram; its number, if it is as it must be."""
        magic, flow, number = HEAD.unpack_from(data) if len(data) >= HEAD.size else (b"", 0, 0)
        if magic != MAGIC or flow != self._flow:
            self.fault(self.next, f"a datagram of another flow: {data[: HEAD.size].hex()}")
        elif number < self.next:
            self.fault(number, f"it came twice or too late: {self.next} was to come")
        elif data != datagram(self._sequence, flow, number):
            self.fault(number, "its content has changed")
        else:
            for missing in range(self.next, number):
                self.fault(missing, LOST)
            self.next = number + 1
            self.received += 1
            return number
        return None

    def miss(self, until: int) -> None:
        """Know that nothing came: all until this number are lost."""
        for missing in range(self.next, until):
            self.fault(missing, LOST)
        self.next = max(self.next, until)

    def fault(self, number: int, what: str) -> None:
        self._company.fault(
            Fault(self._side, self._group, self._flow, self._direction, number, what)
        )


class Talker:
    """A client of datagrams. Owns its socket, which is not connected: so it sees who answers."""

    def __init__(
        self,
        company: Company,
        group: str,
        of: DatagramKind,
        flow: int,
        source: str,
        target: Address,
    ) -> None:
        self.company = company
        self.group = group
        self.number = flow
        self.sent = 0
        self.pause = 0.0
        self.done = False
        self.answers = Receiver(company, "client", group, flow, REPLY)
        self._of = of
        self._chance = Random(f"{company.seed} {flow} client")
        self._out = Sequence(company.seed, f"{flow} {ORIGINAL}")
        self._target = target
        self._round = 0
        self._asked_at: float | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((source, 0))
        self._socket.setblocking(False)
        self.address = text(self._socket.getsockname())

    def start(self) -> None:
        self.company.loop.watch(self._socket.fileno(), self._ready, EPOLLIN)
        self.company.loop.later(self._chance.uniform(0, self._of.pause), self._speak)

    def _speak(self) -> None:
        if self.done or self.company.stopping:
            return
        self._round += 1
        self._asked_at = self.company.loop.now
        for _ in range(self._chance.randint(1, self._of.burst)):
            self._socket.sendto(datagram(self._out, self.number, self.sent), self._target)
            self.sent += 1
        if self._of.answered:
            asked = self._round
            self.company.loop.later(self.company.stuck, lambda: self._give_up(asked))
        else:
            self._next_round()

    def _next_round(self) -> None:
        self._asked_at = None
        pause = self._of.pause * self._chance.uniform(0.5, 1.5)
        self.company.loop.later(pause, self._speak)

    def _give_up(self, asked: int) -> None:
        """Go on without the answers that have not come."""
        if not self.done and self._round == asked and self._asked_at is not None:
            self.answers.miss(self.sent)
            self._answered()

    def _ready(self, mask: int) -> None:
        for _ in range(READS_PER_TURN):
            try:
                data, sender = self._socket.recvfrom(MOST)
            except BlockingIOError:
                return
            except OSError as error:
                self.answers.fault(self.answers.next, f"an error came: {error.strerror}")
                return
            self._take(data, sender)

    def _take(self, data: bytes, sender: Address) -> None:
        if sender != self._target:
            self.answers.fault(self.answers.next, f"it came from {text(sender)}")
        number = self.answers.take(data)
        if number is not None and self._asked_at is not None and number + 1 == self.sent:
            waited = self.company.loop.now - self._asked_at
            self.pause = max(self.pause, waited)
            self.company.waits.append(waited)
            self._answered()

    def _answered(self) -> None:
        """All answers of the round have come, or never will."""
        if self._of.fresh:
            self._asked_at = None
            self.company.loop.later(self.company.stuck / 10, self.close)  # one too many may come
            self.renew()
        else:
            self._next_round()

    def renew(self) -> None:
        """Begin the next flow, where each round is one; who makes talkers puts in how."""

    @property
    def waiting(self) -> bool:
        return self._asked_at is not None

    def close(self) -> None:
        if not self.done:
            self.done = True
            self.company.loop.forget(self._socket.fileno())
            self._socket.close()

    def account(self) -> Account:
        return Account(
            group=self.group,
            address=self.address,
            sent=self.sent,
            received=self.answers.received,
            pause=self.pause,
            done=True,
        )


class Responder:
    """An endpoint of datagrams, of all flows of one kind. Owns its socket."""

    def __init__(self, company: Company, group: str, of: DatagramKind, address: Address) -> None:
        self.company = company
        self.group = group
        self.of = of
        self.flows: dict[int, tuple[Address, Receiver]] = {}
        self.fresh: set[int] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        self._socket.bind(address)
        self._socket.setblocking(False)
        company.loop.watch(self._socket.fileno(), self._ready, EPOLLIN)

    def _ready(self, mask: int) -> None:
        for _ in range(READS_PER_TURN):
            try:
                data, sender = self._socket.recvfrom(MOST)
            except BlockingIOError:
                return
            self._take(data, sender)

    def _take(self, data: bytes, sender: Address) -> None:
        magic, flow, number = HEAD.unpack_from(data) if len(data) >= HEAD.size else (b"", 0, 0)
        if magic != MAGIC:
            self.company.fault(
                Fault(
                    "endpoint",
                    self.group,
                    0,
                    ORIGINAL,
                    0,
                    f"no datagram of ours: {data[:12].hex()}",
                )
            )
            return
        if self.of.fresh:
            receiver = Receiver(self.company, "endpoint", self.group, flow, ORIGINAL)
            if flow in self.fresh:
                receiver.fault(number, "it came twice")
            self.fresh.add(flow)
        else:
            receiver = self._receiver(flow, sender)
        if receiver.take(data) is not None and self.of.answered:
            reply = Sequence(self.company.seed, f"{flow} {REPLY}")
            self._socket.sendto(datagram(reply, flow, number), sender)

    def _receiver(self, flow: int, sender: Address) -> Receiver:
        """Who has received a flow so far; it must always come from the same address."""
        known = self.flows.get(flow)
        if known is None:
            known = sender, Receiver(self.company, "endpoint", self.group, flow, ORIGINAL)
            self.flows[flow] = known
        address, receiver = known
        if address != sender:
            receiver.fault(receiver.next, f"from {text(sender)} now, before from {text(address)}")
            self.flows[flow] = sender, receiver
        return receiver

    def accounts(self) -> dict[int, Account]:
        """Of each flow, as far as they are remembered."""
        return {
            flow: Account(
                group=self.group,
                address=text(address),
                sent=receiver.received if self.of.answered else 0,
                received=receiver.received,
                pause=0.0,
                done=True,
            )
            for flow, (address, receiver) in self.flows.items()
        }
