"""What was between the two sockets of a flow when the process that relayed it was killed.

The kernel counts what it has received, acknowledged and kept of each socket. So it can be told
afterwards how many bytes were read from one, and how many were written to the other; the difference
is *in flight*: read, and not yet written. It never lies anywhere else than where the worker kept
it: in what is *pending*, in the *buffer* that all flows share, or in a *pipe*; and it is the last
of what lies there, because bytes are written in the order they were read.

How many a socket gave and took::

    consumed = tcpi_bytes_received - SIOCINQ - FIN received + urgent byte taken at its mark
    written  = tcpi_bytes_acked + SIOCOUTQ - SYN, if we connected - FIN sent

SIOCINQ must be asked with SO_OOBINLINE set where urgent data is about, or it ends at the mark. Our
sockets have it set; on one that has not, an urgent byte that was taken stays in the sequence until
the next receive skips it. The SYN of an
accepted socket is not among the acknowledged bytes, that of a connected one is; what TCP Fast Open
carries counts like all payload.

Here only numbers are compared. A direction that does not come out exactly is not *proven*, and its
flow is to be reset: never is a byte guessed.

Source: tcp_get_info, tcp_inq, tcp_ioctl, tcp_rcv_nxt_update, tcp_snd_una_update and tcp_recv_urg in
net/ipv4/tcp.c, tcp_input.c and include/net/tcp.h; each formula is tested against the kernel.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final, NamedTuple

from proxy.core.flow import State


class TcpState(IntEnum):
    """tcpi_state (include/net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


WE_ENDED: Final = frozenset(
    {
        TcpState.FIN_WAIT1,
        TcpState.FIN_WAIT2,
        TcpState.CLOSING,
        TcpState.LAST_ACK,
        TcpState.CLOSE,
    }
)
"""States of a socket on which a FIN of ours was queued."""

PEER_ENDED: Final = frozenset(
    {TcpState.CLOSE_WAIT, TcpState.CLOSING, TcpState.LAST_ACK, TcpState.CLOSE}
)
"""States of a socket that has received the FIN of its peer."""

KNOWN: Final = WE_ENDED | PEER_ENDED | {TcpState.ESTABLISHED}
"""States in which the counters mean what is said here."""


STATES: Final = {
    (False, False): State.ESTABLISHED,
    (True, False): State.CLIENT_CLOSED,
    (False, True): State.ENDPOINT_CLOSED,
    (True, True): State.CLOSING,
}
"""Of a flow, by which directions have ended, the original first; with both it has finished."""


class Urgent(Enum):
    """What is urgent at the place where the next byte is read."""

    NONE = "none"
    NEXT = "next"  # the next byte is urgent, and has not been taken
    TAKEN = "taken"  # it has been taken, and is skipped by the next receive


class Reading(NamedTuple):
    """What the kernel tells of one socket; failed ones tell nothing that could be proven.

    Attributes:
        state: of its connection.
        received: tcpi_bytes_received.
        unread: SIOCINQ, urgent data included.
        acked: tcpi_bytes_acked.
        unacked: SIOCOUTQ.
        is_ours: whether we connected it, and its SYN counts.
        urgent: what is urgent where it is read.

    """

    state: TcpState
    received: int
    unread: int
    acked: int
    unacked: int
    is_ours: bool
    urgent: Urgent = Urgent.NONE

    @property
    def is_known(self) -> bool:
        """Whether the counters mean what they should."""
        return self.state in KNOWN

    @property
    def peer_ended(self) -> bool:
        """Whether the peer has sent all it will."""
        return self.state in PEER_ENDED

    @property
    def we_ended(self) -> bool:
        """Whether we have written all we will."""
        return self.state in WE_ENDED

    @property
    def consumed(self) -> int:
        """Bytes read from it."""
        taken = self.urgent is Urgent.TAKEN
        return self.received - self.unread - self.peer_ended + taken

    @property
    def written(self) -> int:
        """Bytes written to it."""
        return self.acked + self.unacked - self.is_ours - self.we_ended

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was ever read from it, nor written to it, nor ended by us."""
        return self.is_known and not (self.we_ended or self.consumed or self.written)


class Keeping(NamedTuple):
    """What the worker has said of one direction, in memory that outlives it.

    Attributes:
        taken: bytes read before those of the flow: a header of the client's.
        added: bytes written before those of the flow: a header to the endpoint.
        before: bytes of the direction before the receive that filled the buffer last; None if that
            was not of this direction.
        pending: bytes kept apart, since the other side did not take them.
        is_urgent: whether that is a byte of urgent data.
        piped: bytes in its pipe; None if it has none.

    """

    taken: int = 0
    added: int = 0
    before: int | None = None
    pending: int = 0
    is_urgent: bool = False
    piped: int | None = None


class Store(Enum):
    """Where bytes in flight are."""

    NOWHERE = "nowhere"
    PENDING = "pending"
    BUFFER = "buffer"
    PIPE = "pipe"


class Crossing(NamedTuple):
    """A direction that is proven whole.

    Attributes:
        bytes: received, of the flow's.
        store: where those are that were not yet sent.
        at: where they begin in it.
        size: how many.
        is_urgent: whether that is one byte of urgent data.
        ended: whether the end of it has been passed on.
        is_again: whether an urgent byte that is still to be taken has been sent already.

    """

    bytes: int
    store: Store = Store.NOWHERE
    at: int = 0
    size: int = 0
    is_urgent: bool = False
    ended: bool = False
    is_again: bool = False


def find_crossing(source: Reading, target: Reading, kept: Keeping) -> Crossing | None:
    """Find what is in flight from one socket to the other; None if that is not proven."""
    if not (source.is_known and target.is_known):
        return None
    count = source.consumed - kept.taken
    size = count - (target.written - kept.added)
    if count < 0 or (size and kept.piped == 0) or (not size and kept.piped):
        return None
    if target.we_ended:
        left = source.unread - (source.urgent is Urgent.TAKEN)  # which is skipped later, or never
        return Crossing(count, ended=True) if source.peer_ended and not (size or left) else None
    if not size:
        return Crossing(count)
    if size == -1 and source.urgent is Urgent.NEXT and kept.piped is None:
        return Crossing(count + 1, is_again=True)
    return _find_bytes(count, size, kept) if size > 0 else None


def _find_bytes(count: int, size: int, kept: Keeping) -> Crossing | None:
    """Find so many bytes of a direction that has received ``count``."""
    if kept.piped is not None:
        return Crossing(count, Store.PIPE, 0, size) if kept.piped == size else None
    if kept.pending:
        at = kept.pending - size
        return Crossing(count, Store.PENDING, at, size, kept.is_urgent) if at >= 0 else None
    if kept.before is None:
        return None
    at = count - kept.before - size
    return Crossing(count, Store.BUFFER, at, size) if at >= 0 else None
