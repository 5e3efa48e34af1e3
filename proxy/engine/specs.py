"""What the worker is told: listeners, upstreams and how they change, as plain values.

A spec says what shall be; from it the worker makes what runs. Everything here is frozen and can be
pickled, because a worker may live in another process; sockets travel beside it, and are known by
their cookie, a number that the kernel gives to each and that all duplicates of a socket share.

A change has been rehearsed before it is sent: names are resolved, sockets bound, options tried.
So the worker applies it as a whole, and does not fail.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf
from socket import SOL_SOCKET
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from proxy.core.access import ANYBODY, AccessList
from proxy.core.admission import UNLIMITED, AdmissionLimits
from proxy.core.balance.ways import Balance
from proxy.core.ceiling import ShapeRates
from proxy.core.ejection import EjectionTerms
from proxy.core.longest import LongestMatch
from proxy.core.steering import worker_of
from proxy.core.survive import Survive
from proxy.core.upstream import HOME, MulticastPath
from proxy.engine.datagram_options import ORDINARY, DatagramOptions
from proxy.engine.marks import UNMARKED, Marks
from proxy.engine.options import NODELAY, SocketOptions

if TYPE_CHECKING:
    from proxy.core.address import Address, Transport
    from proxy.core.condition import Administration, Health
    from proxy.core.expiry import FlowLimits
    from proxy.core.pace import Pace
    from proxy.core.proxy_protocol import HeaderStyle
    from proxy.core.server_names import RoutePattern
    from proxy.core.waiting import WaitLimits
    from proxy.engine.preface import ProxyTerms

SO_COOKIE: Final = 57  # asm-generic/socket.h; Linux 4.12
COOKIE_SIZE: Final = 8


class EndpointSpec(NamedTuple):
    """One endpoint: its name in the configuration, where that is, and its part of the flows.

    A name that has several addresses is in as many of these.
    """

    name: str
    address: Address
    weight: int = 1
    backup: bool = False
    ceiling: float = inf


class HealthReport(NamedTuple):
    """What active checks say of one endpoint, and why, in a few words."""

    upstream: str
    endpoint: str
    address: Address
    health: Health
    reason: str


class EndpointOrder(NamedTuple):
    """What operators want of an endpoint, from now on; it outlives a reload."""

    upstream: str
    endpoint: str
    administration: Administration


class SourceSpec(NamedTuple):
    """Where flows to an upstream leave from; see ``core.source``."""

    hosts: tuple[str, ...]
    ports: range


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSpec:
    """An upstream as it shall be.

    Attributes:
        name: of the upstream.
        endpoints: resolved; none where flows go to their original destination.
        original: whether they do.
        balance: how one is chosen.
        ejection: when endpoints are ejected for what flows met with.
        closes_fallen: whether the flows of one that is down or ejected are closed.
        slow_start: seconds until one that comes back has its whole share.
        waiting: how flows wait for one that is full; None refuses them at once.
        multicast: the way to endpoints that are groups.
        marks: of the sockets to endpoints.
        copies_dscp: whether those have the DSCP of the client instead.
        source: the addresses to leave from; None leaves them to the kernel.
        style: of the headers that tell endpoints who the client is; None sends none.

    """

    name: str
    endpoints: tuple[EndpointSpec, ...] = ()
    original: bool = False
    balance: Balance = Balance.ROUND_ROBIN
    ejection: EjectionTerms | None = None
    closes_fallen: bool = False
    slow_start: float = 0.0
    waiting: WaitLimits | None = None
    multicast: MulticastPath = HOME
    marks: Marks = UNMARKED
    copies_dscp: bool = False
    source: SourceSpec | None = None
    style: HeaderStyle | None = None


EQUAL: Final[LongestMatch[int]] = LongestMatch({})


class BandwidthLimits(NamedTuple):
    """The bandwidth of a listener's flows.

    Attributes:
        original: from clients.
        reply: to clients.
        weights: of sources beside others; the weight of those that no prefix holds is 1.

    """

    original: ShapeRates
    reply: ShapeRates
    weights: LongestMatch[int] = EQUAL

    @property
    def restrict(self) -> bool:
        """Whether there is any ceiling."""
        return self[:2] != UNRESTRICTED[:2]


UNRESTRICTED: Final = BandwidthLimits(ShapeRates(), ShapeRates())


class RoutesSpec(NamedTuple):
    """Where flows of a listener go by what they say first.

    Attributes:
        upstreams: their names, by who goes there.
        time: seconds that a ClientHello may take.
        counted: whether it is told how many flows took each.

    """

    upstreams: tuple[tuple[RoutePattern, str], ...]
    time: float
    counted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSpec:
    """A listener as it shall be.

    Attributes:
        name: of the listener.
        transport: of its sockets.
        upstream: the name of the upstream its flows go to.
        access: who may open flows.
        admission: how many, and how fast.
        proxied: who speaks for others, and must say for whom; None if nobody does.
        routes: who goes to other upstreams; None if nobody does.
        waiting: how others may wait for that; None refuses them at once.
        bandwidth: how many bytes a second they may move.
        limits: the clocks of its flows.
        options: for the sockets to endpoints (TCP); accepted ones inherit the listening one's.
        datagrams: how datagram flows are treated.
        transparent: whether it takes what was diverted, and leaves as the client if it may.
        priority: of packets to clients, which accepted sockets do not inherit; None leaves it.
        survive: what its flows live on through.
        slot: where workers tell each other of it; None if they need not. See ``commons``.

    """

    name: str
    transport: Transport
    upstream: str
    limits: FlowLimits
    access: AccessList = ANYBODY
    admission: AdmissionLimits = UNLIMITED
    proxied: ProxyTerms | None = None
    routes: RoutesSpec | None = None
    waiting: WaitLimits | None = None
    bandwidth: BandwidthLimits = UNRESTRICTED
    options: SocketOptions = NODELAY
    datagrams: DatagramOptions = ORDINARY
    transparent: bool = False
    priority: int | None = None
    survive: Survive = Survive.RESTART
    slot: int | None = None

    @property
    def is_limited_whole(self) -> bool:
        """Whether anything limits the listener as a whole, which holds over all its workers."""
        rates = self.bandwidth.original, self.bandwidth.reply
        return self.admission.as_a_whole or any(each.listener for each in rates)


class OpenListener(NamedTuple):
    """A listener and its bound, non-blocking sockets, which become the worker's.

    A socket that the worker has already goes on serving its flows, now for this listener.
    """

    spec: ListenerSpec
    sockets: tuple[Socket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What the worker shall be from now on.

    Attributes:
        upstreams: all of them.
        opened: listeners that are new, or have other sockets than before; the former sockets
            of such a name accept no more, and their flows live on.
        changed: listeners that keep their sockets.
        closed: names of listeners that are no more: they accept no more, and their flows drain.
        pace: how those drain.
        table_limit: flows at once.
        recent: ended flows remembered.
        sample_rate: flows a second that the kernel is asked about, in each worker.

    """

    upstreams: tuple[UpstreamSpec, ...]
    opened: tuple[OpenListener, ...] = ()
    changed: tuple[ListenerSpec, ...] = ()
    closed: tuple[str, ...] = ()
    pace: Pace
    table_limit: int
    recent: int
    sample_rate: float = 1000.0


