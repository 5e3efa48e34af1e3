"""What is in flight between two sockets, against a model that knows every byte.

The model does what a worker does, one step after the other, and is killed after any of them. Its
memory is three stores of real bytes; what is found there must be what was read and not yet sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.crossing import (
    Crossing,
    Keeping,
    Reading,
    Store,
    TcpState,
    Urgent,
    find_crossing,
)

BUFFER = 8
"""Bytes of the model's buffer: small, so that every case comes up."""


class KilledError(Exception):
    """The worker is no more."""


@dataclass
class Model:
    """A direction, as a worker moves it.

    Attributes:
        steps: left until it is killed.
        sent: what the peer of the source has sent; urgent bytes are beyond 255.
        got: what the peer of the target was sent.

    """

    random: Random
    steps: int
    taken: int
    added: int
    sent: list[int] = field(default_factory=list)
    read: int = 0
    got: list[int] = field(default_factory=list)
    is_taken: bool = False
    buffer: list[int] = field(default_factory=lambda: [-1] * BUFFER)
    before: int | None = None
    pending: list[int] = field(default_factory=list)
    pending_size: int = 0
    is_urgent: bool = False
    pipe: list[int] | None = None
    peer_ended: bool = False
    we_ended: bool = False

    def step(self) -> None:
        """Live on, or be killed here."""
        self.steps -= 1
        if self.steps < 0:
            raise KilledError

    @property
    def total(self) -> int:
        return self.read + self.is_taken

    def turn(self) -> None:
        """Do one thing that a worker does with a direction."""
        if self.random.random() < 0.3:
            self.before = None  # another flow has the buffer
            self.buffer = [-2] * BUFFER
        if self.is_at_mark():
            self.pipe = None  # which can carry no urgent byte
            self.pass_urgent()
        elif self.pipe is not None:
            self.splice()
        else:
            self.pull()

    def is_at_mark(self) -> bool:
        return not self.is_taken and self.read < len(self.sent) and self.sent[self.read] > 255

    def receive(self, most: int) -> list[int]:
        """Read from the socket, no further than to an urgent byte; skip one that was taken."""
        if self.is_taken and self.read + 1 < len(self.sent):
            self.is_taken = False
            self.read += 1
        if self.is_taken:
            return []
        bytes_read: list[int] = []
        while len(bytes_read) < most and self.read < len(self.sent):
            if self.sent[self.read] > 255:
                break
            bytes_read.append(self.sent[self.read])
            self.read += 1
        return bytes_read

    def pull(self) -> None:
        self.step()
        self.before = self.total
        self.step()
        data = self.receive(self.random.randint(1, BUFFER))
        if not data:
            self.end()
            return
        self.buffer[: len(data)] = data
        self.step()
        count = self.random.randint(0, len(data))
        self.got += data[:count]
        self.step()
        if count < len(data):
            self.hold(data[count:], is_urgent=False)
            self.flush()
        elif self.random.random() < 0.3:
            self.pipe = []

    def hold(self, rest: list[int], *, is_urgent: bool) -> None:
        self.pending = rest
        self.step()
        self.is_urgent, self.pending_size = is_urgent, len(rest)
        self.step()
        self.before = None  # others use the buffer while this one waits
        self.buffer = [-3] * BUFFER

    def flush(self) -> None:
        left = self.pending
        while left:
            count = self.random.randint(0, len(left))
            self.got += left[:count]
            left = left[count:]
            self.step()
        self.pending_size = 0
        self.is_urgent = False
        self.step()

    def pass_urgent(self) -> None:
        byte = self.sent[self.read]
        self.step()
        if self.random.random() < 0.5:
            self.got.append(byte)
            self.step()
            self.is_taken = True
            self.step()
        else:
            self.hold([byte], is_urgent=True)
            self.is_taken = True
            self.step()
            self.flush()

    def splice(self) -> None:
        pipe = self.pipe
        assert pipe is not None
        pipe += self.receive(BUFFER)
        self.step()
        if not pipe:
            self.pipe = None
            return
        while pipe:
            count = self.random.randint(0, len(pipe))
            self.got += pipe[:count]
            del pipe[:count]
            self.step()

    def end(self) -> None:
        if self.peer_ended and self.total == len(self.sent):
            self.step()
            self.we_ended = True
            self.step()

    def readings(self) -> tuple[Reading, Reading]:
        """What the kernel would tell."""
        state = TcpState.CLOSE_WAIT if self.peer_ended else TcpState.ESTABLISHED
        unread = len(self.sent) - self.read
        urgent = Urgent.TAKEN if self.is_taken else Urgent.NONE
        if self.is_at_mark():
            urgent = Urgent.NEXT
        received = self.taken + len(self.sent) + self.peer_ended
        source = Reading(state, received, unread, 0, 0, False, urgent)
        written = self.added + len(self.got) + self.we_ended + 1
        unacked = self.random.randint(0, written - 1)
        ours = TcpState.FIN_WAIT1 if self.we_ended else TcpState.ESTABLISHED
        return source, Reading(ours, 0, 0, written - unacked, unacked, True)

    def keeping(self) -> Keeping:
        """What it has said in shared memory."""
        piped = None if self.pipe is None else len(self.pipe)
        return Keeping(
            self.taken, self.added, self.before, self.pending_size, self.is_urgent, piped
        )

    def in_flight(self, crossing: Crossing) -> list[int]:
        """The bytes that a crossing tells to be in flight."""
        stores = {Store.PENDING: self.pending, Store.BUFFER: self.buffer, Store.PIPE: self.pipe}
        store = stores.get(crossing.store) or []
        return store[crossing.at : crossing.at + crossing.size]


