"""Signals: what SIGHUP, SIGTERM and SIGINT do to the house.

=================  ============================================================================
SIGHUP             reload the configuration; while one is under way, once more after it
SIGUSR2            leave what lives to a successor, whom the service manager is about to start; end
SIGTERM, SIGINT    stop: accept no more, drain, end; a second one ends at once
=================  ============================================================================
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import structlog
import trio

from proxy.control.crew import Crew
from proxy.control.departure import depart
from proxy.engine.specs import EVERYTHING

if TYPE_CHECKING:
    from proxy.control.house import House
    from proxy.control.steward import Steward

HEARD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)

ENDS: Final = (signal.SIGTERM, signal.SIGINT)

LAST_STEPS: Final = 10.0
"""Seconds a stop may take after its drain: to end workers, and to write the last lines."""

log = structlog.get_logger()


async def obey_signals(house: House, steward: Steward) -> None:
    """Do what signals say, until every flow has ended or is left, or somebody insists."""
    hangup = Bell()
    with trio.open_signal_receiver(*HEARD) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_reload_at, hangup, steward)
            nursery.start_soon(_end_when_succeeded, house, nursery.cancel_scope)
            reason = await _wait_end(signals, hangup)
            while reason == signal.SIGUSR2:
                if await _leave(house, signals):
                    nursery.cancel_scope.cancel()
                    return
                reason = await _wait_end(signals, hangup)
            await _begin_stop(house, reason)
            nursery.start_soon(_end_at_second, signals, nursery.cancel_scope)
            await house.worker.wait_drained()
            await house.heritage.wait_ended()  # they began to drain before us, by the same times
            nursery.cancel_scope.cancel()


async def _end_when_succeeded(house: House, scope: trio.CancelScope) -> None:
    """End when a successor has everything, and our last flow has ended, or it says that we may."""
    await house.succeeded.wait()
    if isinstance(house.worker, Crew):
        await house.worker.settle()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at, house.released, nursery.cancel_scope)
        await house.worker.wait_drained()
        nursery.cancel_scope.cancel()
    await house.answered.wait()  # who asked for the upgrade, for one
    scope.cancel()


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _leave(house: House, signals: AsyncIterator[int]) -> bool:
    """Leave what lives to a successor; false if that cannot be, and everything goes on."""
    left = True  # also when somebody insists
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_at_second, signals, nursery.cancel_scope)
        left = await depart(house)
        nursery.cancel_scope.cancel()
    return left


async def _reload_at(hangup: Bell, steward: Steward) -> None:
    while True:
        await hangup.wait()
        await steward.reload("SIGHUP")


async def _wait_end(signals: AsyncIterator[int], hangup: Bell) -> signal.Signals:
    async for number in signals:
        if number != signal.SIGHUP:
            return signal.Signals(number)
        hangup.pull()
    raise AssertionError("the receiver never ends by itself")


async def _begin_stop(house: House, reason: signal.Signals) -> None:
    flows = (await house.worker.status())["flows"]
    engine = house.config.engine
    log.info("stopping", reason=reason.name, flows=flows, timeout=engine.drain_timeout)
    longest = engine.drain_timeout + engine.drain_spread + LAST_STEPS
    house.notifier.stopping(f"{reason.name}: {flows} flows drain", patience=longest)
    await house.drain(EVERYTHING)


async def _end_at_second(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        if number in ENDS:
            log.warning("ending_at_once", reason=signal.Signals(number).name)
            scope.cancel()
            return
        if number == signal.SIGHUP:
            log.warning("reload_refused", reason="stopping")


class Bell:
    """Rings once for any number of pulls before it is heard."""

    def __init__(self) -> None:
        self._pulled = trio.Event()

    def pull(self) -> None:
        """Ring, unless it is ringing."""
        self._pulled.set()

    async def wait(self) -> None:
        """Wait until it rings, and silence it."""
        await self._pulled.wait()
        self._pulled = trio.Event()
