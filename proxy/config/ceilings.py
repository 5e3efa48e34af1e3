"""What is wrong between the limits of a listener: what can never be reached, or means nothing.

Like all of ``whole`` it reads the raw document: what is wrong by itself is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from proxy.config.prefixes import parse_prefix
from proxy.config.problem import Path, shown
from proxy.core.address import Network

Fault: TypeAlias = tuple[Path, str]
Table: TypeAlias = dict[str, Any]

TABLE_LIMIT_DEFAULT: Final = 100_000
PREFIX_DEFAULTS: Final = {4: 32, 6: 64}


def ceiling_faults(name: str, listener: Table, engine: Table) -> Iterator[Fault]:
    """Check the limits and the access lists of a listener.

    Args:
        name: of the listener.
        listener: its table.
        engine: the table [engine].

    """
    path = ("listener", name)
    limits = _table(listener.get("limits"))
    per_source = _table(limits.get("per_source"))
    yield from _bursts((*path, "limits"), limits)
    yield from _bursts((*path, "limits", "per_source"), per_source)
    yield from _weights((*path, "limits", "weights"), limits, per_source)
    table_limit = _whole(engine.get("table_limit", TABLE_LIMIT_DEFAULT))
    flows = _whole(limits.get("flows"))
    if flows and table_limit and flows > table_limit:
        message = f"{flows} are never reached: engine.table_limit is {table_limit}; raise that"
        yield (*path, "limits", "flows"), message
    source_flows = _whole(per_source.get("flows"))
    if source_flows and flows and source_flows > flows:
        message = f"{source_flows} are never reached: limits.flows is {flows}; lower this"
        yield (*path, "limits", "per_source", "flows"), message
    yield from _allowed_and_denied(path, listener)


def _bursts(path: Path, table: Table) -> Iterator[Fault]:
    if "burst" in table and "flow_rate" not in table:
        yield (*path, "burst"), "has no effect without flow_rate; add that, or remove this"


def _weights(path: Path, limits: Table, per_source: Table) -> Iterator[Fault]:
    weights = _table(limits.get("weights"))
    if weights and "bandwidth" not in limits:
        yield path, "has no effect without bandwidth; add that, or remove this"
    seen: dict[Network, str] = {}
    for text in weights:
        try:
            network = parse_prefix(text)
        except ValueError:
            continue
        key = f"prefix_v{network.version}"
        bits = _whole(per_source.get(key, PREFIX_DEFAULTS[network.version]))
        if network in seen:
            yield (*path, text), f"is the same as {shown(seen[network])}; remove one of them"
        elif bits is not None and network.prefixlen > bits:
            message = f"is a part of a source: limits.per_source.{key} is {bits}; shorten this"
            yield (*path, text), message
        seen[network] = text


def _allowed_and_denied(path: Path, listener: Table) -> Iterator[Fault]:
    allow, deny = listener.get("allow"), listener.get("deny")
    if not isinstance(allow, list) or not isinstance(deny, list):
        return
    allowed = {item for item in allow if isinstance(item, str)}
    for index, item in enumerate(deny):
        if isinstance(item, str) and item in allowed:
            yield (*path, "deny", index), f"{shown(item)} is in allow, too; remove one of them"


def _table(value: object) -> Table:
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