@given(st.randoms(use_true_random=False), st.integers(0, 200), st.integers(0, 9), st.integers(0, 9))
def test_every_byte_is_found_whenever_the_worker_is_killed(
    random: Random, steps: int, taken: int, added: int
) -> None:
    model = Model(random, steps, taken, added)
    try:
        while True:
            if not model.peer_ended and random.random() < 0.7:
                size = random.randint(0, 2 * BUFFER)
                model.sent += [random.randrange(256) for _ in range(size)]
                if random.random() < 0.2:
                    model.sent.append(256 + random.randrange(256))
                model.peer_ended = random.random() < 0.05
            model.turn()
            model.steps -= 1
    except KilledError:
        pass
    crossing = find_crossing(*model.readings(), model.keeping())
    assert crossing is not None, (model, model.readings())
    assert crossing.ended is model.we_ended
    assert crossing.bytes == model.total + crossing.is_again
    found = model.in_flight(crossing)
    assert len(found) == crossing.size
    assert model.got + found == model.sent[: crossing.bytes]
    assert crossing.is_urgent == any(byte > 255 for byte in found)


def reading(state: TcpState = TcpState.ESTABLISHED, consumed: int = 0, written: int = 0) -> Reading:
    """Of an accepted socket, from which so much was read, and to which so much was written."""
    ended = Reading(state, 0, 0, 0, 0, False)
    return ended._replace(received=consumed + ended.peer_ended, acked=written + ended.we_ended)


NOBODY = Keeping()


def test_what_does_not_come_out_is_not_proven() -> None:
    ten = reading(consumed=10)
    assert find_crossing(ten, reading(written=10), NOBODY) == Crossing(10)
    assert find_crossing(ten, reading(written=11), NOBODY) is None  # more than there was
    assert find_crossing(ten, reading(written=8), NOBODY) is None  # and nobody says where
    assert find_crossing(ten, reading(written=8), Keeping(pending=1)) is None  # not enough
    assert find_crossing(ten, reading(written=8), Keeping(before=9)) is None
    assert find_crossing(ten, reading(written=8), Keeping(piped=3)) is None
    assert find_crossing(ten, reading(written=8), Keeping(piped=0, pending=2)) is None
    assert find_crossing(ten, reading(written=10), Keeping(piped=2)) is None
    assert find_crossing(ten, reading(written=0), Keeping(taken=11)) is None


def test_a_socket_whose_counters_mean_something_else_proves_nothing() -> None:
    for state in (TcpState.SYN_RECV, TcpState.TIME_WAIT, TcpState.LISTEN, TcpState.SYN_SENT):
        assert find_crossing(reading(state), reading(), NOBODY) is None
        assert find_crossing(reading(), reading(state), NOBODY) is None


def test_a_direction_has_ended_only_when_all_of_it_was_passed_on() -> None:
    ended = reading(TcpState.CLOSE_WAIT, 5)
    over = reading(TcpState.FIN_WAIT2, written=5)
    assert find_crossing(ended, over, NOBODY) == Crossing(5, ended=True)
    assert find_crossing(ended, over._replace(acked=5), Keeping(pending=1)) is None
    assert find_crossing(ended._replace(received=8, unread=2), over, NOBODY) is None
    assert find_crossing(reading(consumed=5), over, NOBODY) is None  # FIN, and no cause for it
