"""Limits that an operator sets on a sockpair that runs: each is an order, with a number.

An order says which flows it is for, by the words of ``FlowQuery``: a listener, a prefix of clients,
of endpoints, one flow. It says what they may do, all together (``bandwidth``, ``flows``) or each of
them (``flow_bandwidth``, ``bytes``), and until when. It holds for the flows that exist and for new
ones, beside whatever the configuration says and beside other orders: each of them is kept to, so
the strictest one is felt.

``flows`` is asked when a flow is admitted. Its endpoint is chosen after that, and its id is new, so
such an order may name neither. Flows that exist stay, as they do when a reload lowers a ceiling.

``bytes`` is a budget of a flow's whole life, as ``limits.per_flow.bytes`` is: who has moved more
already ends with the next byte.

Units: bytes, seconds, bytes a second. Times are monotonic seconds, but for those that are shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from proxy.core.address import format_address
from proxy.core.query import FlowQuery, lies_in

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.expiry import FlowLimits

ORDERS_MAX: Final = 1000
"""Orders in force: each new flow is compared with all of them, which takes a microsecond for ten,
and a program that sets them has a mistake long before that."""


class LimitValues(NamedTuple):
    """What flows may do; None does not restrict.

    Attributes:
        bandwidth: of all of them together, each direction, in bytes a second.
        flow_bandwidth: the same of each.
        flows: live ones, of all together.
        bytes: payload of the whole life of each, both directions together.

    """

    bandwidth: float | None = None
    flow_bandwidth: float | None = None
    flows: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveLimit:
    """An order.

    Attributes:
        number: it is known by; never used again.
        query: which flows.
        values: what they may do.
        by: who gave it.
        since: Unix seconds.
        until: Unix seconds; None: until it is lifted.
        expires: the same as monotonic seconds; inf.

    """

    number: int
    query: FlowQuery
    values: LimitValues
    by: str
    since: float
    until: float | None = None
    expires: float = inf

    def admits_to(self, listener: str, client: Address) -> bool:
        """Whether a client who comes to a listener would have a flow of those it is for."""
        query = self.query
        return query.listener in {None, listener} and (
            query.client is None or lies_in(client, query.client)
        )


class Restraint(NamedTuple):
    """What all orders for a flow allow it together: ``inf`` is no limit."""

    bytes: float = inf
    bandwidth: float = inf


FREE: Final = Restraint()


def restraint_of(orders: Iterable[LimitValues]) -> Restraint:
    """The strictest of several."""
    budget, bandwidth = inf, inf
    for values in orders:
        budget = _least(budget, values.bytes)
        bandwidth = _least(bandwidth, values.bandwidth, values.flow_bandwidth)
    return Restraint(budget, bandwidth)


@lru_cache(maxsize=1024)
def restrained(limits: FlowLimits, restraint: Restraint) -> FlowLimits:
    """The limits of a flow, with those that orders bring."""
    if restraint == FREE:
        return limits
    return replace(
        limits,
        bytes=min(limits.bytes, restraint.bytes),
        bandwidth_original=min(limits.bandwidth_original, restraint.bandwidth),
        bandwidth_reply=min(limits.bandwidth_reply, restraint.bandwidth),
    )


def problem_of(query: FlowQuery, values: LimitValues) -> str | None:
    """Why there can be no such order; None if there can."""
    if values == LimitValues():
        return "say what to limit: bandwidth, flow_bandwidth, flows or bytes"
    if query == FlowQuery():
        return "say which flows: listener, client, endpoint or id"
    if values.flows is not None and (query.endpoint is not None or query.id is not None):
        return (
            "flows is asked before a flow has an endpoint or an id: give it for a listener, "
            "a client, or both"
        )
    return None


class Books:
    """The orders in force, oldest first; at most ``ORDERS_MAX``."""

    def __init__(self) -> None:
        self._orders: dict[int, LiveLimit] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._orders)

    @property
    def orders(self) -> tuple[LiveLimit, ...]:
        """All of them."""
        return tuple(self._orders.values())

    @property
    def full(self) -> bool:
        """Whether no further one may be given."""
        return len(self._orders) >= ORDERS_MAX

    @property
    def next_end(self) -> float:
        """When the next one's time is over; inf: never."""
        return min((each.expires for each in self._orders.values()), default=inf)

    def give(
        self,
        query: FlowQuery,
        values: LimitValues,
        by: str,
        now: float,
        wall: float,
        lasting: float | None = None,
    ) -> LiveLimit:
        """Enter a new order, which the caller has seen to be possible and to have room.

        Args:
            query: which flows.
            values: what they may do.
            by: who gives it.
            now: monotonic seconds.
            wall: Unix seconds.
            lasting: seconds; None: until it is lifted.

        """
        assert not self.full
        assert problem_of(query, values) is None
        self._last += 1
        order = LiveLimit(number=self._last, query=query, values=values, by=by, since=wall)
        if lasting is not None:
            order = replace(order, until=wall + lasting, expires=now + lasting)
        self._orders[order.number] = order
        return order

    def restore(self, orders: Iterable[LiveLimit]) -> None:
        """Have the orders of an earlier life in force; new ones get further numbers."""
        for order in islice(orders, ORDERS_MAX):
            self._orders[order.number] = order
            self._last = max(self._last, order.number)

    def lift(self, number: int) -> LiveLimit | None:
        """Take an order away; None if there is none with this number."""
        return self._orders.pop(number, None)

    def expire(self, now: float) -> list[LiveLimit]:
        """Take away those whose time is over."""
        over = [each for each in self._orders.values() if each.expires <= now]
        for order in over:
            del self._orders[order.number]
        return over


class OrderRow(TypedDict):
    """An order, for those who ask. Filters and values that it has not are None."""

    number: int
    listener: str | None
    client: str | None
    endpoint: str | None
    id: int | None
    bandwidth: float | None
    flow_bandwidth: float | None
    flows: int | None
    bytes: int | None
    by: str
    since: float
    until: float | None
    matched: int


def order_row(order: LiveLimit, matched: int) -> OrderRow:
    """Describe an order, and how many live flows it holds for."""
    query, values = order.query, order.values
    return {
        "number": order.number,
        "listener": query.listener,
        "client": _place(query.client),
        "endpoint": _place(query.endpoint),
        "id": query.id,
        "bandwidth": values.bandwidth,
        "flow_bandwidth": values.flow_bandwidth,
        "flows": values.flows,
        "bytes": values.bytes,
        "by": order.by,
        "since": round(order.since, 3),
        "until": None if order.until is None else round(order.until, 3),
        "matched": matched,
    }


def _least(*values: float | None) -> float:
    return min(value for value in values if value is not None)


def _place(place: object) -> str | None:
    if isinstance(place, tuple):
        return format_address(place)
    return None if place is None else str(place)
