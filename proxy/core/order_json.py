"""Orders as JSON, so that they outlive the process that knows them; see ``live_limit``.

Of a query only what an order may name is written. Times are as they stand: monotonic seconds are
the same for all processes of a host until it is started again.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from math import inf
from typing import TYPE_CHECKING, Any

from proxy.core.live_limit import LimitValues, LiveLimit
from proxy.core.query import FlowQuery
from proxy.core.unix import UnixAddress

if TYPE_CHECKING:
    from proxy.core.address import Address, Network


class OrderError(ValueError):
    """What was read is no order."""


def write_order(order: LiveLimit) -> dict[str, Any]:
    """An order, to be written as JSON."""
    query = order.query
    return {
        "number": order.number,
        "listener": query.listener,
        "client": _write_place(query.client),
        "endpoint": _write_place(query.endpoint),
        "id": query.id,
        "values": list(order.values),
        "by": order.by,
        "since": order.since,
        "until": order.until,
        "expires": None if order.expires == inf else order.expires,
    }


def read_order(written: Any) -> LiveLimit:
    """Read what ``write_order`` has written.

    Raises:
        OrderError: it is none.

    """
    try:
        query = FlowQuery(
            listener=written["listener"],
            client=_read_place(written["client"]),
            endpoint=_read_place(written["endpoint"]),
            id=written["id"],
        )
        expires = written["expires"]
        return LiveLimit(
            number=int(written["number"]),
            query=query,
            values=LimitValues(*written["values"]),
            by=str(written["by"]),
            since=float(written["since"]),
            until=written["until"],
            expires=inf if expires is None else float(expires),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise OrderError(f"not an order: {error!r}") from error


def _write_place(place: Network | Address | None) -> str | list[Any] | None:
    if isinstance(place, UnixAddress):
        return [place.name]
    if isinstance(place, tuple):
        return list(place)
    return None if place is None else str(place)


def _read_place(place: Any) -> Network | Address | None:
    if place is None:
        return None
    if isinstance(place, str):
        network: IPv4Network | IPv6Network = ip_network(place)
        return network
    if len(place) == 1:
        return UnixAddress(place[0])
    host, port, *scope = place
    return (host, port) if not scope else (host, port, scope[0], scope[1])
