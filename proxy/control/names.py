"""Names of endpoints: looked up at the start, at a reload, and again as their time runs out.

What is known of a name outlives reloads, and failures: see ``core.names``. So a reload that cannot
reach DNS goes on with the addresses that are known, and fails only for a name that is new. A start
is not stopped by DNS that does not answer, since that would take the listeners down whose endpoints
are well; it is by servers which say that there is no such name, for then the file is wrong.

Each name is looked up once, however many upstreams have it, and no name waits for another.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic, time
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import trio

from proxy.config.service import ServiceEndpoint
from proxy.config.unix import UnixEndpoint
from proxy.config.values import ORIGINAL
from proxy.control.dns import Asking, Resolver
from proxy.core.address import format_address
from proxy.core.names import Resolution, Target, TtlBounds

if TYPE_CHECKING:
    from proxy.config.model import Config
    from proxy.core.address import HostPort
    from proxy.engine.port import NameRow

ROUND: Final = 0.05
"""Seconds from one look at what is due to the next: with thousands of names there is always some,
and each look costs as much as there are names."""

ROUTES: Final = 10.0
"""Seconds until addresses are gone through again though none has changed, since routes may have."""

LOGGED_MAX: Final = 20
"""Addresses in one line of the log."""

log = structlog.get_logger()


class NameKey(NamedTuple):
    """A name that is looked up: that of a host, or that of a service."""

    text: str
    is_service: bool


class Names:
    """What is known of the names that endpoints have.

    Args:
        resolver: looks them up.

    """

    def __init__(self, resolver: Resolver | None = None) -> None:
        self._resolver = resolver or Resolver()
        self._known: dict[NameKey, Resolution] = {}
        self._busy = set[NameKey]()
        self._at_work = set[NameKey]()
        self._woken = trio.Event()
        self._changed = False

    async def look_up(self, config: Config) -> None:
        """Look all names of a configuration up at the same time.

        Those of another that was looked up, and not put to work, are forgotten.
        """
        names = names_of(config)
        self._forget(names | self._at_work)
        async with trio.open_nursery() as nursery:
            for key in names:
                nursery.start_soon(self._look_up, key, config)
        self.wake()

    def of(self, endpoint: HostPort) -> Resolution | None:
        """What is known of an endpoint's name; None if it has none."""
        key = name_of(endpoint)
        return None if key is None else self._known.get(key) or Resolution()

    def targets(self, endpoint: HostPort) -> tuple[Target, ...]:
        """The addresses of an endpoint that has a name."""
        resolution = self.of(endpoint)
        found = () if resolution is None else resolution.targets
        if isinstance(endpoint, ServiceEndpoint):
            return found
        return tuple(each._replace(address=_with_port(each, endpoint.port)) for each in found)

    def wake(self) -> None:
        """Know that the configuration, or what is known of names, may be another."""
        self._changed = True
        self._woken.set()

    async def keep(self, work: Callable[[], Config], adopt: Callable[[], Awaitable[None]]) -> None:
        """Look names up again, each in its time, until cancelled.

        Args:
            work: the configuration at work.
            adopt: called when addresses, or the ways to them, may be others.

        """
        config: Config | None = None
        adopted_at = 0.0
        async with trio.open_nursery() as nursery:
            while True:
                self._woken = trio.Event()
                if config is not work():
                    config = work()
                    names = self._at_work = names_of(config)
                    self._forget(names)
                if self._changed or monotonic() - adopted_at > ROUTES:
                    self._changed, adopted_at = False, monotonic()
                    await adopt()
                for key in self._due(names):
                    self._busy.add(key)
                    nursery.start_soon(self._refresh, key, config)
                with trio.move_on_after(self._pause(names)):
                    await self._woken.wait()
                await trio.sleep(ROUND)

    def rows(self, config: Config) -> list[NameRow]:
        """What is known of the names of a configuration, for people; times are Unix seconds."""
        offset = time() - monotonic()
        return [
            _row(name, str(endpoint.address), resolution, offset)
            for name, upstream in config.upstream.items()
            for endpoint in upstream.endpoints
            if (resolution := self.of(endpoint.address)) is not None
        ]

    async def _refresh(self, key: NameKey, config: Config) -> None:
        try:
            await self._look_up(key, config)
        finally:
            self._busy.discard(key)
        self._woken.set()

    async def _look_up(self, key: NameKey, config: Config) -> None:
        settings = config.names
        asking = Asking(settings.servers, settings.timeout)
        ask = self._resolver.service if key.is_service else self._resolver.host
        found = await ask(key.text, asking)
        resolution = self._known.setdefault(key, Resolution())
        before, trouble = resolution.targets, resolution.reason
        bounds = TtlBounds(settings.ttl_min, settings.ttl_max)
        resolution.learn(found, monotonic(), bounds, random.random())  # noqa: S311 - of no value
        self._changed = self._changed or before != resolution.targets
        _tell(key, resolution, before, trouble)

    def _forget(self, names: set[NameKey]) -> None:
        self._known = {key: known for key, known in self._known.items() if key in names}

    def _due(self, names: Iterable[NameKey]) -> list[NameKey]:
        now = monotonic()
        return [key for key in names if key not in self._busy and self._next_at(key) <= now]

    def _pause(self, names: Iterable[NameKey]) -> float:
        """Seconds until a name has to be looked up."""
        waiting = (self._next_at(key) for key in names if key not in self._busy)
        return max(0.0, min(waiting, default=float("inf")) - monotonic())

    def _next_at(self, key: NameKey) -> float:
        known = self._known.get(key)
        return 0.0 if known is None else known.next_at


