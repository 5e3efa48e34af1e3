"""Where a client meant to go before nft diverted its packets to us, and how not to go in circles.

Two ways lead here. TPROXY leaves the packets as they are, so the accepted socket's own address is
the destination; of a datagram it is told by IP_RECVORIGDSTADDR. REDIRECT rewrites them, and the
connection tracking of the kernel knows what they were: SO_ORIGINAL_DST, for TCP.

A destination that is a listener of ours, or a flow that is our own flow diverted again, would be
relayed to ourselves without end; such a flow is refused.

Source: nf_getorigdst in net/ipv4/netfilter and its IPv6 twin, Documentation/networking/tproxy.rst.
"""

from __future__ import annotations

from socket import IPPROTO_IP, IPPROTO_IPV6, SOCK_DGRAM
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

from proxy.core.address import WILDCARDS
from proxy.engine.sockaddr import decode, family_of

if TYPE_CHECKING:
    from proxy.core.address import Address, Transport
    from proxy.engine.relay import Relay

SO_ORIGINAL_DST: Final = 80  # uapi/linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same number

SOCKADDR_SIZE: Final = 28  # sizeof(struct sockaddr_in6), the larger of the two


def original_destination(client: Socket, local: Address) -> Address:
    """Where the client of an accepted TCP socket, whose own address is ``local``, meant to go."""
    level = IPPROTO_IPV6 if ":" in local[0] else IPPROTO_IP
    try:
        return decode(client.getsockopt(level, SO_ORIGINAL_DST, SOCKADDR_SIZE))
    except OSError:  # ENOENT: not rewritten; ENOPROTOOPT: there is no connection tracking
        return local


def is_circle(relay: Relay, transport: Transport, client: Address, destination: Address) -> bool:
    """Whether a flow from the client to its original destination would come back to us."""
    if relay.table.leaving_as(transport, client, destination) is not None:
        return True
    port = destination[1]
    if relay.is_own(destination):
        return True
    return any(relay.is_own((host, port)) for host in WILDCARDS) and is_local(destination[0])


def is_local(host: str) -> bool:
    """Whether this host has the address."""
    probe = Socket(family_of((host, 0)), SOCK_DGRAM)
    try:
        probe.bind((host, 0))
    except OSError:
        return False
    finally:
        probe.close()
    return True
