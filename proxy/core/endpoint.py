"""An endpoint: one address of an upstream, its condition, its share and its live flows.

It is resolved: it has one socket address. Its name is what the configuration says, and is the
metric label; a name that resolves to several addresses is several endpoints, which share the name
and its counters, and have each their own condition and their own live flows.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from proxy.core.condition import CONDITIONS, Administration, Condition, Health
from proxy.core.counters import EndpointCounters
from proxy.core.ejection import Record

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.upstream import Upstream

WEIGHT_MAX: Final = 256
"""As much as one endpoint can be of another; more is better said by another upstream."""


ENABLED: Final = Administration.ENABLED

STEPS: Final = 20
"""In which the share of an endpoint that starts slowly grows: from a twentieth, by a twentieth."""


class Endpoint:
    """One address of an upstream, with its condition and its part of the flows.

    What it is in the configuration may change (``weight``, ``backup``); it is the same endpoint for
    as long as name and address are.

    Attributes:
        name: what the configuration calls it.
        address: where it is.
        counters: of its name.
        weight: its part of the flows beside others, as configured.
        share: the same, as it is now.
        backup: whether it is asked only while no other can be.
        ceiling: flows that it may have at once.
        kin: usable endpoints of its name that are of the other IP version.
        warm_from: when it began to be usable, monotonic seconds; minus infinity if it always was.
        flows: live ones, of this address, and those that are being connected.
        administration: what operators want of it.
        health: what active checks say.
        reason: why, in a few words.
        ejected: whether it is, for what flows met with.
        record: of what flows met with; None if nobody asks.
        condition: what follows from these three.
        since: when it came into this condition, monotonic seconds; 0 if it was never in another.
        upstream: which is told of changes; None for an endpoint of a single flow.

    """

    __slots__ = (
        "address",
        "administration",
        "backup",
        "ceiling",
        "condition",
        "counters",
        "ejected",
        "flows",
        "health",
        "kin",
        "name",
        "reason",
        "record",
        "share",
        "since",
        "upstream",
        "warm_from",
        "weight",
    )

    def __init__(
        self,
        upstream: str,
        name: str,
        address: Address,
        counters: EndpointCounters | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self.counters = counters or EndpointCounters(upstream, name)
        self.weight = self.share = 1
        self.backup = False
        self.ceiling = inf
        self.warm_from = -inf
        self.kin: tuple[Endpoint, ...] = ()
        self.flows = 0
        self.administration = Administration.ENABLED
        self.health = Health.UNKNOWN
        self.reason = ""
        self.ejected = False
        self.record: Record | None = None
        self.condition = Condition.UNKNOWN
        self.since = 0.0
        self.upstream: Upstream | None = None

    @property
    def is_full(self) -> bool:
        """Whether it has all the flows that it may have."""
        return self.flows >= self.ceiling

    @property
    def is_failing(self) -> bool:
        """Whether flows fail so often that it is ejected, or would be if it might."""
        return self.record is not None and bool(self.record.verdict)

    def is_shunned(self, now: float) -> bool:
        """Whether datagrams pass it over."""
        return self.upstream is not None and self in self.upstream.shunned(now)

    def become(self, weight: int, *, backup: bool, ceiling: float = inf) -> None:
        """Be as configured from now on; ``Upstream.become`` follows, which sees to the rest."""
        self.weight = self.share = weight
        self.backup = backup
        self.ceiling = ceiling

    def take(self) -> None:
        """Have one flow more, which is being connected."""
        self.flows += 1
        if self.flows == self.ceiling and self.upstream is not None:
            self.upstream.filled(self)

    def leave(self, now: float) -> None:
        """Have one flow less: it has ended, or could not be connected."""
        if self.flows == self.ceiling and self.upstream is not None:
            self.upstream.freed(self)
        self.flows -= 1

    def administer(self, administration: Administration, now: float) -> None:
        """Follow the orders of operators."""
        self.administration = administration
        self._look_again(now)

    def set_health(self, health: Health, reason: str, now: float) -> None:
        """Know what active checks say, and why."""
        self.health = health
        self.reason = reason
        self._look_again(now)

    def try_eject(self, reason: str, now: float) -> bool:
        """Take no new flows for what flows met with; false if that may not be."""
        if self.record is None or self.ejected or self.upstream is None:
            return False
        if not self.upstream.may_eject(self, self.record.terms.most_percent):
            self.upstream.shun_until(self.record.shun(now))
            return False
        self.record.eject(reason, now)
        self.counters.ejections += 1
        self.eject(now)
        return True

    def eject(self, now: float, *, ejected: bool = True) -> None:
        """Take no new flows for what flows met with, or take them again."""
        self.ejected = ejected
        self._look_again(now)

    def come_back(self, now: float) -> bool:
        """Be no longer ejected, if the time is over, and tell; the upstream looks again then."""
        if not self.ejected or (self.record is not None and now < self.record.until):
            return False
        self.ejected = False
        if self.record is not None:
            self.record.come_back()
        self._settle(now)
        return True

    def _look_again(self, now: float) -> None:
        if self._settle(now) and self.upstream is not None:
            self.upstream.look_again(now)

    def _settle(self, now: float) -> bool:
        """Be in the condition that follows; tell whether it is another."""
        condition = CONDITIONS[self.administration, self.health, self.ejected]
        if condition is self.condition:
            return False
        before, self.condition = self.condition, condition
        self.since = now
        if before.is_usable is not condition.is_usable:
            self.warm_from = now if condition.is_usable else -inf
        return True
