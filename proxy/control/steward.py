"""The steward: reloads, drains and stops the house, as signals and the admin ask for it.

A reload is all or nothing. The file is read and checked as a whole, the plan is made, names are
resolved, sockets bound; only then is anything changed, which cannot fail and cannot be interrupted.
Who asked may leave at any time: a reload that has begun to change something ends as it should, and
one that has not is as if it had never been asked for.

Reloads are done one after the other, and at most ``WAITING_MAX`` wait for their turn.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from time import time
from typing import TYPE_CHECKING, Final

import structlog
import trio

from proxy.config.load import STDIN, load
from proxy.config.plan import Drained, Plan, applicable, plan
from proxy.config.problem import ConfigError, Problem
from proxy.control.endpoints import ResolveError
from proxy.control.limits import LiveLimits
from proxy.control.listen import BindError
from proxy.control.outbound import OptionError
from proxy.control.specs import pace_of
from proxy.control.tenure import Tenure
from proxy.control.upgrade import Upgrader
from proxy.core.condition import Administration
from proxy.engine.specs import DrainTarget, EndpointOrder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.config.model import Config
    from proxy.control.house import House
    from proxy.core.live_limit import LimitValues, OrderRow
    from proxy.core.query import FlowQuery
    from proxy.engine.port import (
        CheckRow,
        DrainAnswer,
        LimitsAnswer,
        NameRow,
        PredecessorRow,
        ReloadAnswer,
        ReloadRecord,
        UpgradeAnswer,
    )

WAITING_MAX: Final = 16
"""Reloads that wait while one is under way; whoever asks for more is told so."""

LOGGED_MAX: Final = 100
"""Problems, or steps of a plan, in one line of the log."""


class ReloadError(Exception):
    """A reload that changed nothing.

    Attributes:
        problems: why, one line for people each.

    """

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Steward:
    """Changes a house that is at work.

    Args:
        house: the house.
        file: where its configuration came from; None if from no file.
        adopt: told of a configuration that has been put to work.

    """

    def __init__(
        self, house: House, file: str | None, adopt: Callable[[Config], object] = lambda _: None
    ) -> None:
        self._house = house
        self._file = file
        self._adopt = adopt
        self._limits = LiveLimits(house)
        self._upgrader = Upgrader(house, file)
        self._turn = trio.Lock()
        self._successful = True
        self._success_at = time()

    def last_reload(self) -> ReloadRecord:
        """How the last reload went; the start counts as one."""
        return {"successful": self._successful, "success_timestamp": self._success_at}

    def names(self) -> list[NameRow]:
        """What is known of the names of endpoints."""
        return self._house.names.rows(self._house.config)

    def checks(self) -> list[CheckRow]:
        """How endpoints are, as active checks show."""
        return self._house.checks.rows()

    @property
    def is_standing_down(self) -> bool:
        """Whether a successor takes over now, so that nothing can be ordered here any more."""
        return self._house.tenure is not Tenure.OURS

    async def reload(self, by: str, *, dry_run: bool = False) -> ReloadAnswer:
        """Read the file again, and do what it says; or only say what would be done.

        Args:
            by: who asks, for the log.
            dry_run: change nothing.

        """
        try:
            with self._queue():
                async with self._turn:
                    with self._telling(dry_run=dry_run):
                        return await self._reload(by, dry_run=dry_run)
        except ReloadError as error:
            return self._failed(error, by, dry_run=dry_run)

    async def drain(
        self,
        listener: str | None = None,
        endpoint: str | None = None,
        upstream: str | None = None,
        patience: float | None = None,
        by: str = "",
    ) -> DrainAnswer:
        """Begin to drain a listener, or an endpoint of an upstream or of all that have it.

        Args:
            listener: its name; or
            endpoint: as the configuration writes it, and
            upstream: the one to drain it of; None is all.
            patience: seconds for flows to end by themselves; None is the configured time.
            by: who asks, for the log.

        """
        targets = [DrainTarget(listener=listener)] if listener else []
        if endpoint:
            targets = [
                DrainTarget(upstream=name, endpoint=endpoint)
                for name in self._upstreams_with(endpoint, upstream)
            ]
        pace = pace_of(self._house.config.engine, patience)
        draining = [target for target in targets if await self._house.drain(target, pace)]
        for target in draining:
            log.warning("drain_begun", **_named(target), timeout=pace.timeout, by=by)
        return {"draining": [_named(target) for target in draining], "timeout": pace.timeout}

    async def administer(
        self, endpoint: str, upstream: str | None, administration: Administration, by: str
    ) -> list[dict[str, str]]:
        """Disable or enable an endpoint.

        Args:
            endpoint: as the configuration writes it.
            upstream: of which one; None is all that have it.
            administration: what is wanted.
            by: who asks, for the log.

        """
        orders = [
            EndpointOrder(name, endpoint, administration)
            for name in self._upstreams_with(endpoint, upstream)
        ]
        done = [order for order in orders if await self._house.administer(order)]
        for upstream_name, name, wanted in done:
            if wanted is Administration.DISABLED:
                log.warning("endpoint_disabled", upstream=upstream_name, endpoint=name, by=by)
            else:
                log.warning("endpoint_enabled", upstream=upstream_name, endpoint=name, by=by)
        return [{"upstream": order.upstream, "endpoint": order.endpoint} for order in done]

    def _upstreams_with(self, endpoint: str, upstream: str | None) -> list[str]:
        """The upstreams that have an endpoint; or the one of this name, if it has."""
        return [
            name
            for name, each in self._house.config.upstream.items()
            if upstream in {None, name} and endpoint in map(str, each.endpoints)
        ]

    async def keep_upgrades(self) -> None:
        """Keep what goes on after an upgrade going, until cancelled."""
        await self._upgrader.run()

    async def upgrade(self, by: str, *, dry_run: bool = False) -> UpgradeAnswer:
        """Start the program anew, and leave everything to that; or only have it check the file."""
        return await self._upgrader.upgrade(by, dry_run=dry_run)

    def predecessors(self) -> list[PredecessorRow]:
        """Which processes of earlier lives have flows yet."""
        return self._house.heritage.rows()

    async def keep_limits(self) -> None:
        """Lift limits whose time is over, until cancelled."""
        await self._limits.run()

    async def limits(self) -> LimitsAnswer:
        """Every limit in force, and where it comes from."""
        return await self._limits.answer()

    async def limit(
        self, query: FlowQuery, values: LimitValues, lasting: float | None, by: str
    ) -> OrderRow | None:
        """Keep flows to an order from now on, for so many seconds; None if there are too many."""
        return await self._limits.give(query, values, lasting, by)

    async def lift_limit(self, number: int, by: str) -> OrderRow | None:
        """Keep flows to an order no more; None if there is none of this number."""
        return await self._limits.lift(number, by)

    @contextmanager
    def _telling(self, *, dry_run: bool) -> Iterator[None]:
        """Tell the service manager that a reload goes on, unless the end has begun."""
        notifier = self._house.notifier
        if dry_run or self._house.is_stopping:
            yield
            return
        notifier.reloading()
        try:
            yield
        finally:
            if not self._house.is_stopping:
                notifier.ready()

    @contextmanager
    def _queue(self) -> Iterator[None]:
        if self._turn.statistics().tasks_waiting >= WAITING_MAX:
            raise ReloadError(f"{WAITING_MAX} reloads are waiting already; try again later")
        yield

    async def _reload(self, by: str, *, dry_run: bool) -> ReloadAnswer:
        house = self._house
        if house.is_stopping:
            raise ReloadError("sockpair is stopping, and reloads no more")
        warnings: list[Problem] = []
        wanted = await self._read(warnings)
        drained = Drained(house.drained_listeners, house.drained_endpoints)
        steps = plan(house.config, wanted, drained, is_alone=house.is_alone)
        config = applicable(house.config, wanted, is_alone=house.is_alone)
        await self._put_to_work(config, dry_run=dry_run)
        lines = steps.lines()
        if not dry_run:
            self._successful, self._success_at = True, time()
            log.info("reloaded", by=by, changes=lines[:LOGGED_MAX], warnings=_texts(warnings))
        return _answer(dry_run, steps, warnings=_texts(warnings))

    async def _read(self, warnings: list[Problem]) -> Config:
        """Read and check the file, in a thread: it may be large, or on a slow disk."""
        if self._file is None or self._file == STDIN:
            raise ReloadError("the configuration came from no file; name one with -c to reload it")
        try:
            return await trio.to_thread.run_sync(load, self._file, warnings.append)
        except ConfigError as error:
            raise ReloadError(*map(str, error.problems)) from error

    async def _put_to_work(self, config: Config, *, dry_run: bool) -> None:
        house = self._house
        try:
            upstreams = await house.rehearse(config)
            if dry_run:
                return
            if house.is_stopping:  # while names were resolved
                raise ReloadError("sockpair is stopping, and reloads no more")
            with trio.CancelScope(shield=True):
                await house.put_to_work(config, upstreams)
                self._adopt(config)
        except ResolveError as error:
            raise ReloadError(*error.problems) from error
        except (BindError, OptionError) as error:
            raise ReloadError(str(error)) from error

    def _failed(self, error: ReloadError, by: str, *, dry_run: bool) -> ReloadAnswer:
        if not dry_run:
            self._successful = False
            log.error(
                "reload_failed",
                by=by,
                problems=list(error.problems[:LOGGED_MAX]),
                count=len(error.problems),
            )
        return _answer(dry_run, Plan(()), problems=list(error.problems))


log = structlog.get_logger()


def _answer(
    dry_run: bool,
    steps: Plan,
    *,
    problems: list[str] | None = None,
    warnings: list[str] | None = None,
) -> ReloadAnswer:
    return {
        "reloaded": not dry_run and not problems,
        "dry_run": dry_run,
        "problems": problems or [],
        "warnings": warnings or [],
        "lines": steps.lines(),
        "steps": list(steps.rows()),
    }


def _texts(warnings: list[Problem]) -> list[str]:
    return [str(warning) for warning in warnings[:LOGGED_MAX]]


def _named(target: DrainTarget) -> dict[str, str]:
    """What of a target is set."""
    return {name: value for name, value in target._asdict().items() if value is not None}
