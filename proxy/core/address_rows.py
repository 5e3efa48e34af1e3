"""How the addresses of endpoints are, for people and programs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf
from typing import TYPE_CHECKING, Final

from proxy.core.address import format_address
from proxy.core.condition import Condition, Health
from proxy.core.endpoint import STEPS

if TYPE_CHECKING:
    from proxy.core.counters import AddressSnapshot, EndpointSnapshot
    from proxy.core.endpoint import Endpoint

AWAY: Final = frozenset({Condition.EJECTED, Condition.DOWN})
"""Of addresses that get no new flows for what they are, and not for what operators want."""

SEVERITY: Final = [each.value for each in Condition]
"""From what is well to what is out for good: of several workers' views the last is shown."""


def address_row(endpoint: Endpoint, now: float, offset: float) -> AddressSnapshot:
    """Describe one address.

    Args:
        endpoint: that is there.
        now: monotonic seconds.
        offset: Unix time less monotonic time.

    """
    record, condition = endpoint.record, endpoint.condition
    is_ejected = endpoint.ejected and record is not None
    scale = STEPS if endpoint.upstream is not None and endpoint.upstream.slow_start else 1
    return {
        "address": format_address(endpoint.address),
        "condition": condition.value,
        "since": round(endpoint.since + offset, 3) if endpoint.since else None,
        "reason": _reason(endpoint),
        "weight": endpoint.weight,
        "share": 100 * endpoint.share // (scale * endpoint.weight),
        "backup": endpoint.backup,
        "flows": endpoint.flows,
        "ceiling": None if endpoint.ceiling == inf else int(endpoint.ceiling),
        "ejections": record.times if record is not None else 0,
        "seconds_left": round(record.until - now, 3) if is_ejected and record else None,
    }


def _reason(endpoint: Endpoint) -> str:
    """Why it gets no new flows; or why it should get none, as they fail, and does all the same."""
    record = endpoint.record
    if endpoint.condition is Condition.DOWN and endpoint.reason:
        return endpoint.reason
    if endpoint.ejected:
        return record.reason if record is not None else ""
    spared = endpoint.condition.is_usable and record is not None and record.verdict
    return f"{spared}; not ejected, as too few would be left" if spared else ""


def is_up(endpoint: EndpointSnapshot, health: Collection[str]) -> bool:
    """Whether an endpoint is up: as ejections and checks show, and where they do not, as flows do.

    Operators have no say in it: one that is drained or disabled is as well as it was.

    Args:
        endpoint: as the workers say.
        health: what active checks say of its addresses.

    """
    conditions = {each["condition"] for each in endpoint["addresses"]}
    if conditions and conditions <= AWAY:
        return False
    if Health.UP in health:
        return True
    return endpoint["up"] and set(health) != {Health.DOWN}


def merge_addresses(rows: Iterable[AddressSnapshot]) -> list[AddressSnapshot]:
    """One row for each address of what several workers say, in the order of the first.

    Flows and ceilings add up. Each worker ejects by its own flows: the worst condition is shown.
    """
    found: dict[str, AddressSnapshot] = {}
    for row in rows:
        before = found.get(row["address"])
        found[row["address"]] = row if before is None else _added(before, row)
    return list(found.values())


def _added(one: AddressSnapshot, other: AddressSnapshot) -> AddressSnapshot:
    worse = max(one, other, key=lambda row: (SEVERITY.index(row["condition"]), row["reason"] > ""))
    ceilings = [row["ceiling"] for row in (one, other) if row["ceiling"] is not None]
    left = [row["seconds_left"] for row in (one, other) if row["seconds_left"] is not None]
    return {
        **worse,
        "since": _since(worse["condition"], one, other),
        "flows": one["flows"] + other["flows"],
        "ceiling": sum(ceilings) if ceilings else None,
        "ejections": max(one["ejections"], other["ejections"]),
        "seconds_left": max(left, default=None),
    }


def _since(condition: str, *rows: AddressSnapshot) -> float | None:
    """Since when the worst condition is this: as long as any is out, or since all are well."""
    moments = [row["since"] or 0.0 for row in rows if row["condition"] == condition]
    since = max(moments) if Condition(condition).is_usable else min(moments)
    return since or None
