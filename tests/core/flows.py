"""Flows for tests of the core: a valid flow in one line."""

from __future__ import annotations

from proxy.core.address import Address, Transport
from proxy.core.counters import ListenerCounters
from proxy.core.flow import Direction, Flow, State

CLIENT: Address = ("192.0.2.1", 40000)
LOCAL: Address = ("198.51.100.1", 443)


def tcp_counters(name: str = "web") -> ListenerCounters:
    return ListenerCounters(name, Transport.TCP, "origin")


def tcp_flow(
    id: int = 1,
    counters: ListenerCounters | None = None,
    client: Address = CLIENT,
    local: Address = LOCAL,
    now: float = 0.0,
) -> Flow:
    return Flow(
        id,
        counters or tcp_counters(),
        client,
        local,
        Direction(),
        Direction(),
        State.CONNECTING,
        now,
    )


def udp_flow(id: int = 1, now: float = 0.0, client: Address = CLIENT) -> Flow:
    counters = ListenerCounters("dns", Transport.UDP, "resolvers")
    return Flow(id, counters, client, LOCAL, Direction(), Direction(), State.UNREPLIED, now)
