"""From the configuration to what the worker is told."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Final

from proxy.core.access import ANYBODY, NONE, AccessList
from proxy.core.admission import AdmissionLimits
from proxy.core.ceiling import ShapeRates, shaping_rate
from proxy.core.expiry import FlowLimits
from proxy.core.longest import LongestMatch
from proxy.core.pace import Pace
from proxy.core.proxy_protocol import HeaderStyle
from proxy.core.rate import Rate
from proxy.core.survive import Survive
from proxy.core.waiting import WaitLimits
from proxy.engine.datagram_options import DatagramOptions, Pmtu
from proxy.engine.options import stream_options
from proxy.engine.preface import ProxyTerms
from proxy.engine.specs import BandwidthLimits, ListenerSpec, RoutesSpec

if TYPE_CHECKING:
    from proxy.config.model import Engine, Limits, Listener, PerSource
    from proxy.config.upstream import Upstream


OPTIONAL_LIMITS: Final = (
    "duration",
    "bytes",
    "bandwidth_original",
    "bandwidth_reply",
    "datagram_rate",
    "amplification",
)
"""Keys of ``per_flow`` that have no default, and limit nothing then."""


HEADER_VERSIONS: Final = {"v1": 1, "v2": 2}


def listener_spec(name: str, listener: Listener) -> ListenerSpec:
    """A listener, as the worker knows it."""
    return ListenerSpec(
        name=name,
        transport=listener.listen.transport,
        upstream=listener.upstream,
        limits=limits_of(listener),
        access=access_of(listener),
        admission=admission_of(listener.limits),
        proxied=proxied_of(listener),
        routes=routes_of(listener),
        waiting=waiting_of(listener.limits),
        bandwidth=bandwidth_of(listener.limits),
        options=stream_options(listener.tcp),
        datagrams=datagram_options(listener),
        transparent=listener.transparent,
        priority=listener.priority,
        survive=Survive(listener.survive),
    )


def access_of(listener: Listener) -> AccessList:
    """Who may open flows.

    What is both allowed and denied, in whichever file, is denied; and an empty file of those who
    are allowed allows nobody.
    """
    allowed, denied = listener.allow_file, listener.deny_file
    access = AccessList(
        listener.allow,
        listener.deny,
        others=not listener.allow and allowed is None,
        more_allowed=NONE if allowed is None else allowed.prefixes,
        more_denied=NONE if denied is None else denied.prefixes,
    )
    return ANYBODY if access.everybody else access


def proxied_of(listener: Listener) -> ProxyTerms | None:
    """Who speaks for others at a listener."""
    if not listener.proxy_from:
        return None
    trusted = AccessList(listener.proxy_from, (), others=False)
    return ProxyTerms(trusted, listener.proxy_only, listener.proxy_timeout)


def routes_of(listener: Listener) -> RoutesSpec | None:
    """Who goes to other upstreams of a listener."""
    if not listener.routes:
        return None
    routes = tuple(listener.routes.items())
    return RoutesSpec(routes, listener.hello_timeout, counted=listener.route_metrics)


def style_of(upstream: Upstream) -> HeaderStyle | None:
    """How endpoints are told who the client is."""
    if upstream.send_proxy is None:
        return None
    return HeaderStyle(HEADER_VERSIONS[upstream.send_proxy], upstream.send_proxy_crc32c)


def admission_of(limits: Limits) -> AdmissionLimits:
    """How many flows a listener admits, and how fast."""
    per_source = limits.per_source
    return AdmissionLimits(
        flows=limits.flows,
        flow_rate=_flow_rate(limits),
        source_flows=per_source.flows,
        source_rate=_flow_rate(per_source),
        prefix_v4=per_source.prefix_v4,
        prefix_v6=per_source.prefix_v6,
        dry_run=limits.dry_run,
    )


def waiting_of(limits: Limits | Upstream) -> WaitLimits | None:
    """How those wait who may not come in, or find every endpoint full."""
    return WaitLimits(limits.wait, limits.wait_flows) if limits.when_full == "wait" else None


def bandwidth_of(limits: Limits) -> BandwidthLimits:
    """How many bytes a second the flows of a listener move; each direction has as much."""
    common, source = _shaping(limits.bandwidth), _shaping(limits.per_source.bandwidth)
    per_flow = limits.per_flow
    original, reply = (
        ShapeRates(listener=common, source=source, flow=_shaping(flow))
        for flow in (per_flow.bandwidth_original, per_flow.bandwidth_reply)
    )
    return BandwidthLimits(original, reply, LongestMatch(limits.weights))


def _shaping(per_second: float | None) -> Rate | None:
    return None if per_second is None else shaping_rate(per_second)


def _flow_rate(ceilings: Limits | PerSource) -> Rate | None:
    if ceilings.flow_rate is None:
        return None
    return Rate(ceilings.flow_rate, ceilings.burst or max(1, ceil(ceilings.flow_rate)))


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
    chosen = {
        name: value for name in OPTIONAL_LIMITS if (value := getattr(per_flow, name)) is not None
    }
    return replace(clocks, **chosen)


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
