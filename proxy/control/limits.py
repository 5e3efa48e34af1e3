"""Limits that operators set on a running sockpair: kept here, so that they outlive what obeys them.

The supervisor has the orders; workers are told all of them whenever they change, and so is one that
takes another's place. A reload knows nothing of them: they hold for what it makes of listeners too.
They end when they are lifted, when their time is over, and when no successor takes over the flows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import structlog
import trio
from pydantic import BaseModel

from proxy.config.plan import value_text
from proxy.config.whole import has_effect
from proxy.core.live_limit import Books, LiveLimit, OrderRow, order_row
from proxy.engine.port import StandingDownError

if TYPE_CHECKING:
    from proxy.config.model import Config
    from proxy.control.house import House
    from proxy.core.address import Transport
    from proxy.core.live_limit import LimitValues
    from proxy.core.query import FlowQuery
    from proxy.engine.port import ConfiguredLimit, LimitsAnswer

log = structlog.get_logger()


class LiveLimits:
    """The orders of a house.

    Args:
        house: which workers it has, and what they are configured to.

    """

    def __init__(self, house: House) -> None:
        self._house = house
        self._books = Books()
        self._given = trio.Event()

    async def run(self) -> None:
        """Go on with those of the life before, and lift whose time is over, until cancelled."""
        await self._house.inherited.wait()
        self._books.restore(self._house.orders)
        while True:
            self._given = trio.Event()
            with trio.move_on_after(max(0.0, self._books.next_end - monotonic())):
                await self._given.wait()
            over = self._books.expire(monotonic())
            for order in over:
                log.info("limit_expired", **_named(order))
            if over:
                with suppress(StandingDownError):  # a successor knows when they are over
                    await self._tell()

    async def answer(self) -> LimitsAnswer:
        """Every limit in force, and where it comes from."""
        counts = await self._counts()
        return {
            "configured": list(configured(self._house.config)),
            "orders": [order_row(each, counts.get(each.number, 0)) for each in self._books.orders],
        }

    async def give(
        self, query: FlowQuery, values: LimitValues, lasting: float | None, by: str
    ) -> OrderRow | None:
        """Keep flows to an order from now on; None if there are too many already."""
        await trio.lowlevel.checkpoint()
        if self._books.full:
            await self._forget_ended()
        if self._books.full:
            return None
        order = self._books.give(query, values, by, monotonic(), time(), lasting)
        try:
            await self._tell()
        except StandingDownError:
            self._books.lift(order.number)
            raise
        log.warning("limit_set", **_named(order), by=by)
        self._given.set()
        return order_row(order, (await self._counts()).get(order.number, 0))

    async def lift(self, number: int, by: str) -> OrderRow | None:
        """Keep flows to an order no more; None if there is none of this number."""
        counts = await self._counts()
        order = self._books.lift(number)
        if order is None:
            return None
        log.warning("limit_lifted", **_named(order), by=by)
        await self._tell()
        return order_row(order, counts.get(number, 0))

    async def _forget_ended(self) -> None:
        """Make room: the limits of single flows that have ended are for nobody any more."""
        counts = await self._counts()
        for order in self._books.orders:
            if order.query.id is not None and not counts.get(order.number):
                self._books.lift(order.number)
                log.info("limit_expired", **_named(order))

    async def _tell(self) -> None:
        """Tell the workers, whoever has left meanwhile."""
        with trio.CancelScope(shield=True):
            await self._house.limit(self._books.orders)

    async def _counts(self) -> dict[int, int]:
        return {row["number"]: row["flows"] for row in await self._house.worker.order_counts()}


def configured(config: Config) -> Iterator[ConfiguredLimit]:
    """The limits that a configuration sets, listener by listener; defaults are among them."""
    for name, listener in config.listener.items():
        yield from _keys(name, listener.listen.transport, "limits", listener.limits)
        if listener.limits.per_flow.idle is None:  # whose default depends on the transport
            idle = value_text("idle", listener.idle)
            yield {"listener": name, "key": "limits.per_flow.idle", "value": idle}


def _keys(
    listener: str, transport: Transport, path: str, table: BaseModel
) -> Iterator[ConfiguredLimit]:
    for key, field in type(table).model_fields.items():
        value, place = getattr(table, key), f"{path}.{key}"
        if not has_effect(field, transport):
            continue
        if isinstance(value, BaseModel):
            yield from _keys(listener, transport, place, value)
        elif value is not None and value is not False:
            yield {"listener": listener, "key": place, "value": value_text(key, value)}


def _named(order: LiveLimit) -> dict[str, Any]:
    """What an order says, for the log."""
    row: dict[str, Any] = {**order_row(order, 0)}
    for key in ("matched", "by", "since"):
        del row[key]
    return {key: value for key, value in row.items() if value is not None}
