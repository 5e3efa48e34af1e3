"""Explanations: what a new flow of a client would meet with, and why, in plain values.

An explanation is made of *looks*, which change nothing: no token is taken, no turn moves on, nobody
is told. So it says what the next flow would get if it came now, alone; another client may come
before it, and the endpoint may not answer.

What is explained stands in the order in which a flow meets it: the rule that lets its client in,
the limits, the route, the endpoint. All of it is told, also what a flow that is refused would not
have come to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from proxy.core.balance.ways import Balance
from proxy.core.counters import AddressSnapshot
from proxy.core.flow import CloseReason, Refusal

if TYPE_CHECKING:
    from proxy.core.address import Address, Transport
    from proxy.core.admission import GateLevel
    from proxy.core.endpoint import Endpoint
    from proxy.core.live_limit import LiveLimit
    from proxy.core.upstream import Upstream


class Outcome(StrEnum):
    """What would become of the flow."""

    ADMIT = "admit"
    WAIT = "wait"  # for a place at the listener, or at an endpoint
    REFUSE = "refuse"
    NO_ENDPOINT = "no_endpoint"  # it is admitted, and ends at once


class FlowQuestion(NamedTuple):
    """Which flow.

    Attributes:
        transport: of the listener.
        client: who opens it, or is declared; port 0 is any.
        listener: the name of the listener.
        via: the proxy that declares the client by a PROXY header; None: it comes by itself.
        server_name: that its ClientHello asks for; None: it asks for none.
        alpn: the protocols it speaks, the best first.

    """

    transport: Transport
    client: Address
    listener: str
    via: str | None = None
    server_name: str | None = None
    alpn: tuple[str, ...] = ()

    @property
    def peer(self) -> str:
        """The host that its packets come from."""
        return self.via or self.client[0]


class Trust(StrEnum):
    """What PROXY headers have to do with it."""

    NONE = "none"  # the listener believes nobody's
    TRUSTED = "trusted"  # who comes is believed, and must send one
    UNTRUSTED = "untrusted"  # who comes is a client like others: a header would be payload
    REFUSED = "refused"  # who comes is no proxy, and nobody else may come


class RuleRow(TypedDict):
    """Which entry of the access list decides, None if none does, and the trust in who comes."""

    admitted: bool
    entry: str | None
    proxy: str


class LimitRow(TypedDict):
    """A ceiling and its present level.

    ``limit`` is the word of the refusal. Of a rate, ``ceiling`` is the burst and ``level`` what of
    it is spent. ``refuses`` is false of one that is reached in a dry run, or for which another
    flow goes. ``order`` is the number of an order.
    """

    limit: str
    level: float
    ceiling: float
    per_second: float | None
    reached: bool
    refuses: bool
    order: int | None


class QueueRow(TypedDict):
    """Where flows wait: how many do, how many may, and for how many seconds."""

    flows: int
    ceiling: int
    seconds: float


class RouteRow(TypedDict):
    """The upstream, and the pattern by which the first bytes chose it; None: the default."""

    upstream: str
    pattern: str | None
    routes: int


class CandidateRow(AddressSnapshot):
    """An address of an endpoint; whether a new flow may get it, whether the next one, and why."""

    endpoint: str
    usable: bool
    next: bool
    why: str


class ChoiceRow(TypedDict):
    """How an endpoint is chosen, and among whom. ``original``: where the client meant to go."""

    balance: str
    original: bool
    queue: QueueRow | None
    candidates: list[CandidateRow]


class Explanation(TypedDict):
    """What a new flow would meet with. ``reason`` is the word it would be refused, or end, by."""

    transport: str
    client: str
    listener: str
    worker: int
    outcome: str
    reason: str | None
    rule: RuleRow
    limits: list[LimitRow]
    waiting: QueueRow | None
    route: RouteRow
    endpoint: ChoiceRow
    evicted: int | None


class Verdict(NamedTuple):
    """What would become of a flow, and the word for it if it does not live."""

    outcome: Outcome
    reason: str | None = None


ADMITTED: Final = Verdict(Outcome.ADMIT)

AT_THE_GATE: Final = frozenset(
    {
        Refusal.LISTENER_FLOWS.value,
        Refusal.LISTENER_RATE.value,
        Refusal.SOURCE_FLOWS.value,
        Refusal.SOURCE_RATE.value,
    }
)
"""What a client may wait for, where the listener lets any wait."""

OF_ROOM: Final = frozenset({Refusal.TABLE_FULL.value, Refusal.FILE_DESCRIPTORS.value})
"""What a worker has no room for, whoever comes."""


def verdict(
    rule: RuleRow,
    limits: Iterable[LimitRow],
    waiting: QueueRow | None,
    choice: ChoiceRow,
    *,
    draining: bool,
    room_first: bool,
) -> Verdict:
    """What follows from all that is known, in the order in which it is asked.

    Args:
        rule: of the client.
        limits: in order; the gate's are the last.
        waiting: where who may not pass the gate waits; None if nobody does.
        choice: of the endpoint.
        draining: whether the listener accepts no more.
        room_first: whether room is asked for before the rule, as it is for datagrams.

    """
    if draining:
        return Verdict(Outcome.REFUSE, Refusal.DRAINING.value)
    reached = [row["limit"] for row in limits if row["refuses"]]
    lacks_room = bool(reached) and reached[0] in OF_ROOM
    if not rule["admitted"] and not (room_first and lacks_room):
        return Verdict(Outcome.REFUSE, Refusal.ACCESS.value)
    if not reached:
        return _at_endpoint(choice)
    may_wait = reached[0] in AT_THE_GATE and _has_room(waiting)
    return Verdict(Outcome.WAIT if may_wait else Outcome.REFUSE, reached[0])


def _at_endpoint(choice: ChoiceRow) -> Verdict:
    queue = choice["queue"]
    found = choice["original"] or any(row["next"] for row in choice["candidates"])
    is_full = any(row["usable"] is False and row["why"] == FULL for row in choice["candidates"])
    if found and not (queue and queue["flows"]):
        return ADMITTED
    if (found or is_full) and _has_room(queue):
        return Verdict(Outcome.WAIT, CloseReason.NO_ENDPOINT.value)
    return Verdict(Outcome.NO_ENDPOINT, CloseReason.NO_ENDPOINT.value)


def _has_room(queue: QueueRow | None) -> bool:
    return queue is not None and queue["flows"] < queue["ceiling"]


def gate_rows(levels: Iterable[GateLevel], *, dry_run: bool) -> list[LimitRow]:
    """The ceilings of a gate as rows."""
    return [
        limit_row(
            each.limit.value,
            round(each.level, 3),
            each.ceiling,
            reached=each.is_reached,
            refuses=each.is_reached and not dry_run,
            per_second=each.per_second,
        )
        for each in levels
    ]


def order_rows(orders: Iterable[tuple[LiveLimit, int]]) -> list[LimitRow]:
    """The orders that a client would count for, each with its live flows."""
    rows: list[LimitRow] = []
    for order, flows in orders:
        ceiling = order.values.flows
        if ceiling is not None:
            word = Refusal.ORDERED_FLOWS.value
            row = limit_row(word, flows, ceiling, reached=flows >= ceiling)
            rows.append({**row, "order": order.number})
    return rows


def limit_row(
    limit: str,
    level: float,
    ceiling: float,
    *,
    reached: bool,
    refuses: bool | None = None,
    per_second: float | None = None,
) -> LimitRow:
    """Describe a ceiling; one that is reached refuses, unless it is said that it does not."""
    return {
        "limit": limit,
        "level": level,
        "ceiling": ceiling,
        "per_second": per_second,
        "reached": reached,
        "refuses": reached if refuses is None else refuses,
        "order": None,
    }


PANIC: Final = "; too few are usable for its ejection to be heeded"

FULL: Final = "has all the flows it may have"

CHOSEN: Final[dict[Balance, str]] = {
    Balance.ROUND_ROBIN: "its turn is next",
    Balance.LEAST_FLOWS: "fewest flows for its weight",
    Balance.RANDOM: "may be drawn",
    Balance.FIRST: "the first that is usable",
    Balance.SOURCE: "the one of this source",
    Balance.MAGLEV: "the one of this source",
}


def candidate_rows(
    upstream: Upstream,
    balance: Balance,
    foreseen: Collection[Endpoint],
    rows: Sequence[AddressSnapshot],
) -> list[CandidateRow]:
    """Who might be chosen, and why, or why not.

    Args:
        upstream: whose endpoints.
        balance: how they are chosen.
        foreseen: what the upstream foresees.
        rows: one for each of its endpoints.

    """
    return [
        {
            **row,
            "endpoint": endpoint.name,
            "usable": endpoint in upstream.usable and not endpoint.is_full,
            "next": endpoint in foreseen,
            "why": (CHOSEN[balance] if endpoint in foreseen else _why_not(endpoint, upstream, row))
            + (PANIC if endpoint in upstream.usable and endpoint.ejected else ""),
        }
        for endpoint, row in zip(upstream.endpoints, rows, strict=True)
    ]


def _why_not(endpoint: Endpoint, upstream: Upstream, row: AddressSnapshot) -> str:
    """Why the next flow does not get an endpoint."""
    if endpoint in upstream.usable:
        return FULL if endpoint.is_full else "asked if others fail"
    if endpoint.condition.is_usable and endpoint.backup:
        return "a backup: asked if all others fail"
    return f"{row['condition']}: {row['reason']}" if row["reason"] else row["condition"]
