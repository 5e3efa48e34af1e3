"""Listeners at Unix sockets, and their flows.

Clients that have no name are the rule for streams; the kernel tells who they are all the same. A
datagram client without a name cannot be answered. All those of a listener share one flow, which
stays unreplied: what they send goes to the endpoint, and what it answers is dropped and counted.
"""

from __future__ import annotations

from socket import SCM_CREDENTIALS, SO_PASSCRED, SOL_SOCKET
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

from proxy.core.address import same_address
from proxy.core.flow import Drop, Refusal
from proxy.core.unix import Credentials, UnixAddress
from proxy.engine.accept import StreamListener
from proxy.engine.datagram import FILES_PER_FLOW, DatagramFlow
from proxy.engine.datagram_listener import PLAIN_WAY, DatagramListener
from proxy.engine.datagram_options import ORDINARY, DatagramOptions
from proxy.engine.drops import drop_of
from proxy.engine.identified import IdentifiedUnixFlow
from proxy.engine.limited import LimitedFlow
from proxy.engine.mmsg import DatagramBatch
from proxy.engine.options import IN_LINE, set_options
from proxy.engine.sockaddr import CMSG
from proxy.engine.sources import user_key
from proxy.engine.unix import UCRED, credentials_of, read_credentials, serve_unix_leg, unix_name
from proxy.engine.unix_flow import UnixFlow

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.counters import ListenerCounters
    from proxy.core.identity import Identity
    from proxy.core.sources import SourceKey
    from proxy.core.upstream import Upstream
    from proxy.engine.outbound import Connect
    from proxy.engine.relay import Relay
    from proxy.engine.terms import Terms

CONTROL_SIZE: Final = 32
"""Bytes: just the credentials that come with a datagram. They come first; with room for more a
client could pass us descriptors, as many as it likes."""

FAMILY_SIZE: Final = 2  # before the name in a sockaddr_un


class UnixListener(StreamListener):
    """A listening Unix socket of ours. Owns it."""

    def _admit(self, client: Socket, address: object, now: float) -> None:
        assert isinstance(address, str | bytes)
        self.decide(client, unix_name(address), self.socket.getsockname(), now)

    def source_of(self, client: Socket, remote: Address) -> SourceKey:
        """The user who has connected."""
        return user_key(credentials_of(client))

    def holder(self, client: Socket, remote: Address) -> SourceKey:
        """The same in a full table."""
        return self.source_of(client, remote)

    def refusal(
        self, client: Socket, remote: Address, local: Address, now: float
    ) -> Refusal | None:
        """Why a client is not let in, whatever the gate says; or None."""
        return self.room(client, remote, now)

    def open(
        self,
        client: Socket,
        remote: Address,
        local: Address,
        source: SourceKey,
        now: float,
        identity: Identity | None = None,
    ) -> None:
        """Open the flow of a client that the gate has admitted."""
        terms = self.terms
        set_options(client, IN_LINE)
        kind = UnixFlow if terms.style is None else IdentifiedUnixFlow
        flow = kind(self.relay, self.counters, terms.limits, client, remote, local, now, source)
        if isinstance(flow, IdentifiedUnixFlow):
            flow.identity, flow.style = identity, terms.style
        flow.credentials = credentials_of(client)
        flow.start(self.upstream, self.connect, now, terms.bandwidth)
        if flow.original.socket is client:
            serve_unix_leg(self.relay.pump, flow.original)


class UnixgramFlow(LimitedFlow):
    """A datagram flow whose client has sent to a Unix socket."""

    __slots__ = ("credentials",)

    credentials: Credentials | None

    def ready(self, mask: int, now: float) -> None:
        """Receive one reply, for a client that can be answered."""
        if self.name:
            super().ready(mask, now)
        else:
            self._discard(now)

    def _discard(self, now: float) -> None:
        """Receive a reply that nobody can be given."""
        try:
            size = self.socket.recv_into(self.listener.replies.room(self.fd, now))
        except BlockingIOError:
            return
        except OSError as error:
            self.counters.dropped[drop_of(error)] += 1
            return
        self.reply.bytes += size
        self.reply.packets += 1
        self.counters.reply.received += size
        self.counters.reply.packets += 1
        self.reply_dropped(size, Drop.UNNAMED)


class UnixgramListener(DatagramListener):
    """A bound Unix datagram socket of ours, and the flows of its clients. Owns the socket."""

    def __init__(
        self,
        relay: Relay,
        socket: Socket,
        counters: ListenerCounters,
        terms: Terms,
        upstream: Upstream,
        options: DatagramOptions = ORDINARY,
        connect: Connect = PLAIN_WAY,
    ) -> None:
        socket.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        super().__init__(relay, socket, counters, terms, upstream, options, UnixgramFlow, connect)
        self.serve_batch(DatagramBatch(CONTROL_SIZE))

    def _admit(self, key: bytes, index: int, now: float) -> DatagramFlow | None:
        """Open a flow for an unknown client, or refuse it and return None."""
        remote = decode_unix(key)
        credentials = sender_of(self.batch.control(index)) if key else None
        source = user_key(credentials)
        refusal = self._unix_refusal(remote)
        if refusal is Refusal.TABLE_FULL:
            refusal = self.relay.press(FILES_PER_FLOW, source, now)
        refusal = (
            refusal
            or self.relay.orders.refusal(self.counters, remote)
            or self.counters.ceiling(source, now)
        )
        if refusal is not None:
            self.counters.refused[refusal] += 1
            return None
        flow = UnixgramFlow(self, key, key, b"", remote, self._local, now, source)
        flow.credentials = credentials
        if not flow.start(self.upstream, self.connect, now):
            return None
        if self.relay.orders:
            self.relay.orders.hold(flow, now)
        return flow

    def _unix_refusal(self, remote: UnixAddress) -> Refusal | None:
        if self.draining:
            return Refusal.DRAINING
        if same_address(remote, self._local) or self.relay.is_own(remote):
            return Refusal.LOOP
        return self.relay.refusal(FILES_PER_FLOW)


def decode_unix(name: bytes) -> UnixAddress:
    """Turn a raw ``sockaddr_un`` into an address; a path ends with a NUL, or with the address."""
    raw = name[FAMILY_SIZE:]
    return unix_name(raw if raw.startswith(b"\0") else raw.partition(b"\0")[0])


def sender_of(control: memoryview) -> Credentials | None:
    """The process that sent a datagram, from the credentials that came with it (unix(7))."""
    if len(control) < CMSG.size + UCRED.size:
        return None
    _, level, kind = CMSG.unpack_from(control)
    if (level, kind) != (SOL_SOCKET, SCM_CREDENTIALS):
        return None
    return read_credentials(control[CMSG.size :])