class DrainTarget(NamedTuple):
    """What drains: a listener, an endpoint of an upstream, or (all None) everything."""

    listener: str | None = None
    upstream: str | None = None
    endpoint: str | None = None


EVERYTHING: Final = DrainTarget()


class DrainOrder(NamedTuple):
    """Open no more flows of the target, let those there are finish, and end what is left."""

    target: DrainTarget
    pace: Pace


class Steered(NamedTuple):
    """Which of several workers has a listener's flows: by the prefix of the source, or a lone one.

    Attributes:
        workers: how many share them.
        lone: who has them where that is one.
        prefix_v4: bits of an address by which they are shared, and
        prefix_v6: the same of IPv6.

    """

    workers: int
    lone: int = 0
    prefix_v4: int = 32
    prefix_v6: int = 64

    def heir_of(self, host: str) -> int:
        """Who has the flows of a host."""
        if self.workers == 1:
            return self.lone
        return worker_of(ip_address(host), self.workers, self.prefix_v4, self.prefix_v6)


LeaveOrder: TypeAlias = Mapping[str, Steered]
"""Whom a worker that leaves hands its flows over to, by listener; others stay with it."""


def cookie_of(socket: Socket) -> int:
    """The number by which the kernel knows a socket, whoever holds it."""
    return int.from_bytes(socket.getsockopt(SOL_SOCKET, SO_COOKIE, COOKIE_SIZE), sys.byteorder)
