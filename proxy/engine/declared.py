"""PROXY protocol over UDP, in: a header of version 2 before the payload of every datagram.

A listener that believes proxies is read here, in place of its plain way: each datagram is read
by itself, and its flow is that of the client, and the address, that it declares. Whoever comes from
elsewhere has no header, and is served as ever. Answers go, without one, to where the client's last
datagram came from: a proxy may speak for one client from several ports, or be replaced. A datagram
with a header that is wrong, or missing, goes nowhere, and is counted as ``bad_header``.

A proxy says the same of a client each time, so headers that were read lately are known.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import structlog

from proxy.core.address import format_address
from proxy.core.flow import Drop, Refusal
from proxy.core.proxy_block import read_block
from proxy.core.proxy_header import HEADER_MAX, Answer, BadHeader, Header, HeaderFault, More
from proxy.engine.limited import LimitedFlow
from proxy.engine.mmsg import LARGEST_DATAGRAM
from proxy.engine.preface import QUIET
from proxy.engine.runs import pieces
from proxy.engine.sockaddr import decode, unmapped

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.identity import Identity
    from proxy.engine.datagram_listener import DatagramListener
    from proxy.engine.preface import ProxyTerms

KNOWN: Final = 1024
"""Headers, some 300 bytes each with what they say: of the clients of the last moments."""

LENGTH_AT: Final = slice(14, 16)
HEAD_SIZE: Final = 16
"""Of version 2: where the length of the rest stands, and what comes before that."""

log = structlog.get_logger()


class DeclaredFlow(LimitedFlow):
    """A UDP flow of a client whom a proxy has declared."""

    __slots__ = ("identity",)

    identity: Identity | None


class DeclaredReader:
    """Serves a listener's socket where proxies are believed.

    Args:
        listener: whose datagrams are read.
        terms: who must send headers.

    """

    def __init__(self, listener: DatagramListener, terms: ProxyTerms) -> None:
        self._listener = listener
        self._terms = terms
        self._told = -QUIET

    def ready(self, mask: int, now: float) -> None:
        """Receive a batch and pass it on; what else waits is told again in the next round."""
        listener = self._listener
        batch = listener.batch
        for index in range(batch.receive(listener.fd)):
            segment = batch.take_segment(index)  # of one that came before a reload
            size = batch.length(index)
            if size == LARGEST_DATAGRAM and batch.truncated(index):
                listener.counters.dropped[Drop.TRUNCATED] += 1
                continue
            data = batch.data[index][:size]
            for part in pieces(data, segment) if segment else [data]:
                self._pass(index, part, now)

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours; the listener lives on."""
        self._listener.crashed(error, now)

    def _pass(self, index: int, data: memoryview, now: float) -> None:
        """Pass on a datagram, without its header, if it has a flow."""
        listener, name = self._listener, self._listener.batch.name(index)
        peer = unmapped(decode(name))
        if self._terms.trusted.admits(peer[0]):
            answer = read(data)
            if not isinstance(answer, Header):
                self._refuse(peer, answer, now)
                return
            data = data[answer.size :]
            flow = (
                listener.flow_of(index, now)
                if type(answer.source) is not tuple
                else listener.declared_flow(index, answer, now)
            )
        elif self._terms.alone:
            listener.counters.refused[Refusal.ACCESS] += 1
            return
        else:
            flow = listener.flow_of(index, now)
        if flow is not None:
            flow.send(data, now)

    def _refuse(self, peer: Address, answer: BadHeader | More, now: float) -> None:
        """Count a datagram with a wrong header, and say why, if nothing was said lately."""
        fault = answer.fault if isinstance(answer, BadHeader) else HeaderFault.INCOMPLETE
        listener = self._listener
        listener.counters.refused[Refusal.BAD_HEADER] += 1
        if now >= self._told + QUIET:
            self._told = now
            log.warning(
                "bad_header",
                listener=listener.counters.listener,
                peer=format_address(peer),
                reason=fault.value,
            )


def read(data: memoryview) -> Answer:
    """Read the header of a datagram, which is whole or wrong."""
    size = HEAD_SIZE + int.from_bytes(data[LENGTH_AT], "big")
    return _read(bytes(data[: min(size, HEADER_MAX + 1)]))


_read: Final = lru_cache(KNOWN)(read_block)
