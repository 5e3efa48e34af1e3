"""What a listener holds its flows to; the same for all its sockets, and another after a reload."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.core.access import ANYBODY, AccessList

if TYPE_CHECKING:
    from proxy.core.expiry import FlowLimits
    from proxy.core.proxy_protocol import HeaderStyle
    from proxy.engine.limited import Policing
    from proxy.engine.preface import PrefaceRoom, ProxyTerms
    from proxy.engine.routed import Routes
    from proxy.engine.survival.will import Will
    from proxy.engine.throttle import Bandwidth
    from proxy.engine.waiting import WaitingRoom


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Terms:
    """What a listener holds its flows to.

    Attributes:
        limits: of each flow.
        access: who may open one.
        bandwidth: what those of streams share; None if it is not limited.
        policing: the same of datagrams; None if nothing is limited of them.
        priority: of packets to clients of streams (SO_PRIORITY); None leaves it to the kernel.
        prefaces: where who speaks for others waits until it has said so; None if nobody does.
        proxied: who must say for whom each datagram is; None if nobody must.
        routes: where flows of streams go by what they say first; None if all go the same way.
        style: of the headers to endpoints; None if there are none.
        waiting: where who may not come in waits; None if nobody does.
        will: where its flows are left behind, should the worker be killed; None if they are not.
        is_plain: whether flows of streams are like most: no priority, routes or headers.

    """

    limits: FlowLimits
    access: AccessList = ANYBODY
    bandwidth: Bandwidth | None = None
    policing: Policing | None = None
    priority: int | None = None
    prefaces: PrefaceRoom | None = None
    proxied: ProxyTerms | None = None
    routes: Routes | None = None
    style: HeaderStyle | None = None
    waiting: WaitingRoom | None = None
    will: Will | None = None
    is_plain: bool = field(init=False)

    def __post_init__(self) -> None:
        """Derive what every flow would derive again."""
        plain = self.priority is None and self.routes is None and self.style is None
        object.__setattr__(self, "is_plain", plain)
