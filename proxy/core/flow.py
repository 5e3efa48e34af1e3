"""The flow: one forwarded conversation, its two socket pairs, its counters, its end.

A flow is a book, not an actor: the engine moves the bytes and writes here what it moved. The
states are those people know from ``ss`` and ``conntrack``, UDP included::

    TCP   connecting -> established -> client_closed | endpoint_closed, or closing
    UDP   unreplied  -> assured

A flow ends exactly once, with one reason; the first cause wins. An ended flow keeps the state it
died in, because that tells something, and is never changed again.

Times are monotonic seconds; sizes are bytes of payload.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.core.address import Address, Transport
    from proxy.core.counters import ListenerCounters
    from proxy.core.endpoint import Endpoint
    from proxy.core.flow_state import FlowState
    from proxy.core.identity import Identity
    from proxy.core.responders import Responders
    from proxy.core.sample import Insight
    from proxy.core.sources import SourceKey
    from proxy.core.unix import Credentials


class State(StrEnum):
    """Where a flow is in its life."""

    CONNECTING = "connecting"
    ESTABLISHED = "established"
    CLIENT_CLOSED = "client_closed"  # the client sent FIN; the reply direction lives on
    ENDPOINT_CLOSED = "endpoint_closed"
    CLOSING = "closing"  # one side was reset; what it sent before goes out to the other
    UNREPLIED = "unreplied"
    ASSURED = "assured"


class CloseReason(StrEnum):
    """Why a flow ended: the same word in log, table, event, record and metric label."""

    FINISHED = "finished"
    CLIENT_RESET = "client_reset"
    ENDPOINT_RESET = "endpoint_reset"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    UNREACHABLE = "unreachable"
    NO_ENDPOINT = "no_endpoint"
    NO_SOURCE = "no_source"  # no address or port of ours, or of the client's, could be left from
    IDLE_TIMEOUT = "idle_timeout"
    HALF_CLOSED_TIMEOUT = "half_closed_timeout"
    MAX_DURATION = "max_duration"
    BYTE_BUDGET = "byte_budget"
    EVICTED = "evicted"
    KILLED = "killed"
    DRAINED = "drained"
    ENDPOINT_DOWN = "endpoint_down"
    INTERNAL = "internal"  # a fault of ours; must stay zero


class Refusal(StrEnum):
    """Why a flow was not admitted."""

    ACCESS = "access"
    DRAINING = "draining"
    TABLE_FULL = "table_full"
    LISTENER_FLOWS = "listener_flows"
    LISTENER_RATE = "listener_rate"
    SOURCE_FLOWS = "source_flows"
    SOURCE_RATE = "source_rate"
    ORDERED_FLOWS = "ordered_flows"  # an operator's order; see ``live_limit``
    BAD_HEADER = "bad_header"
    FILE_DESCRIPTORS = "file_descriptors"
    LOOP = "loop"
    NO_SOURCE = "no_source"  # its answers could not leave from where it was sent to
    BROADCAST = "broadcast"  # sent to a broadcast or multicast address that is not served


class Drop(StrEnum):
    """Why a datagram did not get where it was to go."""

    TRUNCATED = "truncated"  # longer than our buffer; never forwarded in part
    TOO_BIG = "too_big"  # longer than the path, or IP, can carry: EMSGSIZE, or ICMP said so
    REFUSED = "refused"  # ICMP port unreachable: nobody listens there
    HOST_UNREACHABLE = "host_unreachable"
    NET_UNREACHABLE = "net_unreachable"
    PROHIBITED = "prohibited"  # a firewall, here or on the way
    TTL_EXCEEDED = "ttl_exceeded"  # a loop of routes, or a path that is too long
    UNNAMED = "unnamed"  # the client's Unix socket has no name, so nobody can answer it
    OTHER = "other"  # any other error of ICMP or of our socket
    BUFFER_FULL = "buffer_full"  # our socket's send buffer; nothing is queued beyond it
    LIMITED = "limited"  # over a limit of its flow, source or listener
    KERNEL = "kernel"  # lost before we could read it: SO_RXQ_OVFL


class CloseSide(StrEnum):
    """Who moved first when a flow ended."""

    CLIENT = "client"
    ENDPOINT = "endpoint"
    PROXY = "proxy"


class CloseKind(StrEnum):
    """By what a flow ended: what its reasons have in common."""

    FIN = "fin"  # in order: both sides said that they were done, or all answers came
    RST = "rst"  # one side cut it
    TIMEOUT = "timeout"  # a clock of ours
    LIMIT = "limit"  # it was too long, too large, or one too many
    ORDER = "order"  # somebody wanted it
    FAILURE = "failure"  # no way there, or a fault


KINDS: Final[dict[CloseReason, CloseKind]] = {
    CloseReason.FINISHED: CloseKind.FIN,
    CloseReason.CLIENT_RESET: CloseKind.RST,
    CloseReason.ENDPOINT_RESET: CloseKind.RST,
    CloseReason.CONNECT_REFUSED: CloseKind.RST,
    CloseReason.CONNECT_TIMEOUT: CloseKind.TIMEOUT,
    CloseReason.UNREACHABLE: CloseKind.FAILURE,
    CloseReason.NO_ENDPOINT: CloseKind.FAILURE,
    CloseReason.NO_SOURCE: CloseKind.FAILURE,
    CloseReason.IDLE_TIMEOUT: CloseKind.TIMEOUT,
    CloseReason.HALF_CLOSED_TIMEOUT: CloseKind.TIMEOUT,
    CloseReason.MAX_DURATION: CloseKind.LIMIT,
    CloseReason.BYTE_BUDGET: CloseKind.LIMIT,
    CloseReason.EVICTED: CloseKind.LIMIT,
    CloseReason.KILLED: CloseKind.ORDER,
    CloseReason.DRAINED: CloseKind.ORDER,
    CloseReason.ENDPOINT_DOWN: CloseKind.FAILURE,
    CloseReason.INTERNAL: CloseKind.FAILURE,
}

FIRST_STATES: Final = frozenset({State.CONNECTING, State.UNREPLIED})

# What may follow what. A state that is missing here is the last one of its life.
TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.CONNECTING: frozenset({State.ESTABLISHED}),
    State.ESTABLISHED: frozenset({State.CLIENT_CLOSED, State.ENDPOINT_CLOSED, State.CLOSING}),
    State.CLIENT_CLOSED: frozenset({State.CLOSING}),
    State.ENDPOINT_CLOSED: frozenset({State.CLOSING}),
    State.UNREPLIED: frozenset({State.ASSURED}),
}


class Direction:
    """One direction of a flow: what was received from the leg it begins at.

    The engine's legs are directions too: they add the socket, and count right here.
    """

    __slots__ = ("bytes", "packets")

    def __init__(self) -> None:
        self.bytes = 0
        self.packets = 0  # datagrams; stays 0 for streams, whose packets the kernel hides


class Flow:
    """One forwarded conversation.

    The engine writes ``active`` and the directions' counters itself, on its hot path; everything
    else changes through ``enter`` and ``end``, so that the listener's counters stay true.

    Args:
        id: unique in the life of the process.
        counters: the counters of the listener that admitted it.
        client_remote: the client.
        client_local: the address of ours that the client hit.
        original: the direction from client to endpoint.
        reply: the direction from endpoint to client.
        state: ``connecting`` for TCP, ``unreplied`` for UDP.
        now: monotonic seconds.
        source_key: of the source that its client belongs to, where the listener's gate wants it.

    """

    __slots__ = (
        "active",
        "client_local",
        "client_remote",
        "close_reason",
        "close_side",
        "closed",
        "counters",
        "endpoint",
        "endpoint_local",
        "endpoint_remote",
        "id",
        "opened",
        "original",
        "reply",
        "source",
        "state",
    )

    def __init__(
        self,
        id: int,
        counters: ListenerCounters,
        client_remote: Address,
        client_local: Address,
        original: Direction,
        reply: Direction,
        state: State,
        now: float,
        source_key: SourceKey = "",
    ) -> None:
        assert state in FIRST_STATES, state
        self.id = id
        self.counters = counters
        self.client_remote = client_remote
        self.client_local = client_local
        self.endpoint: Endpoint | None = None
        self.endpoint_local: Address | None = None
        self.endpoint_remote: Address | None = None
        self.state = state
        self.opened = now
        self.active = now
        self.closed = 0.0
        self.original = original
        self.reply = reply
        self.close_reason: CloseReason | None = None
        self.close_side: CloseSide | None = None
        self.source = counters.gate.enter(source_key, now)
        counters.opened += 1
        counters.live[state] += 1

    @property
    def bytes(self) -> int:
        """Payload of both directions together."""
        return self.original.bytes + self.reply.bytes

    @property
    def responders(self) -> Responders | None:
        """Who answered, where the endpoint is a broadcast or multicast address."""
        return None

    @property
    def identity(self) -> Identity | None:
        """What is known of the client beyond its address."""
        return None

    @property
    def half_closed(self) -> float | None:
        """When the first side ended its direction, where there are two to end."""
        return None

    @property
    def unsent(self) -> tuple[int, int] | None:
        """Bytes received and thrown away when it ended, each way, where that is known."""
        return None

    @property
    def insight(self) -> Insight | None:
        """What held it up, and what the kernel told of it, where anybody looked."""
        return None

    @property
    def credentials(self) -> Credentials | None:
        """The client's process, where the kernel tells it: of a Unix socket."""
        return None

    @property
    def endpoint_credentials(self) -> Credentials | None:
        """The process that listens at the endpoint, where the kernel tells it."""
        return None

    @property
    def is_plain(self) -> bool:
        """Whether all these but the insight are known to say nothing, of a flow of streams.

        That nothing was unsent is nothing to say either: it is the rule.
        """
        return False

    @property
    def transport(self) -> Transport:
        """The transport of its listener."""
        return self.counters.transport

    def enter(self, state: State) -> None:
        """Go to the next state of its life."""
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        live = self.counters.live
        live[self.state] -= 1
        live[state] += 1
        self.state = state

    def end(self, reason: CloseReason, side: CloseSide, now: float) -> bool:
        """End the flow, unless it has ended already: the first cause wins.

        Returns:
            Whether this call was the one that ended it.

        """
        if self.close_reason is not None:
            return False
        self.close_reason = reason
        self.close_side = side
        self.closed = now
        self.counters.flow_closed(self, reason)
        self.counters.gate.leave(self.source, now)
        return True

    def arrive(self, state: FlowState) -> None:
        """Be a flow that lived in another process until now; nothing is counted for it again."""
        self.counters.flow_arrived(self.state, state.state)
        self.id = state.id
        self.state = state.state
        self.opened = state.opened
        self.active = state.active
        for direction, leg in ((self.original, state.original), (self.reply, state.reply)):
            direction.bytes = leg.received
            direction.packets = leg.packets

    def depart(self, now: float) -> None:
        """Live on in another process; for who still holds this object it has ended, uncounted."""
        self.close_reason = CloseReason.DRAINED
        self.closed = now
        self.counters.flow_departed(self.state)
        self.counters.gate.leave(self.source, now)
