"""Broadcast and multicast: groups that a listener joins, and endpoints that are many hosts.

A flow to such an endpoint has two sockets at one address of ours. The *sender* is connected to the
endpoint, and is served like any flow's socket; but the kernel gives a connected socket only what
its peer sends, and nobody sends from a group's address. So what the hosts answer comes to the
*hearer*, bound to the same address and not connected. The flow's way from the client thus stays
the ordinary one, and whoever has no such endpoint pays nothing.

Both are bound to the address that routing chooses towards the endpoint. So the table shows it, and
our own broadcasts, which the kernel also delivers to listeners on this host, are known as ours
when they come back: that would be an endless loop.

Source: ip(7), ipv6(7), socket(7); uapi/linux/in.h for IP_MULTICAST_ALL and IP_UNICAST_IF.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from select import EPOLLIN
from socket import (
    AF_INET6,
    INADDR_ANY,
    IP_ADD_MEMBERSHIP,
    IP_DROP_MEMBERSHIP,
    IP_MULTICAST_IF,
    IP_MULTICAST_TTL,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_JOIN_GROUP,
    IPV6_LEAVE_GROUP,
    IPV6_MULTICAST_HOPS,
    IPV6_MULTICAST_IF,
    SO_BROADCAST,
    SO_REUSEADDR,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOL_SOCKET,
    inet_pton,
)
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.flow import Drop
from proxy.core.responders import Responders
from proxy.engine.drops import drop_of, kernel_drops
from proxy.engine.sockaddr import canonical, family_of, interface_index

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.upstream import MulticastPath
    from proxy.engine.datagram import DatagramFlow

IP_MULTICAST_ALL: Final = 49
IPV6_MULTICAST_ALL: Final = 29
IP_UNICAST_IF: Final = 50
LIMITED_BROADCAST: Final = "255.255.255.255"


class GroupSockets(NamedTuple):
    """The two sockets towards an endpoint that is many; owned by whoever holds this."""

    sender: Socket
    hearer: Socket


class Answers:
    """Hears every host that answers a flow. Owns the hearer.

    Attributes:
        own: the address of both sockets, by which our own datagrams are known.

    """

    __slots__ = ("_flow", "_socket", "own", "responders")

    def __init__(self, flow: DatagramFlow, hearer: Socket) -> None:
        self._flow = flow
        self._socket = hearer
        self.own = canonical(hearer.getsockname())
        self.responders = Responders()
        relay = flow.listener.relay
        relay.files.used += 1
        relay.own(self.own)

    def hear(self) -> None:
        """Be served from now on, or again: after the flow was frozen, or has been revived."""
        self._flow.listener.relay.pump.register(self._socket.fileno(), self, EPOLLIN)

    def ready(self, mask: int, now: float) -> None:
        """Receive one answer; what else waits is told again in the next round."""
        flow = self._flow
        room = flow.listener.replies.room(flow.fd, now)
        try:
            size, remote = self._socket.recvfrom_into(room)
        except BlockingIOError:
            return
        except OSError as error:
            flow.counters.dropped[drop_of(error)] += 1
            return
        self.responders.count(canonical(remote), size)
        flow.take_reply(size, now)

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow: a fault of ours."""
        self._flow.crashed(error, now)

    def fileno(self) -> int:
        """The hearer's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hear no more; what the kernel dropped meanwhile is counted."""
        self._flow.counters.dropped[Drop.KERNEL] += kernel_drops(self._socket)
        self.depart()

    def depart(self) -> None:
        """Hear no more here."""
        relay = self._flow.listener.relay
        relay.files.used -= 1
        relay.disown(self.own)
        relay.pump.bury(self._socket)


@lru_cache(maxsize=1024)
def is_group(host: str) -> bool:
    """Whether an address by itself stands for many hosts.

    A directed broadcast does not look like one: connect(2) tells, by EACCES.
    """
    try:
        return host == LIMITED_BROADCAST or ip_address(host).is_multicast
    except ValueError:  # the path of a Unix socket
        return False


