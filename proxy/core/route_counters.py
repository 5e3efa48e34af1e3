"""How many flows took each route of a listener, where its routes are counted.

Only patterns of the configuration are counted, never the names that clients ask for: those are
without bound, and whoever chooses them would choose our metric labels.
"""

from __future__ import annotations

from typing import Final, TypedDict

ELSE: Final = "*"
"""The route of those who have none; no pattern is written so."""


class RouteCounters:
    """One route of a listener in numbers.

    Attributes:
        route: its pattern as text, or ``ELSE``.
        flows: those that took it.

    """

    __slots__ = ("flows", "listener", "route")

    def __init__(self, listener: str, route: str) -> None:
        self.listener = listener
        self.route = route
        self.flows = 0

    @property
    def is_busy(self) -> bool:
        """Never: a flow is counted when it takes the route, and not again."""
        return False

    def snapshot(self) -> RouteSnapshot:
        """Return a copy as plain values."""
        return {"listener": self.listener, "route": self.route, "flows": self.flows}


class RouteSnapshot(TypedDict):
    """``RouteCounters`` as plain values."""

    listener: str
    route: str
    flows: int


def add_routes(one: RouteSnapshot, other: RouteSnapshot) -> RouteSnapshot:
    """Add up what two workers say of one route."""
    return {**one, "flows": one["flows"] + other["flows"]}
