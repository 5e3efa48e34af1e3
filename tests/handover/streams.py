"""One end of a TCP flow: it speaks as its role says, and looks at every byte that it gets.

The client begins with a header that tells the endpoint which flow of which kind this is; places in
the stream are counted from after it.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from math import inf
from random import Random
from select import EPOLLIN, EPOLLOUT
from typing import Final, Protocol

from tests.handover.kinds import MESSAGE, SIP_BUFFER, Role, StreamKind
from tests.handover.loop import Loop
from tests.handover.sequence import Sequence
from tests.handover.told import ORIGINAL, REPLY, Account, Fault, text

HEADER: Final = struct.Struct("!4sI")
MAGIC: Final = b"flow"
PIECE: Final = 64 * 1024
SENDS_PER_TURN: Final = 4
"""Until the other flows get their turn."""

SMALL: Final = 4000
"""Bytes of a message that are there at once, however slowly things go."""

SIOCATMARK: Final = 0x8905  # asm-generic/sockios.h


class Company(Protocol):
    """Whom an end belongs to.

    Attributes:
        loop: that calls it.
        seed: of all chance.
        stuck: seconds that a flow may stand still.
        bracing: ends of flows may come from now on.
        stopping: flows shall come to their end.
        waits: seconds that each answer to something small has taken.

    """

    loop: Loop
    seed: int
    stuck: float
    bracing: bool
    stopping: bool
    waits: list[float]

    def fault(self, fault: Fault) -> None: ...

    def finished(self, end: End) -> None: ...


class End:
    """One end of one flow. Owns the socket.

    Attributes:
        sent, received: bytes, without the header.
        pause: the longest wait for something that had to come.

    """

    def __init__(
        self,
        company: Company,
        connected: socket.socket,
        group: str,
        of: StreamKind,
        number: int,
        side: str,
    ) -> None:
        self.company = company
        self.group = group
        self.number = number
        self.side = side
        self.sent = self.received = 0
        self.pause = 0.0
        self.done = self.broken = False
        self.address = text(connected.getsockname())
        is_client = side == "client"
        self._role, self._other = (
            (of.client, of.endpoint) if is_client else (of.endpoint, of.client)
        )
        out, into = (ORIGINAL, REPLY) if is_client else (REPLY, ORIGINAL)
        self._out, self._into = (Sequence(company.seed, f"{number} {way}") for way in (out, into))
        self._incoming = into
        self._urgent, self._fresh = of.urgent, of.fresh
        self._chance = Random(f"{company.seed} {number} {side}")
        self._socket = connected
        self._goal: float = 0
        self._asked_at = 0.0
        self._writing = False
        self._fin_sent = self._fin_received = False
        self._waiting_since = company.loop.now
        if of.urgent:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    # How it begins.

    def start(self) -> None:
        self._socket.setblocking(False)
        loop = self.company.loop
        loop.watch(self._socket.fileno(), self._ready, 0 if self._role.sip else EPOLLIN)
        if self._role.sip:
            loop.later(self._role.sip_pause, self._sip)
        match self._role.speaks:
            case "ask" | "pour":
                loop.later(self._think(), self._speak)
            case "flood":
                self._goal = inf
            case "once":
                self._goal = self._role.least
        self._send()

    def stop(self) -> None:
        """Come to an end: say no more than was begun, and read all there is."""
        if self._role.speaks in ("flood", "pour"):
            self._goal = self.sent
        if self._role.sip and not self._fin_received:
            self._watch()
        self._end_if_all_said()

    # How it speaks.

    def _think(self) -> float:
        return self._role.pause * self._chance.uniform(0.5, 1.5)

    def _speak(self) -> None:
        if self.broken or self.done or self.company.stopping:
            self._end_if_all_said()
            return
        self._goal += self._chance.randint(self._role.least, self._role.most)
        self._waiting_since = self._asked_at = self.company.loop.now
        if self._role.speaks == "pour":
            self.company.loop.later(self._think(), self._speak)
        self._send()

    def _send(self) -> None:
        """Send what is to be said now, as far as it is taken."""
        blocked = False
        try:
            for _ in range(SENDS_PER_TURN):
                if self.sent >= self._goal:
                    break
                self._send_piece()
        except BlockingIOError:
            blocked = True
        except OSError as error:
            self._break(f"cannot send: {error.strerror}", self._outgoing, self.sent)
            return
        self._want_to_write(blocked or self.sent < self._goal)
        if not self._writing:
            self._end_if_all_said()

    def _send_piece(self) -> None:
        size = int(min(self._goal - self.sent, PIECE))
        flags = 0
        if self._urgent:
            ahead = (MESSAGE // 2 - self.sent) % MESSAGE
            size, flags = (1, socket.MSG_OOB) if ahead == 0 else (min(size, ahead), 0)
        self.sent += self._socket.send(self._out.piece(self.sent, size), flags)

    @property
    def _outgoing(self) -> str:
        return REPLY if self._incoming == ORIGINAL else ORIGINAL

    def _want_to_write(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            self._watch()

    def _end_if_all_said(self) -> None:
        if self._fin_sent or self.broken or self.sent < self._goal or not self._may_end():
            return
        self._fin_sent = True
        self._socket.shutdown(socket.SHUT_WR)
        self._close_if_all_done()

    def _may_end(self) -> bool:
        match self._role.speaks:
            case "once":
                return True
            case "ask":
                ending = self.company.stopping or (self._fresh and self.sent > 0)
                return ending and self.received == self.sent
            case "answer" | "listen":
                return self._fin_received
        return self.company.stopping

    # How it listens.

    def _ready(self, mask: int) -> None:
        if mask & ~EPOLLOUT and (self._reads_at_once or not mask & EPOLLIN):
            self._receive(PIECE)
        if mask & EPOLLOUT and self._writing and not (self.broken or self.done):
            self._send()

    @property
    def _reads_at_once(self) -> bool:
        return not self._role.sip or self.company.stopping

    def _watch(self) -> None:
        reading = EPOLLIN if self._reads_at_once and not self._fin_received else 0
        self.company.loop.change(
            self._socket.fileno(), reading | (EPOLLOUT if self._writing else 0)
        )

    def _sip(self) -> None:
        if self.broken or self.done or self.company.stopping:
            return
        self._receive(self._role.sip)
        self.company.loop.later(self._role.sip_pause, self._sip)

    def _receive(self, most: int) -> None:
        at_mark = self._urgent and self._at_mark()
        try:
            data = self._socket.recv(most)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(f"ended by {error.strerror}", self._incoming, self.received)
            return
        if not data:
            self._take_end()
            return
        if (found := self._into.fault(self.received, data)) is not None:
            self._break(found[1], self._incoming, found[0])
            return
        if self._urgent and not self._marked_rightly(at_mark, len(data)):
            return
        self._came(len(data))

    def _came(self, size: int) -> None:
        loop = self.company.loop
        self.received += size
        self.pause = max(self.pause, loop.now - self._waiting_since)
        self._waiting_since = loop.now
        match self._role.speaks:
            case "answer":
                self._goal += size
                self._send()
            case "ask" if self.received == self._goal:
                if self._role.most <= SMALL:
                    self.company.waits.append(loop.now - self._asked_at)
                if self._fresh:
                    self._end_if_all_said()
                else:
                    loop.later(self._think(), self._speak)
            case "ask" if self.received > self._goal:
                self._break("more than was asked for", self._incoming, int(self._goal))

    def _at_mark(self) -> bool:
        (answer,) = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), SIOCATMARK, bytes(4)))
        return bool(answer)

    def _marked_rightly(self, at_mark: bool, size: int) -> bool:
        """Whether urgent data stood where it must, and nowhere else."""
        ahead = (MESSAGE // 2 - self.received) % MESSAGE
        if at_mark and ahead:
            self._break("urgent data at another place", self._incoming, self.received)
        elif (not at_mark and not ahead) or 0 < ahead < size:
            self._break("the mark of urgent data is gone", self._incoming, self.received + ahead)
        return not self.broken

    def _take_end(self) -> None:
        self._fin_received = True
        if (fault := self._early()) is not None:
            self._break(fault, self._incoming, self.received)
            return
        self._watch()
        self._end_if_all_said()
        self._close_if_all_done()

    def _early(self) -> str | None:
        """Why the other side cannot have ended yet."""
        if self._other.speaks == "once":
            if self.received != self._other.least:
                return f"FIN, but {self._other.least} bytes were to come"
            return None
        if self._role.speaks == "ask":
            return None if self._fin_sent else "FIN, before we have said that it is the end"
        if self._fresh and self.received == self.sent:
            return None
        return None if self.company.bracing else "FIN, in the middle of the flow"

    def _close_if_all_done(self) -> None:
        if self._fin_sent and self._fin_received and not self.done:
            self.done = True
            self._close()
            self.company.finished(self)

    # How it goes wrong.

    def look(self) -> None:
        """Find out whether it has stood still for too long."""
        waited = self.company.loop.now - self._waiting_since
        if self.broken or self.done or self._fin_received or not self._expects():
            self._waiting_since = self.company.loop.now
        elif waited > self.company.stuck:
            self._break(f"nothing came for {waited:.0f} s", self._incoming, self.received)

    def _expects(self) -> bool:
        """Whether something has to come now."""
        match self._role.speaks:
            case "ask":
                return self.received < self._goal
            case "answer" if self._other.speaks == "ask":
                return False  # who asks knows whether anything is on its way
        return self._other.speaks in ("pour", "flood", "once")

    def _break(self, what: str, direction: str, place: int) -> None:
        self.broken = True
        self._close()
        self.company.fault(Fault(self.side, self.group, self.number, direction, place, what))
        self.company.finished(self)

    def _close(self) -> None:
        self.company.loop.forget(self._socket.fileno())
        self._socket.close()

    def account(self) -> Account:
        return Account(
            group=self.group,
            address=self.address,
            sent=self.sent,
            received=self.received,
            pause=self.pause,
            done=self.done,
        )


def shrink(role: Role, connecting: socket.socket) -> None:
    """Have small buffers where a role sips; before connecting, for the window depends on it."""
    if role.sip:
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SIP_BUFFER)
    if role.speaks == "flood":
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SIP_BUFFER)
