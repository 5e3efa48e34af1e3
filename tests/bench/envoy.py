"""The configuration of Envoy: a listener with one filter, and a cluster of one endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tests.bench.programs import LOCAL

CONNECTIONS: Final = 100_000
"""Its default circuit breaker admits 1024."""


def bootstrap(transport: str, listen: int, origin: int, log_file: Path) -> dict[str, Any]:
    """The configuration that forwards one local port to another."""
    log = _typed(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=str(log_file),
    )
    listener = _streams(log) if transport == "tcp" else _datagrams(log)
    listener["name"] = "bench"
    listener["address"] = _address(listen, transport)
    cluster = {
        "name": "origin",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": CONNECTIONS}]},
        "load_assignment": {
            "cluster_name": "origin",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(origin, "tcp")}}]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _streams(log: dict[str, Any]) -> dict[str, Any]:
    relay = _typed(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="bench",
        cluster="origin",
        idle_timeout="7200s",
        access_log=[log],
    )
    return {"filter_chains": [{"filters": [relay]}]}


def _datagrams(log: dict[str, Any]) -> dict[str, Any]:
    udp = "envoy.extensions.filters.udp.udp_proxy.v3"
    relay = _typed(
        "envoy.filters.udp_listener.udp_proxy",
        f"{udp}.UdpProxyConfig",
        stat_prefix="bench",
        matcher={"on_no_match": {"action": _typed("route", f"{udp}.Route", cluster="origin")}},
        access_log=[log],
    )
    return {"udp_listener_config": {}, "listener_filters": [relay]}


def _address(port: int, transport: str) -> dict[str, Any]:
    protocol = transport.upper()
    return {"socket_address": {"protocol": protocol, "address": LOCAL, "port_value": port}}


def _typed(name: str, type_: str, **values: Any) -> dict[str, Any]:
    """A named extension with its configuration."""
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{type_}", **values}}
