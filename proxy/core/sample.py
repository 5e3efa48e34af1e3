"""Samples: what the kernel knows of both sockets of a TCP flow, and who the flow waited for.

A flow is as slow as the slowest of four: its client, its endpoint (each with the path there), we
ourselves, or a limit. One sample is a moment; two of them say where the time between them went:

* to a **limit**, while it held a direction back;
* to the side that **receives**, while its socket took no more, or while bytes were on their way to
  it that it had not acknowledged (the kernel's *busy* time, of which a closed window is a part);
* to the **proxy**, while the kernel's send buffer was too small, or when bytes were found lying in
  a socket though the way was free: we do not keep up;
* the rest to whoever was to speak next. A client that is silent for longer than ``PAUSE`` has
  nothing to say, and an endpoint for longer than ``PATIENCE`` has nothing to answer; then nobody
  is waited for.

The directions run beside each other, so the parts need not add up to the whole. What was found
earlier counts half after ``HALF_LIFE``, so a verdict is of the flow as it has been lately.

A sample is kept packed, because there is one for each flow: 220 bytes in place of a thousand.

Source: tcp_get_info and tcp_chrono_set in net/ipv4/tcp.c, struct tcp_info in linux/tcp.h.
Units: seconds and bytes; in ``TcpInfo`` those of the kernel.
"""

from __future__ import annotations

from enum import StrEnum
from struct import Struct
from typing import Final, NamedTuple

PAUSE: Final = 1.0
"""Seconds; a client that is silent for longer is not slow, but has nothing to say."""

PATIENCE: Final = 10.0
"""Seconds; what has not been answered for longer was no question."""

HALF_LIFE: Final = 60.0
"""Seconds after which what was found counts half."""

LEAST: Final = 0.1
"""Of the time; who is waited for during less of it does not make a flow slow."""


UNKNOWN: Final = 2**32 - 1
"""What the kernel says where it has not measured yet."""


class Culprit(StrEnum):
    """Who makes a flow as slow as it is."""

    CLIENT = "client"
    ENDPOINT = "endpoint"
    PROXY = "proxy"
    LIMIT = "limit"


class TcpInfo(NamedTuple):
    """What the kernel tells of a socket, in its units.

    A time that is not known is ``UNKNOWN``.

    Attributes:
        unacked: segments sent and not acknowledged.
        last_sent: milliseconds since data was sent.
        last_received: milliseconds since data was received.
        rtt: smoothed round-trip time, in microseconds.
        retransmits: segments sent again, since the beginning.
        min_rtt: in microseconds.
        delivery_rate: bytes a second, of the last flight.
        busy: microseconds with data to send or on its way.
        rwnd_limited: of those, while the receiver's window was closed.
        sndbuf_limited: of those, while the send buffer was too small.

    """

    unacked: int = 0
    last_sent: int = 0
    last_received: int = 0
    rtt: int = 0
    retransmits: int = 0
    min_rtt: int = 0
    delivery_rate: int = 0
    busy: int = 0
    rwnd_limited: int = 0
    sndbuf_limited: int = 0


NO_INFO: Final = TcpInfo()
"""Of a socket that is not TCP."""


class Waits(NamedTuple):
    """Seconds in which a flow waited for somebody, or for nobody."""

    client: float = 0.0
    endpoint: float = 0.0
    proxy: float = 0.0
    limit: float = 0.0
    nobody: float = 0.0

    @property
    def culprit(self) -> Culprit | None:
        """Whoever was waited for longest, if that was worth a word."""
        longest = max(self[:4])
        if longest <= LEAST * (longest + self.nobody):
            return None
        return tuple(Culprit)[self.index(longest)]

    def then(self, later: Waits, seconds: float) -> Waits:
        """What is found later, after so many seconds, and what of this still counts."""
        weight = 0.5 ** (seconds / HALF_LIFE)
        return Waits(*(was * weight + found for was, found in zip(self, later, strict=True)))


NO_WAITS: Final = Waits()


class Stalled(NamedTuple):
    """Seconds so far in which a direction stood still with something to pass on.

    Attributes:
        blocked: because the other side's socket took no more.
        held: because a limit said so.

    """

    blocked: float = 0.0
    held: float = 0.0


STILL: Final = Stalled()


class Sample(NamedTuple):
    """A flow at one moment.

    Attributes:
        when: monotonic seconds.
        original: bytes of that direction.
        reply: bytes of that direction.
        original_stalled: how that direction was.
        reply_stalled: how that direction was.
        client: its socket.
        endpoint: its socket.
        waits: who it waited for lately.

    """

    when: float
    original: int
    reply: int
    original_stalled: Stalled
    reply_stalled: Stalled
    client: TcpInfo
    endpoint: TcpInfo
    waits: Waits = NO_WAITS

    def pack(self) -> bytes:
        """Write everything that a later look needs; not how long ago bytes were seen."""
        return _PACKED.pack(
            *self[:3],
            *self.original_stalled,
            *self.reply_stalled,
            *_kept(self.client),
            *_kept(self.endpoint),
            *self.waits,
        )


