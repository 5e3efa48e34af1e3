"""What is known of a name's addresses, and when it is asked for again.

A look-up brings parts, each an answer or a failure: those of a host are its address families, those
of a service (SRV) the families of each target. What is known changes by three rules:

* A part that could not be had stays as it was known: DNS that is down takes nothing away.
* A part that was answered is as the answer says.
* What all parts together hold never becomes nothing: servers that know a name no more, or that have
  no address for it, leave the last ones standing. An upstream is emptied by its configuration.

An answer holds as long as its shortest time to live says, within bounds, and up to a tenth longer,
so that proxies which started together do not ask together. After a failure the next look-up comes
soon, and then ever later. Times are monotonic seconds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from proxy.core.address import Address

TARGETS_MAX: Final = 256
"""Addresses of one name that are used; a name of more is a mistake, or an attack on us."""

JITTER: Final = 0.1
"""The part of its time by which a look-up may be late."""

RETRY_FIRST: Final = 1.0
RETRY_LAST: Final = 30.0
"""Seconds from a failure to the next look-up; doubled each time. The last is still soon enough to
notice that DNS is back, and seldom enough to leave it in peace."""


class Target(NamedTuple):
    """One address of a name.

    Attributes:
        address: where it is; port 0 if the name says nothing of ports.
        weight: its share of the flows beside those of the same priority.
        priority: those of a higher number are used when all of lower ones fail (RFC 2782).

    """

    address: Address
    weight: int = 1
    priority: int = 0


class Answer(NamedTuple):
    """What the servers say of a part: its addresses, perhaps none, and for how many seconds."""

    targets: tuple[Target, ...]
    ttl: float


class Failure(NamedTuple):
    """Why a part could not be had.

    Attributes:
        reason: for people.
        final: whether the servers have said so: there is no such name.

    """

    reason: str
    final: bool = False


Parts: TypeAlias = Mapping[Hashable, Answer | Failure]
"""What a look-up brought."""


class TtlBounds(NamedTuple):
    """The least and the most seconds that an answer holds, whatever its time to live."""

    shortest: float
    longest: float


class Outcome(StrEnum):
    """How a look-up ended."""

    OK = "ok"
    FAILED = "failed"  # at least a part could not be had
    ABSENT = "absent"  # the servers know no address


class Resolution:
    """What is known of one name.

    Attributes:
        targets: its addresses in a fixed order, so that one that merely turns is no change.
        omitted: how many there are beyond ``TARGETS_MAX``.
        next_at: when it is to be looked up again.
        succeeded_at: when a look-up last did; None if never.
        last: how the last look-up ended; None before the first.
        reason: why it failed; empty if it succeeded.
        outcomes: how often look-ups ended in which way.

    """

    __slots__ = (
        "_failures",
        "_known",
        "last",
        "next_at",
        "omitted",
        "outcomes",
        "reason",
        "succeeded_at",
        "targets",
    )

    def __init__(self) -> None:
        self.targets: tuple[Target, ...] = ()
        self.omitted = 0
        self.next_at = 0.0
        self.succeeded_at: float | None = None
        self.last: Outcome | None = None
        self.reason = ""
        self.outcomes = dict.fromkeys(Outcome, 0)
        self._known: dict[Hashable, tuple[Target, ...]] = {}
        self._failures = 0  # in a row

    @property
    def is_stale(self) -> bool:
        """Whether the addresses are those of an earlier look-up."""
        return bool(self.reason and self.targets)

    def learn(self, parts: Parts | Failure, now: float, bounds: TtlBounds, dice: float) -> Outcome:
        """Know what a look-up brought.

        Args:
            parts: that; or why there was not even one.
            now: when.
            bounds: of the time that it holds.
            dice: a random number from 0 to 1, by which the next one is late.

        """
        if not isinstance(parts, Failure):
            self._take(parts)
        outcome, self.reason = _judge(parts)
        self.last = outcome
        self.outcomes[outcome] += 1
        if outcome is Outcome.OK:
            self._failures = 0
            self.succeeded_at = now
        else:
            self._failures += 1
        self.next_at = now + self._holds(parts, bounds) * (1 + JITTER * dice)
        return outcome

    def _take(self, parts: Parts) -> None:
        known = {key: self._part(key, part) for key, part in parts.items()}
        found = _ordered(target for targets in known.values() for target in targets)
        if found:
            self._known = known
            self.targets, self.omitted = found[:TARGETS_MAX], max(0, len(found) - TARGETS_MAX)

    def _part(self, key: Hashable, part: Answer | Failure) -> tuple[Target, ...]:
        if isinstance(part, Answer):
            return part.targets
        return () if part.final else self._known.get(key, ())

    def _holds(self, parts: Parts | Failure, bounds: TtlBounds) -> float:
        """Seconds until the next look-up."""
        if self._failures or isinstance(parts, Failure):
            first = min(RETRY_FIRST, bounds.shortest)
            doubled = first * 2.0 ** min(self._failures - 1, 32)
            return min(doubled, RETRY_LAST, max(first, bounds.longest))
        ttls = (part.ttl for part in parts.values() if isinstance(part, Answer))
        return min(bounds.longest, max(bounds.shortest, min(ttls)))


def _judge(parts: Parts | Failure) -> tuple[Outcome, str]:
    """How a look-up ended, and why if not well."""
    failures = (
        [parts]
        if isinstance(parts, Failure)
        else [part for part in parts.values() if isinstance(part, Failure)]
    )
    for failure in failures:
        if not failure.final:
            return Outcome.FAILED, failure.reason
    if isinstance(parts, Failure) or not any(
        isinstance(part, Answer) and part.targets for part in parts.values()
    ):
        return Outcome.ABSENT, failures[0].reason if failures else "it has no address"
    return Outcome.OK, ""


def _ordered(targets: Iterable[Target]) -> tuple[Target, ...]:
    """Each address once, by priority and then by address, IPv4 first."""
    found: dict[Address, Target] = {}
    for target in sorted(targets, key=_order):
        found.setdefault(target.address, target)
    return tuple(found.values())


def _order(target: Target) -> tuple[int, int, int, int, int]:
    host = ipaddress.ip_address(target.address[0])
    return target.priority, host.version, int(host), target.address[1], -target.weight
