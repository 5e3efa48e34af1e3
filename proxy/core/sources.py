"""Sources: what a listener knows of each prefix of its clients, bounded, and nobody is forgotten.

A source is kept for as long as it makes a difference: while it has flows, or while its bucket is
not full, because then it *owes* something. One that has neither is exactly what a source that was
never seen is, so it is forgotten without loss, and at once: those that are idle and owe something
stand in a heap by the moment at which they owe nothing any more.

Bound: sources that have flows are bounded by the flows; of idle ones ``idle_max`` are let in. When
so many owe something, nobody is thrown out for a newcomer: whoever invents addresses would flush
the record of everybody else, and his own. Newcomers share ``OVERFLOW`` sources instead, by their
hash, until somebody's debt has run out: who cannot be told apart shares a part. Sources that had
flows when that happened stay their own, so there are never more than ``idle_max`` and as many as
there were flows at once.

So, as long as there is no overflow, every answer is that of a table that forgets nothing.

Keys are text and bytes, and no numbers, though these would do: the clients choose them, and the
interpreter hashes text and bytes with a secret but numbers as they are, so that addresses could be
chosen to fall into one place of a dictionary, or into somebody's overflow source.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from ipaddress import IPv4Network, IPv6Network
from itertools import chain
from typing import Final, TypeAlias

from proxy.core.prefix import V4_BITS, V6_BITS, v4_number, v6_number

SourceKey: TypeAlias = str | bytes
"""The first bits of an address as 4 or 16 bytes; the text of a whole IPv4 address, which is there
already; or of a Unix client its ``uid:N``."""

OVERFLOW: Final = 256
"""Sources that newcomers share; of so many each hits the innocent with one chance in 256."""


def source_key(host: str, prefix_v4: int, prefix_v6: int) -> SourceKey:
    """The key of the source that a client belongs to; a zone makes no difference.

    Args:
        host: of its socket's address.
        prefix_v4: so many of the first bits of an IPv4 address make a source.
        prefix_v6: the same for IPv6.

    """
    if ":" in host:
        return (v6_number(host) >> V6_BITS - prefix_v6).to_bytes(16)
    if prefix_v4 == V4_BITS:
        return host
    return (v4_number(host) >> V4_BITS - prefix_v4).to_bytes(4)


def source_text(key: SourceKey, prefix_v4: int, prefix_v6: int) -> str:
    """Write a source the way people do: ``192.0.2.0/24``, ``uid:1000``."""
    if isinstance(key, bytes):
        number = int.from_bytes(key)
        if len(key) == 16:
            return str(IPv6Network((number << V6_BITS - prefix_v6, prefix_v6)))
        return str(IPv4Network((number << V4_BITS - prefix_v4, prefix_v4)))
    return key if key.startswith("uid:") else f"{key}/{V4_BITS}"


class Source:
    """One source, or one that newcomers share.

    Attributes:
        key: of its clients; None if it is shared.
        flows: how many are live.
        full_at: its bucket of new flows, see ``Rate``.
        queued: whether the table will look at it when its bucket is full.

    """

    __slots__ = ("flows", "full_at", "key", "queued")

    def __init__(self, key: SourceKey | None) -> None:
        self.key = key
        self.flows = 0
        self.full_at = 0.0
        self.queued = False


class SourceTable:
    """The sources of one listener.

    Whoever books a flow calls ``enter`` and then writes the bucket, which never becomes full
    earlier by that; only ``forgive`` does that.

    Args:
        idle_max: sources without flows that may owe something, before newcomers share.

    """

    def __init__(self, idle_max: int) -> None:
        self._idle_max = idle_max
        self._sources: dict[SourceKey, Source] = {}
        self._shared: dict[int, Source] = {}
        self._idle = 0  # of the sources, those that have no flow
        # No sooner than at the first number the source will owe nothing; each stands here at most
        # once, and may have flows again. The second one makes entries comparable.
        self._queue: list[tuple[float, int, Source]] = []
        self._queued = 0
        self.get = self._sources.get

    def __len__(self) -> int:
        return len(self._sources) + len(self._shared)

    def __iter__(self) -> Iterator[Source]:
        return chain(self._sources.values(), self._shared.values())

    def find(self, key: SourceKey, now: float) -> Source | None:
        """The source that a flow would be booked on; None if it would be a new one.

        ``get`` answers the same for a key that is known, without a call of ours.
        """
        source = self._sources.get(key)
        if source is None and self._has_overflow(now):
            return self._shared.get(hash(key) % OVERFLOW)
        return source

    def peek(self, key: SourceKey, now: float) -> Source | None:
        """What ``find`` answers, without forgetting anybody for it."""
        source = self._sources.get(key)
        if source is None and self._would_overflow(now):
            return self._shared.get(hash(key) % OVERFLOW)
        return source

    def enter(self, key: SourceKey, now: float) -> Source:
        """Book a flow on its source, which is made if it is new; it leaves exactly once."""
        source = self._sources.get(key)
        if source is None:
            source = self._new(key, now)
        elif not source.flows:
            self._idle -= 1
        source.flows += 1
        return source

    def leave(self, source: Source, now: float) -> None:
        """Take a flow from its source, which is forgotten if that makes no difference."""
        assert source.flows > 0, source.key
        source.flows -= 1
        if source.flows or source.key is None:
            return
        self._idle += 1
        if not source.queued:
            self._settle(source, now)
        self._forget(now)

    def forgive(self, until: float) -> None:
        """Have every bucket full at ``until`` at the latest."""
        for source in self:
            source.full_at = min(source.full_at, until)
        self._queue = [(source.full_at, place, source) for _, place, source in self._queue]
        heapify(self._queue)

    def _new(self, key: SourceKey, now: float) -> Source:
        """Make a source of its own, or tell which one it shares with others."""
        if not self._has_overflow(now):
            source = self._sources[key] = Source(key)
            return source
        place = hash(key) % OVERFLOW
        if place not in self._shared:
            self._shared[place] = Source(None)
        return self._shared[place]

    def _has_overflow(self, now: float) -> bool:
        if self._idle >= self._idle_max:
            self._forget(now)
        return self._idle >= self._idle_max

    def _would_overflow(self, now: float) -> bool:
        """What ``_has_overflow`` would say: without those who owe nothing by now."""
        queue = self._queue
        if self._idle < self._idle_max or not (queue and queue[0][0] <= now):
            return self._idle >= self._idle_max
        forgotten = sum(
            not source.flows and source.full_at <= now for when, _, source in queue if when <= now
        )
        return self._idle - forgotten >= self._idle_max

    def _forget(self, now: float) -> None:
        """Look at those whose time has come."""
        queue = self._queue
        while queue and queue[0][0] <= now:
            _, _, source = heappop(queue)
            source.queued = False
            if not source.flows:
                self._settle(source, now)

    def _settle(self, source: Source, now: float) -> None:
        """Forget an idle source that owes nothing; queue one that does."""
        assert source.key is not None
        if source.full_at <= now:
            del self._sources[source.key]
            self._idle -= 1
        else:
            source.queued = True
            self._queued += 1
            heappush(self._queue, (source.full_at, self._queued, source))
