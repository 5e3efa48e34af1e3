"""How the datagram flows of a listener are treated, beside their clocks.

Source: ip(7) IP_MTU_DISCOVER, ipv6(7) IPV6_MTU_DISCOVER; uapi/linux/in.h, in6.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from socket import AF_INET6, AF_UNIX, IPPROTO_IP, IPPROTO_IPV6
from socket import SocketType as Socket
from typing import Final

IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23


class Pmtu(StrEnum):
    """What is done about datagrams that are longer than the path can carry."""

    ALLOW = "allow"  # fragment them, and let routers do so: what came in goes out
    SYSTEM = "system"  # as net.ipv4.ip_no_pmtu_disc says; as a rule the first one is lost
    FORBID = "forbid"  # drop and count what is longer than the path is known to carry
    PROBE = "probe"  # forbid, but go by the interface alone, for endpoints that probe the path


DISCOVER: Final = {Pmtu.ALLOW: 0, Pmtu.FORBID: 2, Pmtu.PROBE: 3}
"""IP_PMTUDISC_DONT, _DO and _PROBE; IPV6_PMTUDISC_* have the same numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramOptions:
    """Of one listener.

    Attributes:
        pmtu: fragmentation, on both sides.
        responses: answers to a client's datagram, after which the flow is finished; 0 is any.
        datagrams: of a client that go to one endpoint, before the next is chosen; 0 is all.
        broadcast: whether datagrams to a broadcast address are served.
        multicast: whether those to the groups that were joined are.

    """

    pmtu: Pmtu = Pmtu.ALLOW
    responses: int = 0
    datagrams: int = 0
    broadcast: bool = False
    multicast: bool = False


ORDINARY: Final = DatagramOptions()


def set_pmtu(socket: Socket, pmtu: Pmtu) -> None:
    """Set the policy; an IPv6 socket may carry IPv4 too, and has one for each."""
    value = DISCOVER.get(pmtu)
    if value is None or socket.family == AF_UNIX:
        return
    if socket.family == AF_INET6:
        socket.setsockopt(IPPROTO_IPV6, IPV6_MTU_DISCOVER, value)
    socket.setsockopt(IPPROTO_IP, IP_MTU_DISCOVER, value)
