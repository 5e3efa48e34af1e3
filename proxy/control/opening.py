"""How a house is opened: in which order, and with how many workers.

What a predecessor left is looked at before anything is bound. Its sockets are used in place of new
ones; where it is in the way of one, with sockets that are no use to us, it has to end. Where
somebody else is, we fail to start, as by a file with a problem, and it relays on until we come
again.
"""

from __future__ import annotations

import os
import resource
from contextlib import ExitStack
from typing import TYPE_CHECKING

import structlog

from proxy.config.values import AUTO
from proxy.control.admin_sockets import admin_users, open_admin
from proxy.control.adopt import adopt
from proxy.control.crew import Crew
from proxy.control.holder import explained, in_the_way
from proxy.control.house import NOBODY, NOTHING, House
from proxy.control.listen import BindError
from proxy.control.store import ChannelStore
from proxy.core.steering import WORKERS_MAX
from proxy.engine.worker import Worker

if TYPE_CHECKING:
    from proxy.config.model import Config
    from proxy.control.inherited import Inheritance
    from proxy.control.newcomer import Newcomer
    from proxy.control.notify import Notifier
    from proxy.control.sockets import Given
    from proxy.engine.specs import UpstreamSpec

log = structlog.get_logger()


async def open_house(
    config: Config,
    notifier: Notifier = NOBODY,
    inheritance: Inheritance = NOTHING,
    newcomer: Newcomer | None = None,
) -> House:
    """Resolve, bind and set up everything that the configuration names.

    Args:
        config: what to do.
        notifier: the line to the service manager, which stores the listening sockets.
        inheritance: listening sockets that it passed; used in place of binding, or closed.
        newcomer: what was given to us by a predecessor that started us, where one did.

    Raises:
        ResolveError: an endpoint has no address, and will not have one soon.
        BindError: a socket could not be bound, or there is no such user; none is left open then.
        OptionError: a socket option, or a source, is not to be had; the same.

    """
    raise_file_limit()
    worker = _workers(config, notifier)
    house = House(config, worker, [], notifier, inheritance, newcomer)
    house.admin_users = admin_users(config.admin)
    upstreams = await house.rehearse(config, is_start=True)
    with ExitStack() as undo:
        house.admin += open_admin(config.admin, inheritance.admin, undo)
        await house.prepare_heritage()
        given = adopt(config, inheritance, house.store, house.workers)
        for socket in (socket for sockets in given.values() for socket in sockets):
            undo.enter_context(socket)
        await _put_to_work(house, upstreams, given, alone=newcomer is None)
        if house.heritage.is_empty:
            house.steer()
        undo.pop_all()
    return house


async def _put_to_work(
    house: House, upstreams: dict[str, UpstreamSpec], given: Given, *, alone: bool
) -> None:
    """Have the house do what its configuration says; predecessors that are in the way end.

    Each time round there is one fewer of them.

    Args:
        house: the house.
        upstreams: of its configuration.
        given: sockets that serve listeners already.
        alone: whether nobody has started us who could go on in our place.

    """
    ours = {os.fstat(socket.fileno()).st_ino for group in given.values() for socket in group}
    while True:
        try:
            await house.put_to_work(house.config, upstreams, given)
        except BindError as error:
            rows = house.heritage.rows()
            ending = set[int]()
            if alone and not house.heritage.is_empty:
                ending = in_the_way(error, [row["pid"] for row in rows], ours)
            if not ending:
                drain = (row["pid"] for row in rows if row["draining"])
                raise explained(error, drain) from error
            log.error(
                "predecessors_in_the_way",
                reason=str(error),
                pids=sorted(ending),
                remedy="they and their flows end",
            )
            await house.heritage.end(ending)
            house.heritage.prepare(house.workers)
        else:
            return


def _workers(config: Config, notifier: Notifier) -> Worker | Crew:
    """One worker in this process, which costs nothing; several in processes of their own.

    So is one whose flows are to outlive its process.
    """
    engine = config.engine
    cores = min(len(os.sched_getaffinity(0)), WORKERS_MAX)
    count = cores if engine.workers == AUTO else engine.workers
    if count == 1 and not config.keeps_crashed:
        return Worker(engine.table_limit, engine.recent)
    store, standbys = ChannelStore(notifier), config.keeps_crashed
    return Crew(count, engine.table_limit, engine.recent, store, standbys=standbys)


def raise_file_limit() -> None:
    """Allow this process as many descriptors as the system lets it have; flows need them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
