"""Leases: what may be moved without asking, and is booked later.

Who is far from its ceilings need not be asked for every move, nor every move be booked at three
levels. So each level, the listener, a source, a flow, has a *lease*: so many bytes may be moved of
it before they are booked. Who has enough left at all three moves, and takes it from there
(``left``); who has not asks, and then what was moved is booked, and something is lent anew.

A lease belongs to a level and to nobody below it: so nobody hoards. It is lent only while the
bucket holds it, so the ceilings are kept to the byte. Booked late, as if it had been moved then,
takes from whoever stays below a ceiling nothing that is felt, since a lease is a part of the burst
only; and who is at a ceiling has no lease.

Measured, microseconds more than without limits, with every limit configured and none reached: a
request over TCP 0.6 and 3.4, a UDP round trip 0.9 and 5.6, with leases and without.

Rejected: leases of flows, in advance. What idle ones hold is missing elsewhere, so they have to be
recalled, and that takes a list of them; and a lease that is booked in advance and moved later lets
more through than the burst.
"""

from __future__ import annotations

from typing import Final

from proxy.core.ceiling import LEASE_MAX


class Lease:
    """What may be moved at one level before it is booked.

    Attributes:
        left: bytes that may be moved yet; below 0 by one move at most.
        lent: what was left when it was last looked at.

    """

    __slots__ = ("left", "lent")

    def __init__(self, left: int, unbooked: int = 0) -> None:
        self.left = left
        self.lent = left + unbooked


BUDGET_ROOM: Final = 2 * LEASE_MAX
"""Bytes; as long as a flow may move so many, both its directions may go by a lease."""
