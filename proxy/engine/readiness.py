"""What a worker is not ready for: listeners that nobody can come by, upstreams without a way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from proxy.core.condition import Condition

if TYPE_CHECKING:
    from proxy.core.upstream import Upstream
    from proxy.engine.roster import Roster


def not_ready(roster: Roster, now: float, *, draining: bool) -> Iterator[str]:
    """Each of them, with what to do.

    Args:
        roster: of the worker.
        now: monotonic seconds.
        draining: whether everything drains, so that no listener is missed.

    """
    roster.upstreams.refresh(now)
    for name in () if draining else roster.closed_listeners():
        yield drained_listener(name)
    for upstream in roster.upstreams:
        asked = (*upstream.usable, *upstream.spares)
        if not any(endpoint.counters.up(now) for endpoint in asked):
            yield f'upstream "{upstream.name}": {_unusable(upstream)}'


def drained_listener(name: str) -> str:
    """Say that nobody can come by a listener, and what to do."""
    return f'listener "{name}": drained; a reload opens it again'


def _unusable(upstream: Upstream) -> str:
    if not upstream.endpoints:
        return "no endpoint has an address; the log says why"
    conditions = {each.condition for each in upstream.endpoints}
    if conditions == {Condition.DRAINING}:
        return "every endpoint drains; a reload brings them back"
    if not upstream.usable:
        found = ", ".join(sorted(conditions))
        return f"no endpoint is usable: {found}"
    return "no endpoint answered the last attempt"