def name_of(endpoint: HostPort) -> NameKey | None:
    """The name that has to be looked up for an endpoint; None if there is none."""
    if endpoint == ORIGINAL or isinstance(endpoint, UnixEndpoint) or endpoint.is_literal:
        return None
    return NameKey(endpoint.host.lower(), isinstance(endpoint, ServiceEndpoint))


def names_of(config: Config) -> set[NameKey]:
    """Every name of a configuration."""
    keys = (
        name_of(endpoint.address)
        for upstream in config.upstream.values()
        for endpoint in upstream.endpoints
    )
    return {key for key in keys if key is not None}


def _with_port(target: Target, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    host, _, *rest = target.address
    return (host, port, 0, 0) if rest else (host, port)


def _tell(key: NameKey, resolution: Resolution, before: tuple[Target, ...], trouble: str) -> None:
    """Log what has become of a name, if it is news."""
    if resolution.reason and not trouble:
        log.warning(
            "name_failed",
            name=key.text,
            reason=resolution.reason,
            addresses=len(resolution.targets),
        )
    elif trouble and not resolution.reason:
        log.info("name_recovered", name=key.text, addresses=len(resolution.targets))
    if before and before != resolution.targets:
        known, now = set(_texts(before)), set(_texts(resolution.targets))
        log.info(
            "name_changed",
            name=key.text,
            added=sorted(now - known)[:LOGGED_MAX],
            removed=sorted(known - now)[:LOGGED_MAX],
            addresses=len(resolution.targets),
            omitted=resolution.omitted,
        )


def _texts(targets: Iterable[Target]) -> list[str]:
    """Addresses as people write them; of hosts without the port, which the name does not say."""
    return [
        format_address(each.address) if each.address[1] else each.address[0] for each in targets
    ]


def _row(upstream: str, endpoint: str, known: Resolution, offset: float) -> NameRow:
    succeeded = known.succeeded_at
    return {
        "upstream": upstream,
        "endpoint": endpoint,
        "addresses": _texts(known.targets),
        "omitted": known.omitted,
        "stale": known.is_stale,
        "reason": known.reason,
        "lookups": {outcome.value: count for outcome, count in known.outcomes.items()},
        "last_success": None if succeeded is None else round(succeeded + offset, 3),
        "next_lookup": round(known.next_at + offset, 3),
    }