def open_group(address: Address, path: MulticastPath) -> GroupSockets:
    """Open the sockets towards a broadcast or multicast address.

    Raises:
        OSError: there is no way there; nothing is left open then.

    """
    local = _local_towards(address, path)
    hearer = _socket(address)
    try:
        hearer.bind((local[0], 0, *local[2:]))
        sender = _towards(address, path)
        try:
            sender.bind(hearer.getsockname())
            sender.connect(address)
            for socket in (hearer, sender):  # nobody else shall share the address
                socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
        except OSError:
            sender.close()
            raise
    except OSError:
        hearer.close()
        raise
    return GroupSockets(sender, hearer)


def join_groups(socket: Socket, groups: Sequence[str], interface: str | None) -> None:
    """Have a listening socket receive what is sent to these groups, and to no others.

    Args:
        socket: bound to a wildcard of the groups' family.
        groups: literal addresses, some perhaps with a zone.
        interface: the name of that for those without; None leaves the choice to routing.

    Raises:
        OSError: there is no such interface, or the kernel allows no further group.

    """
    for group in groups:
        request = _membership(group, interface)
        if socket.family == AF_INET6:
            socket.setsockopt(IPPROTO_IPV6, IPV6_JOIN_GROUP, request)
        else:
            socket.setsockopt(IPPROTO_IP, IP_ADD_MEMBERSHIP, request)


def leave_groups(socket: Socket, groups: Sequence[str], interface: str | None) -> None:
    """Receive no more what is sent to these groups, joined with the same arguments."""
    for group in groups:
        with suppress(OSError):  # its interface has gone, and the membership with it
            request = _membership(group, interface)
            if socket.family == AF_INET6:
                socket.setsockopt(IPPROTO_IPV6, IPV6_LEAVE_GROUP, request)
            else:
                socket.setsockopt(IPPROTO_IP, IP_DROP_MEMBERSHIP, request)


def only_joined_groups(socket: Socket) -> None:
    """Keep away what other programs of this host have joined; by default all get everything."""
    if socket.family == AF_INET6:
        with suppress(OSError):  # ENOPROTOOPT: Linux before 4.20
            socket.setsockopt(IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)
    socket.setsockopt(IPPROTO_IP, IP_MULTICAST_ALL, 0)


def _local_towards(address: Address, path: MulticastPath) -> Address:
    """The address of ours that routing leaves from to get there."""
    probe = _towards(address, path)
    try:
        probe.connect(address)
        local: Address = probe.getsockname()
        return local
    finally:
        probe.close()


def _towards(address: Address, path: MulticastPath) -> Socket:
    """A socket that may send to this address, the way that is configured."""
    socket = _socket(address)
    try:
        index = interface_index(path.interface) if path.interface else 0
        if socket.family == AF_INET6:
            scope = (address[3] if len(address) == 4 else 0) or index
            socket.setsockopt(IPPROTO_IPV6, IPV6_MULTICAST_HOPS, path.ttl)
            socket.setsockopt(IPPROTO_IPV6, IPV6_MULTICAST_IF, scope)
        else:
            socket.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)
            socket.setsockopt(IPPROTO_IP, IP_MULTICAST_TTL, path.ttl)
            if index:
                socket.setsockopt(IPPROTO_IP, IP_MULTICAST_IF, _mreqn("0.0.0.0", index))  # noqa: S104
                socket.setsockopt(IPPROTO_IP, IP_UNICAST_IF, struct.pack("!I", index))
    except OSError:
        socket.close()
        raise
    return socket


def _socket(address: Address) -> Socket:
    socket = Socket(family_of(address), SOCK_DGRAM | SOCK_NONBLOCK)
    socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)  # two sockets, one address
    return socket


def _membership(group: str, interface: str | None) -> bytes:
    """What joins a group or leaves it, ``struct ipv6_mreq`` or ``ip_mreqn``."""
    host, _, zone = group.partition("%")
    where = zone or interface
    index = interface_index(where) if where else 0
    if ":" in host:
        return inet_pton(AF_INET6, host) + struct.pack("=I", index)
    return _mreqn(host, index)


def _mreqn(group: str, index: int) -> bytes:
    """``struct ip_mreqn``: the group, no address of ours, the interface."""
    parts = [int(part) for part in group.split(".")]
    return bytes(parts) + struct.pack("=Ii", INADDR_ANY, index)
