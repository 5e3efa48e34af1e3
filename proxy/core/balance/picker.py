"""What every way of choosing has in common.

A picker is told the usable endpoints when they change, which is seldom, and asked for one with each
new flow, which is often: what can be worked out beforehand, is. It reads no clock, and what chance
decides comes from a generator that it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.sources import SourceKey


class Pick(Protocol):
    """Chooses an endpoint for a flow."""

    def __call__(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> Endpoint | None:
        """Choose one.

        Args:
            tried: those that are not to be chosen: they have failed this flow.
            source: the key of the client's source; only some ways ask for it.
            now: monotonic seconds.

        """
        ...


class Picker(Protocol):
    """A way of choosing."""

    @property
    def by_source(self) -> bool:
        """Whether it asks for the client's source."""
        ...

    @property
    def pick(self) -> Pick:
        """Chooses an endpoint; None if none is left."""
        ...

    def foresee(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> tuple[Endpoint, ...]:
        """Of whom the next pick would be one; changes nothing.

        It is one, unless chance decides; none, if ``pick`` would find none. Arguments as of
        ``Pick``.
        """
        ...

    def become(self, endpoints: Sequence[Endpoint]) -> None:
        """Choose among these from now on, in the order of the configuration."""
        ...
