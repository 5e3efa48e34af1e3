"""What a life of ours leaves to the next beside its flows: what was ordered, and what was counted.

Workers keep it, as JSON that they do not look into, because they are what outlives a supervisor.
What a successor cannot read of it, it does without.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.core.condition import Administration
from proxy.core.order_json import OrderError, read_order, write_order
from proxy.engine.specs import EndpointOrder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from proxy.core.live_limit import LiveLimit
    from proxy.engine.port import RelayCounters


class Estate(NamedTuple):
    """What is left.

    Attributes:
        orders: limits in force.
        disabled: endpoints that get no new flows.
        past: readings of those who had ended before the last life did; to be checked by whoever
            adds them.

    """

    orders: tuple[LiveLimit, ...] = ()
    disabled: tuple[EndpointOrder, ...] = ()
    past: tuple[Any, ...] = ()


def write_estate(
    orders: Iterable[LiveLimit],
    disabled: Iterable[EndpointOrder],
    past: Sequence[RelayCounters],
) -> dict[str, Any]:
    """What is left, to be written as JSON."""
    return {
        "orders": [write_order(order) for order in orders],
        "disabled": [[order.upstream, order.endpoint] for order in disabled],
        "past": list(past),
    }


def read_estate(written: dict[str, Any]) -> Estate:
    """Read what can be read of it."""
    return Estate(
        tuple(_orders(_list(written, "orders"))),
        tuple(_disabled(_list(written, "disabled"))),
        tuple(_list(written, "past")),
    )


def _list(written: dict[str, Any], key: str) -> list[Any]:
    found = written.get(key)
    return found if isinstance(found, list) else []


def _orders(rows: Iterable[Any]) -> Iterator[LiveLimit]:
    for row in rows:
        with suppress(OrderError):
            yield read_order(row)


def _disabled(rows: Iterable[Any]) -> Iterator[EndpointOrder]:
    for row in rows:
        with suppress(TypeError, ValueError):
            upstream, endpoint = row
            yield EndpointOrder(str(upstream), str(endpoint), Administration.DISABLED)