class Insight(NamedTuple):
    """What is known of how a flow got on.

    Attributes:
        sample: the last one; None if it has not been sampled yet.
        original: how that direction stood still, until now or its end.
        reply: how that direction did.

    """

    sample: Sample | None
    original: Stalled
    reply: Stalled


def unpack(packed: bytes) -> Sample:
    """Read what was packed: for each flow of a listing."""
    values = _PACKED.unpack(packed)
    make = tuple.__new__  # which is what the constructors do, and slower
    fields = (
        *values[:3],
        make(Stalled, values[3:5]),
        make(Stalled, values[5:7]),
        make(TcpInfo, (values[7], 0, 0, *values[8:15])),
        make(TcpInfo, (values[15], 0, 0, *values[16:23])),
        make(Waits, values[23:]),
    )
    return make(Sample, fields)


def under_way(packed: bytes) -> tuple[float, int, int]:
    """When a sample was taken, and the segments that were under way then to client and endpoint."""
    when, client, endpoint = _UNDER_WAY.unpack(packed)
    return when, client, endpoint


def retimed(packed: bytes, now: float) -> bytes:
    """A sample of a flow for which the time since then shall not count."""
    return _WHEN.pack(now) + packed[_WHEN.size :]


def waits_between(before: Sample, after: Sample, *, behind: bool) -> Waits:
    """Find who a flow waited for between two samples.

    Args:
        before: the earlier one.
        after: the later one, as it was taken.
        behind: whether bytes were found then that nothing but ourselves kept from going on.

    """
    seconds = after.when - before.when
    if seconds <= 0:
        return NO_WAITS
    stalls = [
        Stalled(now.blocked - then.blocked, now.held - then.held)
        for then, now in (
            (before.original_stalled, after.original_stalled),
            (before.reply_stalled, after.reply_stalled),
        )
    ]
    small = [
        (now.sndbuf_limited - then.sndbuf_limited) / 1e6
        for then, now in ((before.endpoint, after.endpoint), (before.client, after.client))
    ]
    endpoint = _receiving(before.endpoint, after.endpoint, stalls[0].blocked, behind) - small[0]
    client = _receiving(before.client, after.client, stalls[1].blocked, behind) - small[1]
    found = (client, endpoint, max(small), max(stall.held for stall in stalls))
    waits = [min(max(wait, 0.0), seconds) for wait in found]
    rest = seconds - max(waits)
    who, part = (Culprit.PROXY, rest) if behind else _awaited(before, after, rest)
    if who is None:
        return Waits._make((*waits, rest))
    waits[tuple(Culprit).index(who)] += part
    return Waits._make((*waits, rest - part))


def _receiving(before: TcpInfo, after: TcpInfo, blocked: float, behind: bool) -> float:
    """Seconds in which what was sent had not arrived.

    Where we do not keep up, bytes are always on their way; then only a closed window counts.
    """
    if behind:
        return max(blocked, (after.rwnd_limited - before.rwnd_limited) / 1e6)
    return max(blocked, (after.busy - before.busy) / 1e6)


def _awaited(before: Sample, after: Sample, rest: float) -> tuple[Culprit | None, float]:
    """Who had to say something next, as far as one can see from who spoke; and for how long.

    Args:
        before: the earlier sample.
        after: the later one.
        rest: seconds that nothing else explains.

    """
    asked, answered = after.original > before.original, after.reply > before.reply
    heard, told = after.client.last_received / 1000, after.client.last_sent / 1000
    if answered and not asked:
        return (Culprit.ENDPOINT if after.endpoint.last_received < PAUSE * 1000 else None), rest
    if asked and not after.reply:  # it only uploads, and as slowly as that
        return (Culprit.CLIENT if heard < PAUSE else None), rest
    if heard == told:  # within one tick of the kernel's clock, 1 to 10 ms; who has yet to confirm?
        unconfirmed = Culprit.CLIENT if after.client.unacked else None
        return (Culprit.ENDPOINT if after.endpoint.unacked else unconfirmed), rest
    if heard > told:
        return (Culprit.CLIENT if told < PAUSE and after.reply else None), rest
    # The client has spoken, and has not been answered. If it has only just spoken, the time before
    # was its own.
    owed = rest if answered or not asked else min(rest, heard)
    return (Culprit.ENDPOINT if heard < PATIENCE else None), owed


def _kept(info: TcpInfo) -> tuple[int, ...]:
    return (info.unacked, *info[3:])


_WHEN: Final = Struct("=d")
_LEG: Final = "4I4Q"
_PACKED: Final = Struct(f"=d2Q4d{_LEG}{_LEG}5f")
_UNDER_WAY: Final = Struct("=d48xI44xI64x")
"""The same, without the rest."""
