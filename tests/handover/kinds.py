"""The kinds of flows in the crowd: what each end of them says, when, and how it reads.

An end of a stream has one manner of speaking:

* ``ask``: say something, wait for the answer, think, say something again;
* ``answer``: as many bytes as came;
* ``pour``: something now and then, whatever the other side does;
* ``flood``: as much as the other side takes;
* ``once``: something at the beginning, and then the end;
* ``listen``: nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

KIB: Final = 1024
MIB: Final = 1024 * KIB


class Role(NamedTuple):
    """What one end of a stream does.

    Attributes:
        speaks: its manner.
        least, most: bytes at a time.
        pause: seconds between two times, on average; from half of it to one and a half.
        sip: bytes that it reads at a time, every ``sip_pause`` seconds; 0: all there is, at once.
        sip_pause: see ``sip``.

    """

    speaks: str
    least: int = 0
    most: int = 0
    pause: float = 0.0
    sip: int = 0
    sip_pause: float = 0.0


class StreamKind(NamedTuple):
    """A kind of TCP flow.

    Attributes:
        client, endpoint: what its ends do.
        share: how many there are, beside the others.
        urgent: each end sends the byte at the middle of each message as urgent data.
        fresh: who asks ends after one answer, and begins a flow anew.
        limits: of its listener, by flow.

    """

    client: Role
    endpoint: Role
    share: int
    urgent: bool = False
    fresh: bool = False
    limits: dict[str, str] = {}  # noqa: RUF012 - nobody changes it


class DatagramKind(NamedTuple):
    """A kind of UDP flow, each datagram of which has a number.

    Attributes:
        pause: seconds between two rounds of a flow, on average.
        burst: datagrams in a round at most, to be answered in their order.
        answered: whether there are answers.
        fresh: each round is a flow of its own, which ends with its answer.
        share: how many there are, beside the others.

    """

    pause: float
    burst: int
    answered: bool
    fresh: bool
    share: int


ANSWER: Final = Role("answer")
LISTEN: Final = Role("listen")
MESSAGE: Final = 1000
"""Bytes of a message with an urgent byte in the middle."""

STREAMS: Final = {
    "bulk": StreamKind(Role("ask", 1 * MIB, 3 * MIB, 6.0), ANSWER, 5),
    "chatty": StreamKind(Role("ask", 1, 4000, 0.4), ANSWER, 35),
    "brief": StreamKind(Role("ask", 1, 4000, 0.5), ANSWER, 4, fresh=True),
    "idle": StreamKind(Role("ask", 1, 200, 4.0), ANSWER, 30),
    "client_closed": StreamKind(
        Role("once", 20_000, 20_000), Role("pour", 1, 20_000, 0.7), share=6
    ),
    "endpoint_closed": StreamKind(
        Role("pour", 1, 20_000, 0.7), Role("once", 20_000, 20_000), share=6
    ),
    "throttled": StreamKind(
        Role("ask", 30 * KIB, 60 * KIB),
        ANSWER,
        share=6,
        limits={"bandwidth_original": "64KiB/s", "bandwidth_reply": "48KiB/s"},
    ),
    "urgent": StreamKind(Role("ask", MESSAGE, MESSAGE, 0.3), ANSWER, share=6, urgent=True),
    "slow_endpoint": StreamKind(
        Role("flood"), Role("listen", sip=48 * KIB, sip_pause=0.4), share=2
    ),
    "slow_client": StreamKind(Role("listen", sip=48 * KIB, sip_pause=0.4), Role("flood"), share=2),
    "stalled": StreamKind(
        Role("flood", sip=32 * KIB, sip_pause=3.0),
        Role("flood", sip=32 * KIB, sip_pause=3.0),
        share=2,
    ),
}

DATAGRAMS: Final = {
    "talk": DatagramKind(pause=0.5, burst=4, answered=True, fresh=False, share=6),
    "oneway": DatagramKind(pause=0.5, burst=2, answered=False, fresh=False, share=2),
    "query": DatagramKind(pause=0.5, burst=1, answered=True, fresh=True, share=2),
}

SIP_BUFFER: Final = 64 * KIB
"""Of the sockets of ends that sip, so that what they leave lies in the proxy and not with them."""


def divide(count: int, names: dict[str, int]) -> dict[str, int]:
    """So many flows, divided by their shares; each kind has one at least, unless there are none."""
    whole = sum(names.values())
    return {
        name: max(1, round(count * share / whole)) if count else 0 for name, share in names.items()
    }
