"""What is wrong between the keys that say how an upstream shares flows out among its endpoints.

Like all of ``whole`` it reads the raw document: what is wrong by itself is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from proxy.config.problem import Path, shown

Fault: TypeAlias = tuple[Path, str]
Table: TypeAlias = dict[str, Any]

WITHOUT_WEIGHTS: Final = ("first",)
WITHOUT_SLOW_START: Final = ("first", "source", "maglev")
"""Ways by which an endpoint does not grow: the first has all, or each has its sources."""


def upstream_faults(name: str, upstream: Table) -> Iterator[Fault]:
    """Check the keys of an upstream against each other."""
    path, balance = ("upstream", name), upstream.get("balance")
    found = upstream.get("endpoints")
    tables = [
        (index, each)
        for index, each in enumerate(found if isinstance(found, list) else [])
        if isinstance(each, dict)
    ]
    without = f"has no effect with balance = {shown(balance)}; remove it"
    if balance in WITHOUT_SLOW_START and "slow_start" in upstream:
        yield (*path, "slow_start"), without
    for index, table in tables:
        if balance in WITHOUT_WEIGHTS and "weight" in table:
            yield (*path, "endpoints", index, "weight"), without
        if table.get("address") == "original":
            for key in table.keys() - {"address"}:
                yield (*path, "endpoints", index, key), 'has no effect on "original"; remove it'
    waits = upstream.get("when_full") == "wait"
    if waits and isinstance(found, list) and not any("flows" in table for _, table in tables):
        message = "has no effect: no endpoint has a ceiling; give one flows, or remove it"
        yield (*path, "when_full"), message
