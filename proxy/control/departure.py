"""Leaving for a successor that comes when we are gone: a restart by the service manager.

Worker processes are simply left: each is an orphan, with a channel in the service manager's store,
and relays and accepts on; see ``handover.succession``. Where flows live in our own process they
go to an *interim worker* first: a process like any other worker, made for the occasion. What cannot
go there (it is connecting, or its listener has ``survive = "off"``) drains here, while the interim
worker serves everybody else.
"""

from __future__ import annotations

import socket as stdlib
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

import structlog
import trio

from proxy.control.crew import Crew
from proxy.control.store import ChannelStore
from proxy.engine.handover.transfer import HandOverError
from proxy.engine.specs import EVERYTHING, Change, OpenListener
from proxy.engine.worker import Worker

if TYPE_CHECKING:
    from socket import SocketType

    from proxy.control.crew import Expect
    from proxy.control.house import House

INTERIM: Final = 20.0
"""Seconds for an interim worker to be there; a process needs half a second, or several."""

log = structlog.get_logger()


class Heir:
    """Has a worker expect what comes by a socket of ours, which is ``end``."""

    def __init__(self) -> None:
        self.end, self._theirs = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_STREAM)
        self.present = trio.Event()

    async def introduce(self, _index: int, expect: Expect) -> bool:
        """Have the worker expect flows; see ``Heritage.introduce``."""
        if self.present.is_set():
            return False
        with self._theirs:
            await expect([self._theirs])
        self.present.set()
        return True

    def close(self) -> None:
        """Close both ends, as far as they are ours."""
        self.end.close()
        self._theirs.close()


async def depart(house: House) -> bool:
    """Leave everything that lives to a successor; false if there can be none.

    Returns when nothing lives in this process any more. Cancelling leaves what is left to end.
    """
    if not house.notifier:
        log.warning(
            "leave_refused",
            reason="no service manager keeps what would be left",
            remedy='"sockpair upgrade" starts a successor by itself',
        )
        return False
    await house.stop_changing()
    if isinstance(house.worker, Worker):
        async with trio.open_nursery() as nursery:
            await _leave_to_interim(house, house.worker, nursery)
            nursery.cancel_scope.cancel()
    else:
        await _part(house, house.worker)
    house.notifier.wait_done()
    return True


async def _leave_to_interim(house: House, worker: Worker, nursery: trio.Nursery) -> None:
    crew, heir = Crew(1, *house.bounds, ChannelStore(house.notifier)), Heir()
    crew.inherits = heir.introduce
    await crew.apply(_duplicated(house.whole_change()))
    begun = trio.Event()
    nursery.start_soon(_begin, crew, nursery, begun)
    try:
        with trio.fail_after(INTERIM):
            await heir.present.wait()
        left = await worker.leave(house.leave_order(house.config.listener), [heir.end])
    except (trio.TooSlowError, HandOverError) as error:
        log.error("interim_failed", reason=str(error) or f"not there within {INTERIM:g} s")
        await house.drain(EVERYTHING)
        await worker.wait_drained()
        return
    finally:
        heir.close()
    log.info("left_to_interim", flows=left.handed, pause=round(left.longest, 3))
    await begun.wait()
    await crew.own()
    await crew.log_flows(worker.flow_log)
    await house.entrust(crew)
    await house.drain(EVERYTHING)
    await worker.wait_drained()
    await _part(house, crew)


async def _begin(crew: Crew, nursery: trio.Nursery, begun: trio.Event) -> None:
    await nursery.start(crew.run)
    begun.set()


async def _part(house: House, crew: Crew) -> None:
    await house.entrust(crew)
    await crew.part()
    house.is_parted = True


def _duplicated(change: Change) -> Change:
    """The same with sockets that can be closed by themselves."""
    opened = (OpenListener(spec, tuple(map(_duplicate, group))) for spec, group in change.opened)
    return replace(change, opened=tuple(opened))


def _duplicate(socket: SocketType) -> SocketType:
    with suppress(OSError):  # it was drained
        return stdlib.socket.dup(cast("stdlib.socket", socket))
    return socket
