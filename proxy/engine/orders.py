"""Orders at work: what operators have limited while the worker runs; see ``core.live_limit``.

An order that limits bandwidth has a throttle and a policer for each direction, as a listener has:
``bandwidth`` is the ceiling of all flows it is for, ``flow_bandwidth`` of each of them. They are
asked beside those of the listener (see ``toll``). An order that limits ``flows`` is asked when a
flow is admitted, and counts those it is for.

A flow is compared with the orders when it is opened, when its endpoint is known, and when the
orders change; which are for it is remembered until it ends. A worker without orders pays one look
at an empty table for each flow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from proxy.core.admission import Limit
from proxy.core.ceiling import ShapeRates, shaping_rate
from proxy.core.flow import Refusal
from proxy.core.live_limit import FREE, Restraint, restrained, restraint_of
from proxy.core.police import Policer
from proxy.engine.datagram import DatagramFlow
from proxy.engine.limited import OrderedPart, order_live
from proxy.engine.sources import source_key_of
from proxy.engine.stream import StreamFlow
from proxy.engine.throttle import Throttle
from proxy.engine.toll import Toll

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.counters import ListenerCounters
    from proxy.core.expiry import FlowLimits
    from proxy.core.flow import Flow
    from proxy.core.live_limit import LiveLimit
    from proxy.engine.alarms import Alarms
    from proxy.engine.leg import StreamLeg
    from proxy.engine.port import OrderCount

AnyFlow: TypeAlias = StreamFlow | DatagramFlow


class _Order:
    """An order at work.

    Attributes:
        order: what it says.
        flows: live ones that it is for.
        shapes: whether it limits bandwidth.

    """

    __slots__ = ("_policers", "_throttles", "flows", "order", "shapes")

    def __init__(self, order: LiveLimit, alarms: Alarms, now: float) -> None:
        self.order = order
        self.flows = 0
        values = order.values
        shared, each = (
            None if value is None else shaping_rate(value)
            for value in (values.bandwidth, values.flow_bandwidth)
        )
        rates = ShapeRates(listener=shared, flow=each)
        self.shapes = rates != ShapeRates()
        self._throttles = (Throttle(alarms, rates, now), Throttle(alarms, rates, now))
        self._policers = (Policer(rates, now), Policer(rates, now))

    @property
    def is_full(self) -> bool:
        """Whether there are as many flows as there may be."""
        most = self.order.values.flows
        return most is not None and self.flows >= most

    def toll(self, flow: StreamFlow, now: float) -> None:
        """Have both legs of a flow ask here, before what they ask now."""
        source = source_key_of(flow, flow.counters.gate.limits)
        for leg, throttle in zip((flow.original, flow.reply), self._throttles, strict=True):
            leg.meter = Toll(throttle, leg, leg.own_meter(), source, now)

    def part(self, flow: DatagramFlow, now: float) -> tuple[OrderedPart, OrderedPart]:
        """Let a flow of datagrams in, for each direction."""
        source = source_key_of(flow, flow.counters.gate.limits)
        original, reply = self._policers
        return (
            OrderedPart(original, original.join(source, now)),
            OrderedPart(reply, reply.join(source, now)),
        )


class _Held:
    """A live flow that orders are for.

    Attributes:
        orders: which.
        limits: the flow's without them.

    """

    __slots__ = ("limits", "orders")

    def __init__(self, orders: tuple[_Order, ...], limits: FlowLimits) -> None:
        self.orders = orders
        self.limits = limits

    @property
    def restraint(self) -> Restraint:
        """What all of them allow."""
        return restraint_of(each.order.values for each in self.orders)


class Orders:
    """All orders of a worker, and the flows they are for.

    Args:
        alarms: of the pump.

    Attributes:
        are_there: whether there are any; to be asked without a call.
        held: the live flows that some are for, by id.

    """

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._orders: dict[int, _Order] = {}
        self._ceilings: list[_Order] = []
        self.are_there = False
        self.held: dict[int, _Held] = {}

    def __bool__(self) -> bool:
        return self.are_there

    def become(self, orders: Iterable[LiveLimit], now: float) -> None:
        """Have these orders for flows to come; those that live are told by ``hold``."""
        known = self._orders
        self._orders = {
            order.number: known.get(order.number) or _Order(order, self._alarms, now)
            for order in orders
        }
        self.are_there = bool(self._orders)
        self._ceilings = [
            each for each in self._orders.values() if each.order.values.flows is not None
        ]

    def counts(self) -> list[OrderCount]:
        """How many live flows each order is for."""
        return [{"number": number, "flows": order.flows} for number, order in self._orders.items()]

    def admitting(self, counters: ListenerCounters, client: Address) -> list[tuple[LiveLimit, int]]:
        """The orders for a number of flows that a client who comes to a listener would count for.

        Each with the live flows that it is for.
        """
        return [
            (each.order, each.flows)
            for each in self._ceilings
            if each.order.admits_to(counters.listener, client)
        ]

    def refusal(self, counters: ListenerCounters, client: Address) -> Refusal | None:
        """Why an order keeps out a client who comes to a listener; or None. Counts the hit."""
        for each in self._ceilings:
            if each.is_full and each.order.admits_to(counters.listener, client):
                counters.strikes(Limit.ORDERED_FLOWS)
                return Refusal.ORDERED_FLOWS
        return None

    def hold(self, flow: AnyFlow, now: float, *, anew: bool = False) -> None:
        """Have a live flow kept to the orders that are for it, and to no others.

        Args:
            flow: which.
            now: monotonic seconds.
            anew: it has just been given other limits by its listener, in place of all it had.

        """
        held = self.held.get(flow.id)
        before = () if held is None else held.orders
        orders = tuple(each for each in self._orders.values() if each.order.query.matches(flow))
        if orders == before and not (anew and orders):
            return
        for order in before:
            order.flows -= 1
        for order in orders:
            order.flows += 1
        limits = flow.limits if anew or held is None else held.limits
        held = _Held(orders, limits)
        if orders:
            self.held[flow.id] = held
        else:
            del self.held[flow.id]
        if isinstance(flow, StreamFlow):
            _hold_stream(flow, held, now)
        else:
            _hold_datagrams(flow, held, now)

    def let_go(self, flow: Flow) -> None:
        """Forget a flow that has ended."""
        held = self.held.pop(flow.id, None)
        if held is not None:
            for order in held.orders:
                order.flows -= 1

    def restraint_of(self, flow: Flow) -> Restraint:
        """What orders allow a live flow."""
        held = self.held.get(flow.id)
        return FREE if held is None else held.restraint


def _hold_stream(flow: StreamFlow, held: _Held, now: float) -> None:
    """Put the tolls of a flow's orders before the meters of its listener."""
    flow.limits = restrained(held.limits, held.restraint)
    legs: Sequence[StreamLeg] = (flow.original, flow.reply)
    for leg in legs:
        while isinstance(leg.meter, Toll):
            leg.meter = leg.meter.lift(now)
        if leg.meter is not None:
            leg.meter.tell(leg)
    for order in held.orders:
        if order.shapes:
            order.toll(flow, now)
    for leg in legs:
        leg.meter_changed()


def _hold_datagrams(flow: DatagramFlow, held: _Held, now: float) -> None:
    parts = [order.part(flow, now) for order in held.orders if order.shapes]
    order_live(flow, held.restraint, parts, now)
