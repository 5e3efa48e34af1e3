"""Routes by server name in the configuration: how they are written, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, TypeAlias

from pydantic import Field

from proxy.config.problem import Path, shown
from proxy.config.values import Name, written
from proxy.core.server_names import RoutePattern, parse_pattern

Fault: TypeAlias = tuple[Path, str]
Table: TypeAlias = dict[str, Any]

ROUTES_MAX: Final = 10_000
"""Of a listener; each holds an entry of a dictionary in every worker."""

COUNTED_MAX: Final = 1000
"""Routes of a listener that are counted: each is a series, and each worker tells it each second."""

EXAMPLE: Final = '"www.example.org", "*.example.org", ".example.org" or "/h2"'

ServerName: TypeAlias = Annotated[
    RoutePattern, *written(parse_pattern, f"text such as {EXAMPLE}", pattern="^.+$")
]

Routes: TypeAlias = Annotated[dict[ServerName, Name], Field(max_length=ROUTES_MAX)]


def route_faults(name: str, listener: Table) -> Iterator[Fault]:
    """Find routes of a listener that say the same, however they are written."""
    yield from _counted_faults(name, listener)
    seen: dict[RoutePattern, str] = {}
    for text in routes_of(listener):
        try:
            pattern = parse_pattern(text)
        except ValueError:
            continue
        if pattern in seen:
            message = f"is the same as {shown(seen[pattern])}; remove one of them"
            yield ("listener", name, "routes", text), message
        seen[pattern] = text


def _counted_faults(name: str, listener: Table) -> Iterator[Fault]:
    if listener.get("route_metrics") is not True:
        return
    place, count = ("listener", name, "route_metrics"), len(routes_of(listener))
    if not listener.get("routes"):
        yield place, "has no effect without routes; add some, or remove this"
    if count > COUNTED_MAX:
        yield place, f"is for {COUNTED_MAX} routes at most, and there are {count}; remove this"


def routes_of(listener: Table) -> dict[str, str]:
    """What can be read of the routes of a listener: upstreams by what is written before them."""
    routes = listener.get("routes")
    if not isinstance(routes, dict):
        return {}
    return {text: upstream for text, upstream in routes.items() if isinstance(upstream, str)}
