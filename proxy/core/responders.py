"""Who answered, and how much, when one datagram went to many hosts.

Bounded: hosts beyond ``RESPONDERS`` are counted together, in a row without an address, so that
forged senders cost no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from proxy.core.address import format_address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.core.address import Address

RESPONDERS: Final = 64
"""Addresses remembered for a flow; a row of the table stays below 8 KiB."""


class ResponderRow(TypedDict):
    """One host that answered; ``remote`` is None for all those beyond the bound together."""

    remote: str | None
    packets: int
    bytes: int


class Responders:
    """Counters of the answers to one flow, by who sent them."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[Address | None, tuple[int, int]] = {}

    def count(self, remote: Address, size: int) -> None:
        """Count one answer of ``size`` bytes."""
        counts = self._counts
        known = remote in counts or len(counts) < RESPONDERS  # the rest has a row of its own
        who = remote if known else None
        packets, octets = counts.get(who, (0, 0))
        counts[who] = (packets + 1, octets + size)

    def state(self) -> tuple[tuple[Address | None, int, int], ...]:
        """Each of them: address, answers, bytes; for ``restore``."""
        return tuple((who, *counts) for who, counts in self._counts.items())

    def restore(self, state: Iterable[tuple[Address | None, int, int]]) -> None:
        """Go on where others were."""
        self._counts = {who: (packets, octets) for who, packets, octets in state}

    def rows(self) -> list[ResponderRow]:
        """Each of them, in the order they first answered."""
        return [
            {
                "remote": None if remote is None else format_address(remote),
                "packets": packets,
                "bytes": octets,
            }
            for remote, (packets, octets) in self._counts.items()
        ]
