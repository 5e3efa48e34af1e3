"""Datagram listeners that take what TPROXY diverts: the client never learns that we are there.

Each datagram tells where it was sent to, host and port (IP_RECVORIGDSTADDR); with the client's
address that is the flow's key. Answers must leave from there. From the listener's own port they do
so by IP_PKTINFO, which a transparent socket may fill with any address; from another port they need
a socket that is bound to it, see ``exits``.

Source: ip(7) IP_RECVORIGDSTADDR, IP_TRANSPARENT; Documentation/networking/tproxy.rst.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, inet_aton, inet_pton
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

from proxy.core.address import Transport
from proxy.core.flow import Refusal
from proxy.core.identity import Arrival
from proxy.core.original import OriginalUpstream
from proxy.engine.accept import EXHAUSTED
from proxy.engine.copied import CLASS_SPACE
from proxy.engine.datagram import DatagramFlow
from proxy.engine.datagram_listener import DatagramListener
from proxy.engine.original import is_circle
from proxy.engine.sockaddr import (
    CMSG,
    SOCKADDR_IN,
    V4_IN_V6,
    Hit,
    answer_from,
    canonical,
    decode,
)

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.upstream import Choice

IP_RECVORIGDSTADDR: Final = 20  # uapi/linux/in.h
IPV6_RECVORIGDSTADDR: Final = 74  # uapi/linux/in6.h


def ask_for_original(socket: Socket) -> None:
    """Have each datagram tell where it was sent to; an IPv6 socket may get IPv4 too."""
    socket.setsockopt(IPPROTO_IP, IP_RECVORIGDSTADDR, 1)
    if socket.family == AF_INET6:
        socket.setsockopt(IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1)


def original_of(control: memoryview) -> bytes:
    """The raw address a datagram was sent to, from the one control message that came with it."""
    length, _, _ = CMSG.unpack_from(control)
    return bytes(control[CMSG.size : length])


def original_behind_class(control: memoryview) -> bytes:
    """The same, where the traffic class is told too: that message comes first."""
    return original_of(control[CLASS_SPACE:])


class TransparentListener(DatagramListener):
    """A bound, transparent UDP socket of ours, and the flows of its clients. Owns the socket."""

    _tells_local = True

    def _local_reader(self) -> Callable[[memoryview], bytes]:
        return original_of if self._copied is None else original_behind_class

    def _admit(self, key: bytes, index: int, now: float) -> DatagramFlow | None:
        batch = self.batch
        name = batch.name(index)
        remote = canonical(decode(name))
        local = canonical(decode(self._local_key(batch.control(index))))
        fd = self.fd
        source = self.counters.gate.key(remote[0])
        refusal = self._diverted_refusal(remote, local, now) or self.counters.ceiling(source, now)
        if refusal is None and local[1] != self._local[1]:
            try:
                fd = self.relay.exits.take(self.socket, local, self.options.pmtu)
            except OSError as error:
                exhausted = error.errno in EXHAUSTED
                refusal = Refusal.FILE_DESCRIPTORS if exhausted else Refusal.NO_SOURCE
                self.counters.gate.tell()  # it would have been admitted
        if refusal is not None:
            self.counters.refused[refusal] += 1
            return None
        if fd == self.fd:
            control = answer_from(_hit(local, mapped=self._mapped))
        else:
            name, control = _name_for(local, remote, name), b""
        flow = self.kind(self, key, name, control, remote, local, now, source)
        flow.fd = fd
        upstream: Choice = self.upstream
        if isinstance(upstream, OriginalUpstream):
            upstream = upstream.towards(local)
        return flow if flow.start(upstream, self.way_of(index), now) else None

    def _diverted_refusal(self, remote: Address, local: Address, now: float) -> Refusal | None:
        if self.draining:
            return Refusal.DRAINING
        if isinstance(self.upstream, OriginalUpstream) and is_circle(
            self.relay, Transport.UDP, remote, local
        ):
            return Refusal.LOOP
        if ip_address(local[0]).is_multicast:
            return Refusal.BROADCAST
        return self._refusal(remote, Arrival(remote, local), None) or self._room(now)


def _hit(local: Address, *, mapped: bool) -> Hit:
    """The address to answer from, as an answer from the listener's own socket needs it."""
    if ":" in local[0]:
        raw = inet_pton(AF_INET6, local[0].partition("%")[0])
        return Hit(raw, raw, local[3] if len(local) == 4 else 0)
    raw = inet_aton(local[0])
    if mapped:
        raw = V4_IN_V6 + raw
    return Hit(raw, raw, 0)


def _name_for(local: Address, remote: Address, name: bytes) -> bytes:
    """The client's raw address for an exit, which is of IPv4 when the client is."""
    if ":" in local[0]:
        return name
    packed = SOCKADDR_IN.pack(AF_INET, remote[1].to_bytes(2, "big"), inet_aton(remote[0]))
    return packed + bytes(8)
