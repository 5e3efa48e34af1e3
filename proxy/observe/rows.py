"""Listeners and upstreams as the API answers them: what was counted, and what else is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from proxy.core.address import Transport
from proxy.core.address_rows import is_up
from proxy.core.sample_counters import slowed_by

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.core.counters import EndpointSnapshot, ListenerSnapshot
    from proxy.core.queue_counters import QueueSnapshot
    from proxy.engine.port import CheckRow, RelayCounters, RelayStatus


def listener_rows(status: RelayStatus, counters: RelayCounters) -> list[dict[str, Any]]:
    """Each listener: where it listens, and what its flows have done."""
    return [_listener_row(row, status) for row in counters["listeners"]]


def _listener_row(row: ListenerSnapshot, status: RelayStatus) -> dict[str, Any]:
    sockets = [each for each in status["listening"] if each["listener"] == row["listener"]]
    return {
        **row,
        "original": _direction(row, "original"),
        "reply": _direction(row, "reply"),
        "slowed_by": slowed_by(row["samples"]),
        "listening": [socket["local"] for socket in sockets],
        "survive": next((socket["survive"] for socket in sockets), None),
    }


def _direction(row: ListenerSnapshot, name: Literal["original", "reply"]) -> dict[str, Any]:
    """One direction; packets are None for streams, as in a flow: the kernel hides them."""
    values: dict[str, Any] = {**row[name]}
    if not Transport(row["transport"]).is_datagram:
        values |= {"packets_received": None, "packets_sent": None}
    return values


def upstream_rows(counters: RelayCounters, checks: Iterable[CheckRow]) -> list[dict[str, Any]]:
    """Each upstream's endpoints and queue, and with each address what its last check showed."""
    queues = {each["upstream"]: _without_name(each) for each in counters["queues"]}
    found = {(each["upstream"], each["endpoint"], each["address"]): each for each in checks}
    upstreams: dict[str, list[dict[str, Any]]] = {}
    for row in counters["endpoints"]:
        endpoint = _without_name(row)
        last = [
            found.get((row["upstream"], row["endpoint"], each["address"]))
            for each in row["addresses"]
        ]
        endpoint["up"] = is_up(row, [check["health"] for check in last if check])
        endpoint["addresses"] = [
            {**each, "check": check} for each, check in zip(row["addresses"], last, strict=True)
        ]
        upstreams.setdefault(row["upstream"], []).append(endpoint)
    return [
        {"upstream": name, "endpoints": rows, "queue": queues.get(name)}
        for name, rows in upstreams.items()
    ]


def _without_name(row: EndpointSnapshot | QueueSnapshot) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "upstream"}
