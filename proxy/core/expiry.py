"""When a flow must end by itself, and why.

One decision, asked whenever a timer comes due: each state has one clock that runs from the last
activity, and the maximum duration runs beside it from the start. Activity is payload, and for TCP
also a change of state; keep-alive probes are not.

====================================  ==================  ======================
state                                 clock               reason
====================================  ==================  ======================
connecting (all attempts together)    connect             connect_timeout
established                           idle                idle_timeout
client_closed, endpoint_closed,       half_closed         half_closed_timeout
closing
unreplied                             unreplied           idle_timeout
assured                               idle                idle_timeout
====================================  ==================  ======================

An unreplied flow is also ended, as ``max_duration``, after ``UNREPLIED_LIFE`` unreplied timeouts,
however busy its client is: its next datagram opens a new flow at the next endpoint, so that a
sender who never hears anything is not bound to a dead endpoint for ever.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, inf
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.flow import CloseReason, Flow, State
from proxy.core.rate import Rate

if TYPE_CHECKING:
    from proxy.core.address import Transport

UNREPLIED_LIFE: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # compared by who it is, quickly
class FlowLimits:
    """The limits of one flow: clocks in seconds, the rest in bytes; ``inf`` never strikes.

    Attributes:
        bytes: payload of its whole life, both directions together.
        bandwidth_original: bytes a second from the client, and
        bandwidth_reply: to it; for who asks, they are kept to by all flows together.
        datagram_rate: datagrams a second from the client.
        amplification: bytes to the client for each one from it, until it is proven.
        datagrams: the datagram rate, with its burst.
        linger: how long a flow that was reset may be ``closing`` without any progress.
        stream_look: the shortest clock a TCP flow can have, when to look at a new one first; the
            first of several attempts to connect has half of its time.
        datagram_look: the same for UDP.

    """

    connect: float = 5.0
    idle: float = 7440.0
    half_closed: float = 240.0
    unreplied: float = 30.0
    linger: float = 10.0
    duration: float = inf
    bytes: float = inf
    bandwidth_original: float = inf
    bandwidth_reply: float = inf
    datagram_rate: float = inf
    amplification: float = inf
    datagrams: Rate | None = field(init=False)
    stream_look: float = field(init=False)
    datagram_look: float = field(init=False)

    def __post_init__(self) -> None:
        """Derive what every flow would derive again. A bucket holds what a second brings."""
        rate = self.datagram_rate
        datagrams = None if rate == inf else Rate(rate, max(1, ceil(rate)))
        object.__setattr__(self, "datagrams", datagrams)
        stream = min(self.connect / 2, self.idle, self.half_closed, self.duration)
        object.__setattr__(self, "stream_look", stream)
        datagram = min(self.unreplied, self.idle, self.duration)
        object.__setattr__(self, "datagram_look", datagram)

    @property
    def restrict_datagrams(self) -> bool:
        """Whether each datagram of a flow must be looked at."""
        return min(self.bytes, self.datagram_rate, self.amplification) < inf


class Deadline(NamedTuple):
    """When (monotonic seconds), and the reason to give then."""

    when: float
    reason: CloseReason


def deadline_of(flow: Flow, limits: FlowLimits) -> Deadline:
    """The earliest deadline of a live flow, as things stand now."""
    clock, reason = _clock_of(flow.state, limits)
    activity = Deadline(flow.active + clock, reason)
    life = Deadline(flow.opened + _life_of(flow.state, limits), CloseReason.MAX_DURATION)
    return min(activity, life, key=_when)


def next_look(flow: Flow, limits: FlowLimits, now: float) -> float:
    """When to look at the flow again, though its deadline has not come.

    A change of state is not told to the timer: so the flow is looked at no later than the clock of
    a state it may enter meanwhile could strike.
    """
    return min(deadline_of(flow, limits).when, now + _clock_to_come(flow.state, limits))


def next_look_connecting(flow: Flow, limits: FlowLimits, until: float, now: float) -> float:
    """The same for a TCP flow that is connecting, and gives its attempt up at ``until``."""
    life = flow.opened + limits.duration
    return min(until, life, now + _clock_to_come(State.CONNECTING, limits))


@lru_cache(maxsize=1024)
def limits_in_force(transport: Transport, limits: FlowLimits) -> dict[str, float]:
    """The clocks that can strike a flow, for its row in the table; to be read only."""
    names = UDP_LIMITS if transport.is_datagram else TCP_LIMITS
    return {name: value for name in names if (value := getattr(limits, name)) != inf}


@lru_cache(maxsize=1024)
def limits_json(transport: Transport, limits: FlowLimits) -> str:
    """The same as JSON."""
    return json.dumps(limits_in_force(transport, limits), separators=(",", ":"))


BYTES: Final = ("bytes", "bandwidth_original", "bandwidth_reply")
TCP_LIMITS: Final = ("connect", "idle", "half_closed", "duration", *BYTES)
UDP_LIMITS: Final = ("unreplied", "idle", "duration", *BYTES, "datagram_rate", "amplification")


def _clock_of(state: State, limits: FlowLimits) -> tuple[float, CloseReason]:
    match state:
        case State.CONNECTING:
            return limits.connect, CloseReason.CONNECT_TIMEOUT
        case State.ESTABLISHED | State.ASSURED:
            return limits.idle, CloseReason.IDLE_TIMEOUT
        case State.UNREPLIED:
            return limits.unreplied, CloseReason.IDLE_TIMEOUT
        case _:
            return limits.half_closed, CloseReason.HALF_CLOSED_TIMEOUT


def _clock_to_come(state: State, limits: FlowLimits) -> float:
    match state:
        case State.CONNECTING:
            return min(limits.idle, limits.half_closed)
        case State.ESTABLISHED:
            return limits.half_closed
        case State.UNREPLIED:
            return limits.idle
        case _:
            return inf


def _life_of(state: State, limits: FlowLimits) -> float:
    if state is State.UNREPLIED:
        return min(limits.duration, UNREPLIED_LIFE * limits.unreplied)
    return limits.duration


def _when(deadline: Deadline) -> float:
    return deadline.when
