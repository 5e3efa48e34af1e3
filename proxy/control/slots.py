"""Which listener has which slot of the memory that all workers share; see ``engine.commons``.

A listener has one while it has ceilings as a whole, by its name. A slot that becomes free is
cleared when it goes to another, and the one that has been free longest goes first, so that a worker
that has yet to hear of the change does not tell of the former listener there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.engine.commons import SLOTS

if TYPE_CHECKING:
    from proxy.engine.commons import Commons
    from proxy.engine.specs import Change, ListenerSpec


class Slots:
    """The slots of a crew. Owns the mapping.

    Args:
        commons: the memory.

    """

    def __init__(self, commons: Commons) -> None:
        self._commons = commons
        self._by_name: dict[str, int] = {}
        self._free = deque(range(SLOTS))

    def given(self, change: Change) -> Change:
        """A change whose listeners know their slots."""
        for name in change.closed:
            self._give_back(name)
        return replace(
            change,
            opened=tuple(each._replace(spec=self._placed(each.spec)) for each in change.opened),
            changed=tuple(map(self._placed, change.changed)),
        )

    def lost(self, index: int) -> None:
        """Have a worker that has ended have no flows."""
        for slot in self._by_name.values():
            self._commons.leave(slot, index)

    def close(self) -> None:
        """Unmap the memory."""
        self._commons.close()

    def _placed(self, spec: ListenerSpec) -> ListenerSpec:
        if not spec.is_limited_whole:
            self._give_back(spec.name)
            return spec
        slot = self._by_name.get(spec.name)
        if slot is None:
            slot = self._by_name[spec.name] = self._free.popleft()
            self._commons.clear(slot)
        return replace(spec, slot=slot)

    def _give_back(self, name: str) -> None:
        slot = self._by_name.pop(name, None)
        if slot is not None:
            self._free.append(slot)
