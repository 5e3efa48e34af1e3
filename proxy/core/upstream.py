"""Upstreams, their endpoints, and which of these are usable.

An endpoint here is resolved: it has one socket address. Its name is what the configuration says,
and is the metric label; a name that resolves to several addresses is several endpoints, which share
the name and its counters, and have each their own condition and their own live flows.

Who is asked for new flows is worked out when the condition of an endpoint changes, not when a flow
comes: choosing costs the same whether all endpoints are well or none. Backups are usable only while
nobody else is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from proxy.core.balance.turns import Turns
from proxy.core.condition import CONDITIONS, Administration, Condition, Health
from proxy.core.counters import EndpointCounters

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.balance.picker import Pick, Picker
    from proxy.core.flow import CloseReason
    from proxy.core.sources import SourceKey

ORIGINAL: Final = "original"
"""The name, and the metric label, of the one endpoint that stands for original destinations."""

NOWHERE: Final = ("0.0.0.0", 0)  # noqa: S104 - nobody connects to it

WEIGHT_MAX: Final = 256
"""As much as one endpoint can be of another; more is better said by another upstream."""


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
        flows: live ones, of this address, and those that are being connected.
        administration: what operators want of it.
        health: what active checks say.
        reason: why, in a few words.
        ejected: whether it is, for what flows met with.
        condition: what follows from these three.
        since: when it came into this condition, monotonic seconds; 0 if it was never in another.
        upstream: which is told of changes; None for an endpoint of a single flow.

    """

    __slots__ = (
        "address",
        "administration",
        "backup",
        "condition",
        "counters",
        "ejected",
        "flows",
        "health",
        "name",
        "reason",
        "share",
        "since",
        "upstream",
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
        self.flows = 0
        self.administration = Administration.ENABLED
        self.health = Health.UNKNOWN
        self.reason = ""
        self.ejected = False
        self.condition = Condition.UNKNOWN
        self.since = 0.0
        self.upstream: Upstream | None = None

    def become(self, weight: int, *, backup: bool) -> None:
        """Be as configured from now on; ``Upstream.become`` follows, which sees to the shares."""
        self.weight = self.share = weight
        self.backup = backup

    def take(self) -> None:
        """Have one flow more, which is being connected."""
        self.flows += 1

    def leave(self, now: float) -> None:
        """Have one flow less: it has ended, or could not be connected."""
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

    def eject(self, now: float, *, ejected: bool = True) -> None:
        """Take no new flows for what flows met with, or take them again."""
        self.ejected = ejected
        self._look_again(now)

    def _look_again(self, now: float) -> None:
        condition = CONDITIONS[self.administration, self.health, self.ejected]
        if condition is not self.condition:
            before, self.condition = self.condition, condition
            self.since = now
            if self.upstream is not None and before.is_usable is not condition.is_usable:
                self.upstream.look_again()


class MulticastPath(NamedTuple):
    """How datagrams go to endpoints that are multicast groups.

    Attributes:
        interface: the name of the one to send through; None leaves it to routing.
        ttl: routers they may pass, and one: 1 stays on the link.

    """

    interface: str | None = None
    ttl: int = 1


HOME: Final = MulticastPath()


class OriginalCounters(EndpointCounters):
    """The counters of all original destinations together.

    That one of them cannot be reached says nothing about the others, so they are never down.
    """

    __slots__ = ()

    def attempt_failed(self, reason: CloseReason, now: float) -> None:
        """Count a connection attempt that ended without a connection."""
        self.failures[reason] += 1


class Choice(Protocol):
    """What a flow asks of its upstream."""

    @property
    def by_source(self) -> bool:
        """Whether the choice depends on the client's source, which ``pick`` is then told."""
        ...

    @property
    def multicast(self) -> MulticastPath:
        """The way to endpoints that are groups."""
        ...

    @property
    def pick(self) -> Pick:
        """Chooses an endpoint for a flow; None if none is left."""
        ...


class Upstream:
    """A named set of endpoints, and a way of choosing among them.

    One picker serves all listeners that share the upstream, so that the endpoints' shares are
    right over all of them.

    Attributes:
        endpoints: all of them, in the order of the configuration.
        usable: those that new flows may go to.
        multicast: the way to those that are groups.
        by_source: whether the choice depends on the client's source.
        pick: chooses an endpoint for a flow: the picker's own method, for one call less.

    """

    __slots__ = ("_picker", "by_source", "endpoints", "multicast", "name", "pick", "usable")

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        multicast: MulticastPath = HOME,
        picker: Picker | None = None,
    ) -> None:
        self.name = name
        self.multicast = multicast
        self._picker: Picker = picker or Turns()
        self.by_source = False
        self.pick: Pick
        self.endpoints: tuple[Endpoint, ...] = ()
        self.usable: tuple[Endpoint, ...] = ()
        self.become(endpoints, multicast)

    def become(
        self, endpoints: Sequence[Endpoint], multicast: MulticastPath, picker: Picker | None = None
    ) -> None:
        """Have these endpoints from now on; the turn goes on where it is, unless the way is new."""
        for endpoint in self.endpoints:
            endpoint.upstream = None
        self.endpoints = tuple(endpoints)
        for endpoint in self.endpoints:
            endpoint.upstream = self
        self.multicast = multicast
        self._picker = picker or self._picker
        self.look_again()

    def called(self, name: str) -> list[Endpoint]:
        """The endpoints of this name: as many as it has addresses."""
        return [each for each in self.endpoints if each.name == name]

    def look_again(self) -> None:
        """Find who is usable: what decides it has changed."""
        usable = [each for each in self.endpoints if each.condition.is_usable]
        self.usable = tuple([each for each in usable if not each.backup] or usable)
        self._picker.become(self.usable)
        self.by_source = self._picker.by_source
        self.pick = self._picker.pick


class OriginalUpstream(Upstream):
    """An upstream whose flows go where their clients meant to go before they were diverted."""

    __slots__ = ()

    def __init__(self, name: str, counters: EndpointCounters | None = None) -> None:
        counters = counters or OriginalCounters(name, ORIGINAL)
        super().__init__(name, [Endpoint(name, ORIGINAL, NOWHERE, counters)])

    def towards(self, address: Address) -> SoleUpstream:
        """The upstream of one flow: its destination is the only endpoint."""
        endpoint = Endpoint(self.name, ORIGINAL, address, self.endpoints[0].counters)
        return SoleUpstream(endpoint, self.multicast)


class SoleUpstream:
    """What a flow asks of its upstream, where that has one endpoint, for this flow alone.

    It holds no reference to itself, as an upstream does by its picker: there is one for each flow,
    and cycles are not collected often.
    """

    __slots__ = ("_endpoint", "multicast")

    by_source: Final = False

    def __init__(self, endpoint: Endpoint, multicast: MulticastPath) -> None:
        self._endpoint = endpoint
        self.multicast = multicast

    def pick(self, tried: Collection[Endpoint], source: SourceKey, now: float) -> Endpoint | None:
        """The endpoint, unless it has been tried."""
        return None if tried else self._endpoint
