"""Puts a configuration to work until it is told to stop: what ``run`` and ``demo`` share.

The tasks stand inside each other in the order they must end. First the relay ends its flows, then
the flow log writes the last of them, then the sink writes the last lines.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import structlog
import trio

from proxy import __version__
from proxy.control.house import NOBODY, NOTHING, House
from proxy.control.newcomer import UnwantedError
from proxy.control.opening import open_house
from proxy.control.steward import Steward
from proxy.control.watchdog import keep_telling
from proxy.core.address import format_address
from proxy.core.unix import listening_url
from proxy.observe.hits import log_hits
from proxy.observe.log import FlowSink, configure, set_up, write_flow_log
from proxy.observe.server import serve_admin
from proxy.observe.trust import Trust

if TYPE_CHECKING:
    from proxy.config.model import Config, Log
    from proxy.control.inherited import Inheritance
    from proxy.control.newcomer import Newcomer
    from proxy.control.notify import Notifier

Stay: TypeAlias = "Callable[[House, Steward], Awaitable[None]]"
"""What goes on while everything runs; it returns when it is time to end."""

log = structlog.get_logger()


async def serve(
    config: Config,
    stay: Stay,
    file: str | None = None,
    notifier: Notifier = NOBODY,
    inheritance: Inheritance = NOTHING,
    newcomer: Newcomer | None = None,
) -> None:
    """Open the house, relay, and close it again.

    Args:
        config: what to do.
        stay: awaited while everything runs; what is left when it returns is ended at once.
        file: where the configuration came from, to be read again; None if from no file.
        notifier: the line to the service manager.
        inheritance: listening sockets that it passed.
        newcomer: what a predecessor that started us gave, where one did.

    Raises:
        UnwantedError: the predecessor does not want us to take over.
        BindError: a socket could not be bound.
        OptionError: a socket option, or a source, is not to be had.
        ResolveError: an endpoint's name has no address.

    """
    sink = configure(format_of(config.log), config.log.level, config.log.flows)
    with await _opened(config, sink, notifier, inheritance, newcomer) as house:
        steward = Steward(house, file, lambda changed: _adopt_log(changed.log, sink))
        async with trio.open_nursery() as writing:
            await writing.start(sink.run)
            async with trio.open_nursery() as telling:
                telling.start_soon(write_flow_log, house.worker, sink)
                await _relay(house, steward, sink, stay)
                telling.cancel_scope.cancel()
            writing.cancel_scope.cancel()


async def _opened(
    config: Config,
    sink: FlowSink,
    notifier: Notifier,
    inheritance: Inheritance,
    newcomer: Newcomer | None,
) -> House:
    """Open the house; if it cannot be, write what was logged of it, since no task will."""
    try:
        return await open_house(config, notifier, inheritance, newcomer)
    except BaseException:
        sink.flush()
        raise


async def _relay(house: House, steward: Steward, sink: FlowSink, stay: Stay) -> None:
    """Relay and answer the admin until it is time to end; then end what is left."""
    async with trio.open_nursery() as relaying:
        relaying.start_soon(_inherit, house, relaying.cancel_scope)
        await relaying.start(house.worker.run)
        await house.begin()
        relaying.start_soon(_serve_admin, house, steward, sink)
        log.info("started", version=__version__, listening=await _addresses(house))
        relaying.start_soon(steward.keep_limits)
        relaying.start_soon(steward.keep_upgrades)
        relaying.start_soon(house.keep_names)
        relaying.start_soon(house.keep_estate)
        relaying.start_soon(house.checks.run)
        relaying.start_soon(log_hits, house.worker)
        relaying.start_soon(keep_telling, house.worker, house.notifier)
        await stay(house, steward)
        if house.is_parted:
            log.info("left", to="a successor")
        else:
            if not house.succeeded.is_set():  # else they are the successor's to look after
                await house.heritage.end()
            log.info("stopped", ended=await _finish(house))
        relaying.cancel_scope.cancel()


async def _finish(house: House) -> int:
    """End what is left; return how many flows the stop has ended, by its drain and now."""
    drains = (await house.worker.status())["drains"]
    by_drain = sum(row["ended"] for row in drains if row["listener"] is row["upstream"] is None)
    return by_drain + await house.worker.finish()


async def _inherit(house: House, scope: trio.CancelScope) -> None:
    """Take over from predecessors; end if the one that started us does not want us to."""
    try:
        await house.inherit()
    except UnwantedError as error:
        log.error("not_wanted", reason=str(error), remedy="it goes on, if it is there; we end")
        scope.cancel()


def _adopt_log(log_config: Log, sink: FlowSink) -> None:
    """Log as a reloaded configuration says, from the next line on."""
    set_up(sink, format_of(log_config), log_config.level, log_config.flows)


async def _serve_admin(house: House, steward: Steward, sink: FlowSink) -> None:
    """Answer the admin, once all is there that was counted before us: else counters would fall.

    Who asks earlier waits in the queue of the listening socket.
    """
    await house.inherited.wait()
    listeners = [
        trio.SocketListener(trio.socket.from_stdlib_socket(socket)) for socket in house.admin
    ]
    await serve_admin(
        house.worker,
        steward,
        listeners,
        log_dropped=lambda: sink.dropped,
        leaving=house.succeeded,
        trust=Trust(frozenset(house.config.admin.hosts), house.admin_users),
        max_series=house.config.admin.max_series,
    )
    house.answered.set()


async def _addresses(house: House) -> list[str]:
    listening = (await house.worker.status())["listening"]
    admin = [address_of(socket.getsockname()) for socket in house.admin]
    return [listening_url(row["transport"], row["local"]) for row in listening] + admin


def address_of(name: str | tuple[str, int]) -> str:
    """Where an admin socket listens, as a URL or a path."""
    return name if isinstance(name, str) else f"http://{format_address(name)}"


def format_of(log_config: Log) -> Literal["json", "text"]:
    """The log's format; ``auto`` is text for a person at a terminal, else JSON."""
    if log_config.format == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return log_config.format
