"""A datagram listener: one socket that all its clients share, and the index of their flows.

Up to 64 datagrams are received with one call; each is looked up by its raw source address (and, on
a wildcard bind, the local address it was sent to) and passed on by its flow.
"""

from __future__ import annotations

from collections.abc import Callable
from select import EPOLLIN
from socket import AF_INET6, AF_UNIX, SOCK_DGRAM
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

import structlog

from proxy.core.address import WILDCARDS, same_address
from proxy.core.flow import Drop, Refusal
from proxy.core.identity import Arrival, Identity, kept_tlvs
from proxy.engine.copied import CLASS_SPACE, CopiedWay, dscp_of_datagram, tell_class
from proxy.engine.datagram import FILES_PER_FLOW, DatagramFlow
from proxy.engine.datagram_options import ORDINARY, DatagramOptions, set_pmtu
from proxy.engine.declared import DeclaredFlow, DeclaredReader
from proxy.engine.drops import kernel_drops
from proxy.engine.mmsg import CONTROL_LENGTH, LARGEST_DATAGRAM, LENGTH, DatagramBatch
from proxy.engine.outbound import PLAIN
from proxy.engine.runs import can_segment, serve_runs
from proxy.engine.sockaddr import (
    Hit,
    answer_from,
    canonical,
    decode,
    hit_of,
    local_address,
    local_of,
    spare_local_address,
    unmapped,
)
from proxy.engine.survival.leave_behind import leave_behind
from proxy.engine.trains import ask_for_trains, pass_train

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.counters import ListenerCounters
    from proxy.core.proxy_header import Header
    from proxy.core.upstream import Upstream
    from proxy.engine.outbound import Connect
    from proxy.engine.pump import Handler
    from proxy.engine.relay import Relay
    from proxy.engine.terms import Terms

LONGEST_INFO: Final = 48
"""Bytes of control messages that tell where, or by whom, a datagram was sent; a train has more."""

PLAIN_WAY: Final = PLAIN.way(SOCK_DGRAM)

log = structlog.get_logger()


