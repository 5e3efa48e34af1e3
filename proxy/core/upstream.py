"""Upstreams: which of their endpoints are usable, and how one of them is chosen.

Who is asked for new flows is worked out when the condition of an endpoint changes, not when a flow
comes: choosing costs the same whether all endpoints are well or none. Backups are usable only while
nobody else is. Until then they are *spares*: a flow that all others have failed is given one, so
that it need not wait until those are known to be ill.

Two things change all the time, and are looked at with each flow, but only in an upstream that has
them. An endpoint that is full, as its flows have reached its *ceiling*, is passed over: it is still
usable, so backups stay out, and tables stay as they are. And an endpoint that has become usable
again starts slowly, if it shall: its share grows, in ``STEPS``, to its weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from proxy.core.balance.turns import Turns
from proxy.core.condition import USABLE, Condition
from proxy.core.ejection import EjectionTerms, Record
from proxy.core.endpoint import ENABLED, STEPS

if TYPE_CHECKING:
    from proxy.core.balance.picker import Pick, Picker
    from proxy.core.endpoint import Endpoint
    from proxy.core.sources import SourceKey


class MulticastPath(NamedTuple):
    """How datagrams go to endpoints that are multicast groups.

    Attributes:
        interface: the name of the one to send through; None leaves it to routing.
        ttl: routers they may pass, and one: 1 stays on the link.

    """

    interface: str | None = None
    ttl: int = 1


HOME: Final = MulticastPath()


class Waiter(Protocol):
    """A flow that waits for an endpoint."""

    @property
    def has_tried(self) -> bool:
        """Whether some endpoint is out of the question, which others may wait for."""
        ...

    def resume(self, now: float) -> bool:
        """Go on, if some endpoint has room; false if none has."""
        ...

    def give_up(self, now: float) -> None:
        """Wait no more."""
        ...


class Queue(Protocol):
    """Where flows wait for an endpoint that is full."""

    def __len__(self) -> int:
        """How many wait."""
        ...

    def join(self, waiter: Waiter, now: float) -> bool:
        """Have a flow wait; false if too many do."""
        ...

    def leave(self, waiter: Waiter) -> None:
        """Have a flow wait no more, if it does."""
        ...

    def room(self) -> None:
        """Know that somebody may find an endpoint now."""
        ...


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

    @property
    def usable(self) -> tuple[Endpoint, ...]:
        """Those who are asked."""
        ...

    @property
    def queue(self) -> Queue | None:
        """Where flows wait for an endpoint that is full."""
        ...

    @property
    def spares(self) -> tuple[Endpoint, ...]:
        """Backups, while others are asked."""
        ...

    def stand_in(self, tried: Collection[Endpoint]) -> Endpoint | None:
        """A spare for a flow for which ``pick`` finds nobody; None if there is none."""
        ...

    def shunned(self, now: float) -> tuple[Endpoint, ...]:
        """Those that datagrams pass over, as long as somebody else is left."""
        ...

    def has_room_later(self, tried: Collection[Endpoint]) -> bool:
        """Whether some endpoint was not picked only because it is full."""
        ...


class Upstream:
    """A named set of endpoints, and a way of choosing among them.

    One picker serves all listeners that share the upstream, so that the endpoints' shares are
    right over all of them.

    Attributes:
        endpoints: all of them, in the order of the configuration.
        usable: those that new flows may go to.
        spares: backups that could be asked, while these are.
        multicast: the way to those that are groups.
        by_source: whether the choice depends on the client's source.
        pick: chooses an endpoint for a flow: the picker's own method, for one call less, unless
            there are ceilings, or somebody starts slowly.
        slow_start: seconds until an endpoint that comes back has its whole share.
        ejection: when endpoints are ejected; None is never.
        closes_fallen: whether the flows of an endpoint that is down or ejected are closed.
        on_change: called when some endpoint is in another condition than before.
        on_return: called with an endpoint whose ejection is over.
        queue: where flows wait for an endpoint that is full; None lets none wait.

    """

    __slots__ = (
        "_full",
        "_picker",
        "_shun_until",
        "_step_at",
        "by_source",
        "closes_fallen",
        "ejection",
        "endpoints",
        "multicast",
        "name",
        "on_change",
        "on_return",
        "pick",
        "queue",
        "slow_start",
        "spares",
        "usable",
    )

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        multicast: MulticastPath = HOME,
        picker: Picker | None = None,
    ) -> None:
        self.name = name
        self.multicast = multicast
        self.slow_start = 0.0
        self.queue: Queue | None = None
        self.ejection: EjectionTerms | None = None
        self.closes_fallen = False
        self.on_change: Callable[[Upstream], None] | None = None
        self.on_return: Callable[[Endpoint], None] | None = None
        self._picker: Picker = picker or Turns()
        self._full: tuple[Endpoint, ...] = ()
        self._shun_until = -inf
        self._step_at = inf
        self.by_source = False
        self.pick: Pick
        self.endpoints: tuple[Endpoint, ...] = ()
        self.usable: tuple[Endpoint, ...] = ()
        self.spares: tuple[Endpoint, ...] = ()
        self.become(endpoints, multicast)

    def become(
        self,
        endpoints: Sequence[Endpoint],
        multicast: MulticastPath,
        picker: Picker | None = None,
        slow_start: float = 0.0,
        now: float = -inf,
    ) -> None:
        """Have these endpoints from now on; the turn goes on where it is, unless the way is new."""
        for endpoint in self.endpoints:
            endpoint.upstream = None
        for endpoint in endpoints:
            endpoint.upstream = self
            self._keep_record(endpoint)
            if endpoint not in self.endpoints and endpoint.condition.is_usable:
                endpoint.warm_from = now
        self.endpoints = tuple(endpoints)
        self.multicast = multicast
        self.slow_start = slow_start
        self._picker = picker or self._picker
        self.look_again(now)

    def _keep_record(self, endpoint: Endpoint) -> None:
        terms = self.ejection
        if terms is None or not (terms.failures or terms.failure_percent):
            endpoint.record = None
        elif endpoint.record is None:
            endpoint.record = Record(terms)
        else:
            endpoint.record.terms = terms

    def called(self, name: str) -> list[Endpoint]:
        """The endpoints of this name: as many as it has addresses."""
        return [each for each in self.endpoints if each.name == name]

    def judge_by(self, terms: EjectionTerms | None) -> None:
        """Eject endpoints by these terms from now on; ``become`` follows, which heeds it."""
        self.ejection = terms

    def may_eject(self, endpoint: Endpoint, most_percent: int) -> bool:
        """Whether one more endpoint may be ejected: this one."""
        enabled = [each for each in self.endpoints if each.administration is ENABLED]
        ejected = sum(each.ejected for each in enabled)
        return 100 * (ejected + 1) <= most_percent * len(enabled) or self._is_covered(endpoint)

    def _is_covered(self, endpoint: Endpoint) -> bool:
        """Whether spares can do without an endpoint, as nobody is well whom they stand in for."""
        return bool(self.spares) and all(each.is_failing for each in {*self.usable} - {endpoint})

    def shun_until(self, when: float) -> None:
        """Know that datagrams pass somebody over until then."""
        self._shun_until = when

    def shunned(self, now: float) -> tuple[Endpoint, ...]:
        """Those that fail flows and may not be ejected; nobody if that is all."""
        if now >= self._shun_until:
            return ()
        found = [
            each
            for each in self.usable
            if each.is_failing and each.record is not None and now < each.record.shunned_until
        ]
        return tuple(found) if len(found) < len(self.usable) else ()

    @property
    def back_at(self) -> float:
        """When the next ejection ends, monotonic seconds; never if nobody is ejected."""
        ends = (each.record.until for each in self.endpoints if each.ejected and each.record)
        return min(ends, default=inf)

    def refresh(self, now: float) -> None:
        """Have those back whose ejection is over, though no flow has asked for them."""
        if now >= self._step_at:
            self.look_again(now)

    def look_again(self, now: float) -> None:
        """Find who is usable, and each one's share: what decides it has changed."""
        returned = [each for each in self.endpoints if each.come_back(now)]
        usable = self._usable()
        self.usable = tuple([each for each in usable if not each.backup] or usable)
        self.spares = tuple(each for each in usable if each not in self.usable)
        self._full = tuple(each for each in self.usable if each.is_full)
        _find_kin(self.usable)
        _find_kin(self.spares)
        stepping = self._share_out(now)
        self._picker.become(self.usable)
        self.by_source = self._picker.by_source
        watched = stepping or any(each.ceiling < inf for each in self.usable)
        self.pick = self._pick_watched if watched else self._picker.pick
        self._tell_room()
        if self.on_change is not None:
            self.on_change(self)
        if self.on_return is not None:
            for each in returned:
                self.on_return(each)

    def _usable(self) -> list[Endpoint]:
        """Those in a usable condition; and, if they are too few, those that are ejected.

        Backups alone are not too few: they are there for when nobody else is well.
        """
        usable = [each for each in self.endpoints if each.condition.is_usable]
        if self.ejection is None:
            return usable
        backups = sum(each.backup for each in usable)
        if backups and backups == len(usable) and not all(each.backup for each in self.endpoints):
            return usable
        enabled = sum(each.administration is ENABLED for each in self.endpoints)
        if 100 * len(usable) >= self.ejection.panic_percent * enabled:
            return usable
        heeded = USABLE | {Condition.EJECTED}
        return [each for each in self.endpoints if each.condition in heeded]

    def foresee(
        self, source: SourceKey, now: float, passed: Collection[Endpoint] = ()
    ) -> tuple[Endpoint, ...]:
        """Of whom the next flow would get one, if all answer; changes nothing.

        What time alone has changed is not seen: ``refresh`` comes before. See ``Picker.foresee``.
        """
        return self._picker.foresee((*self._full, *passed), source, now)

    def stand_in(self, tried: Collection[Endpoint]) -> Endpoint | None:
        """The spare with the fewest flows for its weight; None while somebody is only full."""
        if not self.spares or self.has_room_later(tried):
            return None
        left = [each for each in self.spares if each not in tried and not each.is_full]
        return min(left, key=lambda each: each.flows / each.weight, default=None)

    def has_room_later(self, tried: Collection[Endpoint]) -> bool:
        """Whether some endpoint was not picked only because it is full."""
        return any(each not in tried for each in self._full)

    def filled(self, endpoint: Endpoint) -> None:
        """Know that an endpoint has all the flows it may have."""
        if endpoint in self.usable:
            self._full = (*self._full, endpoint)

    def freed(self, endpoint: Endpoint) -> None:
        """Know that an endpoint which was full is so no more."""
        self._full = tuple(each for each in self._full if each is not endpoint)
        self._tell_room()

    def _tell_room(self) -> None:
        if self.queue is not None:
            self.queue.room()

    def _pick_watched(
        self, tried: Collection[Endpoint], source: SourceKey, now: float
    ) -> Endpoint | None:
        """Choose with regard to who is full, and to who starts slowly."""
        if now >= self._step_at:
            self.look_again(now)
        if self._full:
            tried = (*tried, *self._full)
        return self._picker.pick(tried, source, now)

    def _share_out(self, now: float) -> bool:
        """Give each endpoint its share as it is now; tell whether anything changes by itself."""
        self._step_at = self.back_at
        scale = STEPS if self.slow_start else 1
        for endpoint in self.usable:
            age = now - endpoint.warm_from
            step = scale
            if self.slow_start and age < self.slow_start:
                step = 1 + int(age / self.slow_start * (STEPS - 1))
                self._step_at = min(self._step_at, now + self.slow_start / STEPS)
            endpoint.share = endpoint.weight * step
        return self._step_at < inf


def _find_kin(endpoints: Sequence[Endpoint]) -> None:
    """Have endpoints know those of their name that are of the other IP version."""
    names = Counter(each.name for each in endpoints)
    for endpoint in endpoints:
        endpoint.kin = ()
        if names[endpoint.name] > 1:
            endpoint.kin = tuple(
                each
                for each in endpoints
                if each.name == endpoint.name and _version(each) != _version(endpoint)
            )


def _version(endpoint: Endpoint) -> int:
    return 6 if ":" in endpoint.address[0] else 4
