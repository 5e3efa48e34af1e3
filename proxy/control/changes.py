"""What workers are told when one configuration takes the place of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.control.specs import listener_spec, pace_of
from proxy.engine.specs import Change, OpenListener

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from proxy.config.model import Config
    from proxy.control.sockets import Bound
    from proxy.engine.specs import UpstreamSpec

NONE_BOUND: Final[Mapping[str, Bound]] = {}


def change_to(
    config: Config,
    upstreams: Mapping[str, UpstreamSpec],
    bound: Mapping[str, Bound],
    before: Mapping[str, Bound] = NONE_BOUND,
    drained: Collection[str] = (),
) -> Change:
    """What has to become of a worker.

    Args:
        config: what it shall do.
        upstreams: of that, by name.
        bound: the sockets of all its listeners, by name.
        before: those that it has; none if it begins.
        drained: the names of listeners that take nobody there, and shall again.

    """
    opened, changed = [], []
    for name, (listener, sockets) in bound.items():
        former = before.get(name)
        if former is None or former.sockets is not sockets or name in drained:
            opened.append(OpenListener(listener_spec(name, listener), sockets))
        elif former.listener != listener:
            changed.append(listener_spec(name, listener))
    return Change(
        upstreams=tuple(upstreams.values()),
        opened=tuple(opened),
        changed=tuple(changed),
        closed=tuple(name for name in before if name not in bound),
        pace=pace_of(config.engine),
        table_limit=config.engine.table_limit,
        recent=config.engine.recent,
        sample_rate=config.engine.sample_rate,
    )