class DatagramListener:
    """A bound UDP socket of ours, and the flows of its clients. Owns the socket.

    Args:
        relay: where its flows live.
        socket: bound, non-blocking; with packet information on if bound to a wildcard.
        counters: the counters of its listener.
        terms: what its flows are held to.
        upstream: where its flows go.
        options: how they are treated.
        kind: the class of its flows, which follows from the options.
        connect: makes the sockets to endpoints.

    Attributes:
        counts: whether its flows end, or are spent, by number; see ``counted``.
        live: its flows, those included that have left the index.
        draining: whether it opens no more; then it closes with the last one.
        kernel_drops: what the kernel has dropped on its socket, as far as it is counted.
        is_counted: whether that is counted here, and not by a successor.

    """

    _tells_local = False
    """Whether every datagram tells where it was sent to, whatever the socket is bound to."""

    def __init__(
        self,
        relay: Relay,
        socket: Socket,
        counters: ListenerCounters,
        terms: Terms,
        upstream: Upstream,
        options: DatagramOptions = ORDINARY,
        kind: type[DatagramFlow] = DatagramFlow,
        connect: Connect = PLAIN_WAY,
    ) -> None:
        self.relay = relay
        self.socket = socket
        self.fd = socket.fileno()
        self.serve_batch(relay.requests)
        self.replies = relay.replies
        self.flows: dict[bytes, DatagramFlow] = {}
        self.live = 0
        self.draining = False
        self.is_open = True
        self.is_counted = True
        self.address: Address = canonical(socket.getsockname())
        self.kernel_drops = kernel_drops(socket)  # of an earlier life, if it was inherited
        self._local = self.address
        self._wildcard = self._tells_local or self._local[0] in WILDCARDS
        self._info = LONGEST_INFO
        if not self._wildcard and socket.family != AF_UNIX:
            spare_local_address(socket)
            self._info = 0
        self._mapped = socket.family == AF_INET6
        self.serve(counters, terms, upstream, options, kind, connect)
        relay.own(self.address)
        relay.files.set_aside(1)
        relay.pump.register(self.fd, self._reader(), EPOLLIN)

    def serve(
        self,
        counters: ListenerCounters,
        terms: Terms,
        upstream: Upstream,
        options: DatagramOptions,
        kind: type[DatagramFlow],
        connect: Connect,
    ) -> None:
        """Treat flows like this from now on; the clocks, and the counts of ``options``, at once."""
        self.counters = counters
        self.terms = terms
        self.upstream = upstream
        self.options = options
        self.counts = bool(options.responses or options.datagrams)
        self.connect = connect
        self._copied = connect if isinstance(connect, CopiedWay) else None
        self._local_key = self._local_reader()
        self.kind = kind
        self.relay.pump.hand_over(self.fd, self._reader())
        # Others, orders and headers look at each datagram. Limits could let a client's train pass
        # whole while its leases cover it; but answers are read many at a time before their sizes
        # are known, so those would need a megabyte at each level, which only a ceiling of several
        # hundred Mbit/s lends: and a train for some is a second way through every limit.
        each = self.relay.orders or terms.proxied is not None or terms.style is not None
        self.trains = kind is DatagramFlow and can_segment() and not each
        ask_for_trains(self.socket, wanted=self.trains)
        set_pmtu(self.socket, options.pmtu)
        self._tell_classes()

    def ready(self, mask: int, now: float) -> None:
        """Receive a batch and pass it on; what else waits is told again in the next round."""
        batch = self.batch
        count = batch.receive(self.fd)
        names = self._names
        if count > 1 and self.trains and names[0] == names[1]:
            serve_runs(self, count, now)
            return
        flows, data, word, long = self.flows, batch.data, batch.word, batch.long
        lone = self._lone_control
        wildcard, local_key = self._wildcard, self._local_key
        for index in range(count):
            if long[8 * index + CONTROL_LENGTH] > lone:
                pass_train(self, index, now)
                continue
            key = names[index].tobytes()
            if wildcard:
                key += local_key(batch.control(index))
            flow = flows.get(key)
            if flow is None:
                flow = self._admit(key, index, now)
                if flow is None:
                    continue
            size = word[16 * index + LENGTH]
            if size == LARGEST_DATAGRAM and batch.truncated(index):
                self.counters.dropped[Drop.TRUNCATED] += 1
                continue
            flow.send(data[index][:size], now)

    def look_at_each(self) -> None:
        """Take trains no more, because some flow is limited now."""
        self.trains = False
        ask_for_trains(self.socket, wanted=False)

    def serve_batch(self, batch: DatagramBatch) -> None:
        """Receive into this batch from now on."""
        self.batch = batch
        self._names = batch.names_of(self.socket.family)

    def flow_of(self, index: int, now: float) -> DatagramFlow | None:
        """The flow of a datagram in the batch, opened if need be; None if it is refused."""
        batch = self.batch
        key = batch.name(index)
        if self._wildcard:
            key += self._local_key(batch.control(index))
        return self.flows.get(key) or self._admit(key, index, now)

    def declared_flow(self, index: int, header: Header, now: float) -> DatagramFlow | None:
        """The flow of a client that a datagram declares; answers go to where that came from."""
        key = b"%r" % (header[1:3],)
        flow = self.flows.get(key)
        if flow is None:
            return self._open(key, index, now, header)
        name = self.batch.name(index)
        if flow.name != name:
            flow.name = name
        if self._wildcard:
            flow.control = answer_from(hit_of(self.batch.control(index)))
        return flow

    def way_of(self, index: int) -> Connect:
        """The way to endpoints for the client who has sent a datagram in the batch."""
        if self._copied is None:
            return self.connect
        return self._copied.with_dscp(dscp_of_datagram(self.batch.control(index)))

    def count_kernel_drops(self) -> None:
        """Learn how many datagrams the kernel dropped because we did not read in time."""
        if not self.is_counted:
            return
        drops = kernel_drops(self.socket)
        self.counters.dropped[Drop.KERNEL] += drops - self.kernel_drops
        self.kernel_drops = drops

    def pause(self) -> None:
        """Receive nothing, until ``resume``."""
        self.relay.pump.release(self.fd)

    def resume(self) -> None:
        """Receive again."""
        self.relay.pump.register(self.fd, self._reader(), EPOLLIN)

    def retire(self, now: float) -> None:
        """Open no more flows, and receive only for those there are."""
        self.draining = True
        self.close_if_done()

    def close_if_done(self) -> None:
        """Receive no more, if nothing is to come for anybody."""
        if self.draining and not self.live:
            self.close()

    def close(self) -> None:
        """Receive no more."""
        if self.is_open:
            self.is_open = False
            self.relay.disown(self.address)
            self.relay.files.set_aside(-1)
            self.relay.pump.bury(self.socket)

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours; the listener lives on."""
        log.error("receive_crashed", listener=self.counters.listener, exc_info=error)

    def _reader(self) -> Handler:
        """What serves the socket."""
        proxied = self.terms.proxied
        return self if proxied is None else DeclaredReader(self, proxied)

    def _local_reader(self) -> Callable[[memoryview], bytes]:
        """What reads the local part of a flow's key from the control messages of a datagram."""
        return local_of

    def _tell_classes(self) -> None:
        """Have datagrams tell their traffic class, if it is copied."""
        wanted = self._copied is not None
        self._lone_control = self._info + CLASS_SPACE * wanted
        if self.socket.family != AF_UNIX:
            tell_class(self.socket, wanted=wanted)

    def _admit(self, key: bytes, index: int, now: float) -> DatagramFlow | None:
        """Open a flow for an unknown client, or refuse it and return None."""
        return self._open(key, index, now)

    def _open(
        self, key: bytes, index: int, now: float, header: Header | None = None
    ) -> DatagramFlow | None:
        """Open a flow for whoever sent a datagram, or for whom its header declares."""
        refusal = self._room(now)
        if refusal is not None:  # first, because it costs least: a flood ends here
            self.counters.refused[refusal] += 1
            return None
        batch = self.batch
        name = batch.name(index)
        remote = decode(name)
        local, control, hit = self._local, b"", None
        if self._wildcard:
            hit = hit_of(batch.control(index))
            local = local_address(hit, self._local[1])
            control = answer_from(hit)
        if self._mapped:
            remote, local = unmapped(remote), unmapped(local)
        arrival = Arrival(remote, local)
        if header is not None:
            assert header.source is not None
            assert header.destination is not None
            remote, local = header.source, header.destination
        source = self.counters.gate.key(remote[0])
        refusal = (
            self._refusal(remote, arrival, hit)
            or self.relay.orders.refusal(self.counters, remote)
            or self.counters.ceiling(source, now)
        )
        if refusal is not None:
            self.counters.refused[refusal] += 1
            return None
        kind = self.kind if header is None else DeclaredFlow
        flow = kind(self, key, name, control, remote, local, now, source)
        if isinstance(flow, DeclaredFlow) and header is not None:
            flow.identity = Identity(arrival, kept_tlvs(header.tlvs))
        if not flow.start(self.upstream, self.way_of(index), now):
            return None
        if self.relay.orders:
            self.relay.orders.hold(flow, now)
        if self.terms.will is not None:
            leave_behind(self.terms.will, flow)
        return flow

    def _room(self, now: float) -> Refusal | None:
        """Why there is no room for a flow of a client whose address is not proven; or None."""
        refusal = self.relay.refusal(FILES_PER_FLOW)
        if refusal is Refusal.TABLE_FULL:
            return self.relay.press(FILES_PER_FLOW, None, now)
        return refusal

    def _refusal(self, client: Address, arrival: Arrival, hit: Hit | None) -> Refusal | None:
        if self.draining:
            return Refusal.DRAINING
        if not self.terms.access.admits(client[0]):
            return Refusal.ACCESS
        remote, local = arrival
        if remote[1] == 0 or same_address(remote, local) or self.relay.is_own(remote):
            return Refusal.LOOP
        if self.relay.table.comes_round(self.counters, remote, local):
            return Refusal.LOOP
        if hit is not None and not (hit.is_unicast or self._serves(hit)):
            return Refusal.BROADCAST
        return None

    def _serves(self, hit: Hit) -> bool:
        """Whether a broadcast or multicast address is one that this listener serves."""
        return self.options.multicast if hit.is_multicast else self.options.broadcast
