"""Which of a successor's workers gets a flow: a plan that the successor makes, and the old follow.

A new flow of a client goes where the kernel steers it (see ``core.steering``), and so must the
flows it has: limits of a source are kept by one worker, and a datagram finds its flow only in the
worker that it comes to. What has one worker, whoever the client is, is named with it.

A listener that is not in the plan has no heir: its flows stay where they are, and drain. There is
none any more, or it wants that.

Written as JSON, because the two may be of different versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple, TypeAlias

from proxy.core.steering import BITS_V4, BITS_V6, WORKERS_MAX, worker_of

Shared: TypeAlias = "tuple[int, int]"
"""How many bits of an address name a source: of IPv4, and of IPv6."""


class PlanError(ValueError):
    """What was read is no plan."""


class HeirPlan(NamedTuple):
    """Who inherits.

    Attributes:
        size: how many new workers there are.
        listeners: by name: how its clients are divided, or the number of its one worker.

    """

    size: int
    listeners: Mapping[str, Shared | int]

    def heir_of(self, listener: str, host: str) -> int | None:
        """The number of the new worker that gets a flow; None if none does.

        Args:
            listener: the flow's.
            host: the client's, as its packets have it; for a Unix socket anything.

        """
        place = self.listeners.get(listener)
        if place is None or isinstance(place, int):
            return place
        return worker_of(ip_address(host.partition("%")[0]), self.size, *place)

    def write(self) -> dict[str, Any]:
        """The plan, to be written as JSON."""
        return {"size": self.size, "listeners": dict(self.listeners)}


NO_HEIRS = HeirPlan(0, {})
"""Everything stays, and drains."""


def read_plan(written: Any) -> HeirPlan:
    """Read what ``write`` has written.

    Raises:
        PlanError: it is none.

    """
    try:
        size, listeners = written["size"], written["listeners"].items()
        plan = HeirPlan(size, {str(name): _read_place(each, size) for name, each in listeners})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PlanError(f"no plan of who inherits: {error!r}") from error
    if not 0 <= size <= WORKERS_MAX:
        raise PlanError(f"{size} workers; there are at most {WORKERS_MAX}")
    return plan


def _read_place(place: Any, size: int) -> Shared | int:
    if isinstance(place, int):
        if not 0 <= place < size:
            raise ValueError(f"worker {place} of {size}")
        return place
    prefix_v4, prefix_v6 = place
    if not (0 <= prefix_v4 <= BITS_V4 and 0 <= prefix_v6 <= BITS_V6):
        raise ValueError(f"prefixes of {prefix_v4} and {prefix_v6} bits")
    return prefix_v4, prefix_v6
