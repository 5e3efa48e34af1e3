"""From the configuration to what the worker is told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.core.expiry import FlowLimits
from proxy.core.pace import Pace
from proxy.engine.datagram_options import DatagramOptions, Pmtu
from proxy.engine.options import stream_options
from proxy.engine.specs import ListenerSpec

if TYPE_CHECKING:
    from proxy.config.model import Engine, Listener


def listener_spec(name: str, listener: Listener) -> ListenerSpec:
    """A listener, as the worker knows it."""
    return ListenerSpec(
        name=name,
        transport=listener.listen.transport,
        upstream=listener.upstream,
        limits=limits_of(listener),
        options=stream_options(listener.tcp),
        datagrams=datagram_options(listener),
        transparent=listener.transparent,
    )


def limits_of(listener: Listener) -> FlowLimits:
    """The clocks of a listener's flows, as the configuration sets them."""
    per_flow = listener.limits.per_flow
    clocks = FlowLimits(
        connect=per_flow.connect,
        idle=listener.idle,
        half_closed=per_flow.half_closed,
        unreplied=per_flow.unreplied,
        linger=per_flow.linger,
    )
    if per_flow.duration is None:
        return clocks
    return replace(clocks, duration=per_flow.duration)


def datagram_options(listener: Listener) -> DatagramOptions:
    """How a listener's datagram flows are treated."""
    return DatagramOptions(
        pmtu=Pmtu(listener.pmtu),
        responses=listener.responses or 0,
        datagrams=listener.datagrams or 0,
        broadcast=listener.broadcast,
        multicast=bool(listener.multicast),
    )


def pace_of(engine: Engine, timeout: float | None = None) -> Pace:
    """How drains take their time; the timeout may be another than the configured one."""
    chosen = engine.drain_timeout if timeout is None else timeout
    return Pace(chosen, engine.drain_rate, engine.drain_spread)
