"""The house: puts a configuration to work, changes it, and takes it down again.

Opening, and every reload, goes in an order that leaves nothing half done: names first, because they
may fail slowly; then what needs a privilege is tried; then every socket, all or none; then the
worker, which cannot fail. What failed is as if it had never been tried. Whatever the house opened,
it closes.

The house knows what the worker was told; what happens there it asks through the worker's port.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from socket import socket as Socket
from typing import TYPE_CHECKING, Final

import structlog
import trio

from proxy.control.changes import change_to
from proxy.control.crew import Crew
from proxy.control.endpoints import ResolveError, unresolved, upstream_specs
from proxy.control.estate import read_estate, write_estate
from proxy.control.health import Checks, check_plans
from proxy.control.heirs import leave_order, steer
from proxy.control.heritage import Heritage
from proxy.control.inherited import Inheritance
from proxy.control.names import Names
from proxy.control.notify import Notifier
from proxy.control.outbound import outbounds
from proxy.control.sockets import NONE_GIVEN, Arrangement, Bound, Given, arrange
from proxy.control.specs import pace_of
from proxy.control.store import ChannelStore, SocketStore, sockets_to_keep
from proxy.control.tenure import NEXT, OTHERS, Tenure
from proxy.control.unix import socket_files
from proxy.core.condition import Administration
from proxy.engine.port import StandingDownError
from proxy.engine.specs import (
    EVERYTHING,
    Change,
    DrainOrder,
    DrainTarget,
    cookie_of,
)
from proxy.engine.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from proxy.config.model import Config
    from proxy.control.estate import Estate
    from proxy.control.newcomer import Newcomer
    from proxy.control.predecessor import Report
    from proxy.core.live_limit import LiveLimit
    from proxy.core.pace import Pace
    from proxy.engine.port import RelayCounters
    from proxy.engine.specs import EndpointOrder, LeaveOrder, UpstreamSpec

NOBODY: Final = Notifier()
NOTHING: Final = Inheritance()

log = structlog.get_logger()


class House:
    """A configuration at work: its worker, or workers, and the sockets of listeners and admin.

    Made by ``opening.open_house``; used as a context manager, which closes what it owns.

    Attributes:
        config: what is at work.
        is_alone: whether flows have no standby, and so none outlives a crash of its process.
        drained_listeners: those that were drained by hand since.
        drained_endpoints: the same, each with its upstream before it.
        admin_users: who may change something at the admin's Unix socket; None: all who may open it.
        tenure: whether all of that is ours, or another life's.
        is_stopping: whether everything drains; nothing is put to work any more.
        is_parted: whether workers were left to a successor, which comes when we are gone.
        inherited: set when all is ours that predecessors give, and what they counted.
        succeeded: set when a successor has it.
        answered: set, after that, when all have been answered who had asked the admin here.
        released: set when a successor wants us to end.
        heritage: what is taken over from predecessors.
        orders: limits that were set on what runs.
        names: what is known of the names of endpoints.
        checks: what is known of their health.

    """

    def __init__(
        self,
        config: Config,
        worker: Worker | Crew,
        admin: list[Socket],
        notifier: Notifier = NOBODY,
        inheritance: Inheritance = NOTHING,
        newcomer: Newcomer | None = None,
    ) -> None:
        self.config = config
        self.worker = worker
        self.is_alone = isinstance(worker, Worker) or not worker.has_standbys
        self.workers = 1 if isinstance(worker, Worker) else worker.size
        self.admin = admin
        self.drained_listeners: set[str] = set()
        self.drained_endpoints: set[tuple[str, str]] = set()
        self.admin_users: frozenset[int] | None = None
        self.is_stopping = False
        self.orders: tuple[LiveLimit, ...] = ()
        self._disabled: dict[tuple[str, str], EndpointOrder] = {}
        self.names = Names()
        self.checks = Checks(worker.set_health)
        self._upstreams: dict[str, UpstreamSpec] = {}
        self._changing = trio.Lock()
        self._bound: dict[str, Bound] = {}
        self._leaving: list[Bound] = []  # datagram sockets that serve their last flows
        self.notifier = notifier
        self.store = SocketStore(notifier)
        self.heritage = Heritage(inheritance.channels, ChannelStore(notifier))
        self._newcomer = newcomer
        self._begun = trio.Event()
        self.inherited = trio.Event()
        self.answered = trio.Event()
        self.succeeded = trio.Event()
        self.released = trio.Event()
        self._adopted: frozenset[str] = frozenset()
        self._first: Change | None = None  # waits for ``begin``
        self.tenure = Tenure.OURS if newcomer is None else Tenure.COMING
        self.is_parted = False

    def __enter__(self) -> House:
        return self

    def __exit__(self, *_: object) -> None:
        for socket in self.admin:
            socket.close()
        self.heritage.close()
        if self.tenure in OTHERS:
            return
        if self.config.admin.socket:
            Path(self.config.admin.socket).unlink(missing_ok=True)
        if not self.is_parted:
            _remove_files([*self._bound.values(), *self._leaving])

    async def rehearse(self, config: Config, *, is_start: bool = False) -> dict[str, UpstreamSpec]:
        """Try whatever of a configuration can be tried without binding anything.

        Args:
            config: what it says.
            is_start: go on without names that may yet be resolved.

        Raises:
            ResolveError: an endpoint has no address.
            OptionError: a socket option, or a source, is not to be had.

        """
        await self.names.look_up(config)
        problems = unresolved(config, self.names)
        if any(problem.final or not is_start for problem in problems):
            raise ResolveError(*(problem.text for problem in problems))
        for problem in problems:
            log.warning("name_unresolved", problem=problem.text)
        outbounds(config)
        return upstream_specs(config, self.names)

    async def keep_names(self) -> None:
        """Have the workers know the addresses that names have, until cancelled."""
        await self.names.keep(lambda: self.config, self._readdress)

    async def _readdress(self) -> None:
        """Have the workers know the addresses that names have now, where these are others."""
        async with self._changing:
            specs = upstream_specs(self.config, self.names)
            changed = [spec for name, spec in specs.items() if self._upstreams.get(name) != spec]
            if changed:
                await self.worker.readdress(changed)
                self._upstreams = specs
                self.checks.become(check_plans(self.config, specs))

    async def put_to_work(
        self, config: Config, upstreams: dict[str, UpstreamSpec], given: Given = NONE_GIVEN
    ) -> None:
        """Have the worker do what a configuration says.

        Args:
            config: what it says.
            upstreams: of it, rehearsed.
            given: sockets that serve listeners already, by name; the house's from now on.

        Raises:
            BindError: a socket could not be bound, or set up; nothing has changed then.
            OptionError: the kernel refuses an option; the same.

        """
        async with self._changing:
            with ExitStack() as undo:
                arranged = arrange(
                    config.listener, self._bound, self._leaving, undo, self.workers, given
                )
                undo.pop_all()
            change = change_to(
                config, upstreams, arranged.bound, self._bound, self.drained_listeners
            )
            self._take_over(config, arranged)
            if self._has_to_wait:
                self._first = change
            else:
                await self.worker.apply(change)
            self._upstreams = upstreams
            self.checks.become(check_plans(config, upstreams))
            self._store_sockets()
        self._adopted = self._adopted | given.keys()
        self.names.wake()

    async def prepare_heritage(self) -> None:
        """Learn who was left behind, and have our workers expect what they give."""
        await self.heritage.greet()
        self.heritage.prepare(self.workers)
        await self._enter_on(read_estate(self.heritage.estate))
        if isinstance(self.worker, Crew) and not self.heritage.is_empty:
            self.worker.inherits = self.heritage.introduce

    @property
    def _has_to_wait(self) -> bool:
        """Whether the worker in this process must not listen before it expects flows."""
        expects = isinstance(self.worker, Worker) and not self.heritage.is_empty
        return expects and not self._begun.is_set()

    async def _enter_on(self, estate: Estate) -> None:
        """Go on with what was ordered in the life before."""
        self._obey(estate)
        for number, reading in enumerate(estate.past):
            self.worker.forebears.remember(f"past {number}", reading)
            self.worker.forebears.settle(f"past {number}")

    def _obey(self, estate: Estate) -> None:
        """Know what was ordered in the life before; the workers are told by ``_order_again``."""
        self.orders = estate.orders
        self._disabled = {order[:2]: order for order in estate.disabled}

    async def begin(self) -> None:
        """Know that the workers run; have the one in this process, if it had to wait, listen."""
        if self._first is not None and isinstance(self.worker, Worker):
            await self.heritage.introduce(0, self.worker.expect)
            await self.worker.apply(self._first)
            self._first = None
        self._begun.set()

    async def inherit(self) -> None:
        """Take over from predecessors when the workers are there, and look after what stays.

        Until ``inherited`` is set we know neither what was ordered last, nor what was counted: so
        nobody is to be told either, nor to order anything.

        Raises:
            UnwantedError: who started us does not want us to.

        """
        reports: list[Report] = []
        if self.heritage.is_anybody or self._newcomer is not None:
            await self.heritage.wait_present()
            if self._newcomer is not None:
                await self._newcomer.announce()
                self._become(Tenure.OURS)
                await self._hear_last_orders()
            self.steer()
            order, served = self.leave_order(self._adopted), self._served()
            reports = await self.heritage.take_over(order, served)
            await self._order_again()
            if self._newcomer is not None:
                await self._newcomer.tell_done(reports)
        await self.worker.own()
        await self.heritage.settle()
        self.heritage.remember(self.worker.forebears)
        self.inherited.set()
        await self.heritage.watch(self.worker.forebears, self.entrust)

    def _served(self) -> list[int]:
        """The listening sockets that are ours, by their cookies."""
        sockets = (socket for each in self._bound.values() for socket in each.sockets)
        return [cookie_of(socket) for socket in sockets if socket.fileno() >= 0]

    async def _hear_last_orders(self) -> None:
        """Know what was ordered after the predecessors were greeted; now nothing is any more."""
        await self.heritage.greet()
        self._obey(read_estate(self.heritage.estate))

    async def _order_again(self) -> None:
        """Have the workers, when they are at work, know what was ordered in the life before."""
        await self._begun.wait()
        for order in self._disabled.values():
            await self.worker.administer(order)
        if self.orders:
            await self.worker.limit(self.orders)
        await self.entrust()

    def steer(self) -> None:
        """Have the kernel divide clients as we do; from now on they are ours."""
        steer(self._bound.values(), self.workers)

    def leave_order(self, adopted: Collection[str]) -> LeaveOrder:
        """Which worker gets which flows, by listener; see ``heirs``."""
        return leave_order(self._bound, self.workers, adopted)

    async def drain(self, target: DrainTarget, pace: Pace | None = None) -> bool:
        """Begin to drain; false if there is no such listener or endpoint."""
        self.is_stopping = self.is_stopping or target == EVERYTHING
        order = DrainOrder(target, pace or pace_of(self.config.engine))
        if not await self.worker.drain(order):
            return False
        if target.listener is not None:
            self.drained_listeners.add(target.listener)
            self._store_sockets()
        elif target.upstream is not None and target.endpoint is not None:
            self.drained_endpoints.add((target.upstream, target.endpoint))
        return True

    async def administer(self, order: EndpointOrder) -> bool:
        """Disable or enable an endpoint; false if there is none of this name."""
        async with self._changing:
            self._check_tenure()
            if not await self.worker.administer(order):
                return False
            self.drained_endpoints.discard((order.upstream, order.endpoint))
            self._disabled.pop(order[:2], None)
            if order.administration is Administration.DISABLED:
                self._disabled[order[:2]] = order
            await self.entrust()
        return True

    async def limit(self, orders: tuple[LiveLimit, ...]) -> None:
        """Keep flows to these orders, and to no others any more."""
        async with self._changing:
            self._check_tenure()
            self.orders = orders
            await self.worker.limit(orders)
            await self.entrust()

    async def entrust(self, crew: Crew | None = None) -> None:
        """Have worker processes know what a successor gets from us.

        Args:
            crew: whose; None: those that are at work, if there are any.

        """
        heirs = crew or self.worker
        if isinstance(heirs, Crew):
            await heirs.entrust(await self.estate(await self._past()))

    async def keep_estate(self) -> None:
        """Have a successor know what killed workers had counted, until cancelled.

        Only we know, and may be the next that is killed.
        """
        await self.inherited.wait()
        while isinstance(self.worker, Crew):
            await self.worker.wait_losses()
            await self.entrust()

    async def estate(self, past: Sequence[RelayCounters] = ()) -> dict[str, Any]:
        """What a successor gets from us, beside flows; it can be written as JSON.

        Args:
            past: what was counted by those who will not tell it themselves.

        """
        await trio.lowlevel.checkpoint()
        return write_estate(self.orders, self._disabled.values(), past)

    async def _past(self) -> list[RelayCounters]:
        """What was counted by those who will not tell a successor themselves."""
        if isinstance(self.worker, Worker):
            return [await self.worker.counters(former=True)]
        return self.worker.past()

    def open_sockets(self) -> dict[str, tuple[Socket, ...]]:
        """The sockets that take clients, by listener; they stay the workers'."""
        return {
            name: each.sockets
            for name, each in self._bound.items()
            if each.is_open and name not in self.drained_listeners
        }

    @property
    def pace(self) -> Pace:
        """How drains take their time."""
        return pace_of(self.config.engine)

    async def open_again(self, sockets: Given) -> None:
        """Serve again, after somebody who was to take over has failed.

        Args:
            sockets: of all listeners, ours from now on; those still open here need none.

        """
        self.is_stopping = False
        self._become(Tenure.OURS)
        if isinstance(self.worker, Crew):
            await self.worker.stand_up()
        kept = {name for name, each in self._bound.items() if each.is_open}
        for socket in (socket for name in kept & sockets.keys() for socket in sockets[name]):
            socket.close()
        missing = {name: group for name, group in sockets.items() if name not in kept}
        await self.put_to_work(self.config, self._upstreams, missing)
        self.steer()

    async def stop_changing(self) -> None:
        """Wait until what is under way is done, and put nothing to work any more."""
        async with self._changing:
            self.is_stopping = True

    async def stand_down(self) -> None:
        """Put nothing to work any more, nor let anything be ordered: a successor takes over."""
        await self.stop_changing()
        self._become(Tenure.GOING)

    def hand_on(self) -> None:
        """Know that a successor has everything."""
        self._become(Tenure.GONE)
        self.succeeded.set()

    def _check_tenure(self) -> None:
        """Object to an order that came before we stood down, and whose turn comes after it.

        Raises:
            StandingDownError: a successor knows all orders by now, and would not hear of it.

        """
        if self.tenure in {Tenure.GOING, Tenure.GONE}:
            raise StandingDownError

    def _become(self, tenure: Tenure) -> None:
        assert tenure in NEXT[self.tenure], (self.tenure, tenure)
        self.tenure = tenure
        if isinstance(self.worker, Crew):
            self.worker.tenure = tenure

    @property
    def bounds(self) -> tuple[int, int]:
        """How many flows there may be, and how many that ended are remembered."""
        return self.config.engine.table_limit, self.config.engine.recent

    def whole_change(self) -> Change:
        """What a worker has to be that begins now; the sockets stay ours."""
        bound = {name: each for name, each in self._bound.items() if each.is_open}
        return change_to(self.config, self._upstreams, bound)

    def _store_sockets(self) -> None:
        """Have the service manager keep the sockets that take clients, for our next life."""
        sockets = {
            name: each.sockets
            for name, each in self._bound.items()
            if name not in self.drained_listeners
        }
        self.store.keep(sockets_to_keep(self.config, sockets))

    def _take_over(self, config: Config, arranged: Arrangement) -> None:
        """Know that a configuration is at work."""
        gone = [each for each in self._leaving if not each.is_open]
        self.config = config
        self._bound = arranged.bound
        self._leaving = [
            each for each in arranged.leaving if each.listener.listen.transport.is_datagram
        ]
        _remove_files([each for each in arranged.leaving if each not in self._leaving] + gone)
        self.drained_listeners.clear()
        self.drained_endpoints.clear()


def _remove_files(bound: Iterable[Bound]) -> None:
    for file in socket_files(socket for each in bound for socket in each.sockets):
        file.remove()
