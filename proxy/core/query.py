"""Questions to the flow table: which flows, in which order, how many; and the answer's rows.

One query object serves ``sockpair flows``, ``sockpair kill`` and the HTTP API, so that a filter
means the same thing everywhere. A row is the public face of a flow: its keys are a contract.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict

from proxy.core.address import Network, Transport, format_address, same_address
from proxy.core.flow import KINDS
from proxy.core.identity import tlv_row
from proxy.core.sample_row import insight_row
from proxy.core.server_names import fits
from proxy.core.sources import source_text
from proxy.core.unix import UNKNOWN_SOURCE, UnixAddress

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.flow import Direction, Flow, State
    from proxy.core.identity import Identity, TlvRow
    from proxy.core.responders import ResponderRow
    from proxy.core.sample_row import LegsRow, StalledRow
    from proxy.core.survive import Stay
    from proxy.core.unix import Credentials

SortKey: TypeAlias = Literal["id", "bytes", "original", "reply", "opened", "active"]

# Newest, largest and latest first, as a person who sorts wants it; ids count upwards.
SORTS: Final[dict[SortKey, Callable[[Flow], Any]]] = {
    "id": lambda flow: flow.id,
    "bytes": lambda flow: -flow.bytes,
    "original": lambda flow: -flow.original.bytes,
    "reply": lambda flow: -flow.reply.bytes,
    "opened": lambda flow: -flow.opened,
    "active": lambda flow: -flow.active,
}


# The same order for rows, by whatever process they were made.
ROW_SORTS: Final[dict[SortKey, Callable[[FlowRow], Any]]] = {
    "id": lambda row: row["id"],
    "bytes": lambda row: -(row["original"]["bytes"] + row["reply"]["bytes"]),
    "original": lambda row: -row["original"]["bytes"],
    "reply": lambda row: -row["reply"]["bytes"],
    "opened": lambda row: -row["opened"],
    "active": lambda row: -row["last_active"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowQuery:
    """Which flows. A field that is None does not restrict.

    Attributes:
        id: one flow.
        address: flows with this address on either pair.
        port: flows with this port on either pair, whatever the host.
        client: prefix the client lies in, or its one address.
        endpoint: prefix the endpoint lies in, or its one address.
        server_name: what the client asked for in TLS; or how that ends, as in routes.
        min_bytes: at least so many bytes, both directions together.
        recent: answer with recently closed flows in place of live ones.
        evictable: only what would go if the table were full, and in that order; see ``pressure``.
        newcomer: for whom it would.
        limit: at most so many rows; 0 is no limit.

    """

    id: int | None = None
    address: Address | None = None
    port: int | None = None
    listener: str | None = None
    client: Network | Address | None = None
    endpoint: Network | Address | None = None
    state: State | None = None
    transport: Transport | None = None
    server_name: str | None = None
    min_bytes: int = 0
    recent: bool = False
    evictable: bool = False
    newcomer: Transport = Transport.TCP
    sort: SortKey = "id"
    limit: int = 0

    @property
    def is_for_the_table(self) -> bool:
        """Whether it asks for the table as it stands: every live flow, in the order of ids."""
        return self == FlowQuery(limit=self.limit)

    def matches(self, flow: Flow) -> bool:
        """Whether the flow is one of those asked for."""
        return (
            (self.id is None or flow.id == self.id)
            and (self.listener is None or flow.counters.listener == self.listener)
            and (self.transport is None or flow.transport == self.transport)
            and (self.state is None or flow.state == self.state)
            and (not self.min_bytes or flow.bytes >= self.min_bytes)
            and (self.client is None or lies_in(flow.client_remote, self.client))
            and (self.endpoint is None or lies_in(flow.endpoint_remote, self.endpoint))
            and (self.server_name is None or fits(self.server_name, server_name_of(flow)))
            and (self.address is None or _has_address(flow, self.address))
            and (self.port is None or any(end[1] == self.port for end in _ends(flow)))
        )


def lies_in(address: Address | None, place: Network | Address) -> bool:
    """Whether an address is in a prefix, or is this one; one that is not there is nowhere."""
    if address is None:
        return False
    if isinstance(place, tuple):
        return same_address(address, place)
    if isinstance(address, UnixAddress):
        return False
    host = ipaddress.ip_address(address[0])
    return host.version == place.version and host in place


def _has_address(flow: Flow, address: Address) -> bool:
    return any(same_address(end, address) for end in _ends(flow))


def _ends(flow: Flow) -> Iterator[Address]:
    """The addresses of both pairs, as far as there are sockets yet."""
    yield flow.client_remote
    yield flow.client_local
    if flow.endpoint_local is not None:
        yield flow.endpoint_local
    if flow.endpoint_remote is not None:
        yield flow.endpoint_remote
    if flow.identity is not None and flow.identity.via is not None:
        yield from flow.identity.via


class PairRow(TypedDict):
    """One socket pair as text, ``host:port``; None where there is no socket yet."""

    local: str | None
    remote: str | None


class ClientRow(PairRow):
    """The client's pair as the client has it; ``via`` is ours where a proxy speaks for it."""

    via: PairRow | None


class DirectionRow(TypedDict):
    """Payload of one direction; packets are None for TCP, whose packets the kernel hides."""

    bytes: int
    packets: int | None


class UnsentRow(TypedDict):
    """Bytes that were received, and had not arrived on the other side when the flow ended."""

    original: int
    reply: int


class CredentialsRow(TypedDict):
    """The client's process, where the kernel tells it: of a Unix socket."""

    pid: int
    uid: int
    gid: int


class HelloRow(TypedDict):
    """What the client asked for in TLS; both are None where it did not, or nobody looked."""

    server_name: str | None
    alpn: list[str] | None


class FlowRow(HelloRow):
    """One flow as people and programs read it. The keys are a contract."""

    id: int
    listener: str
    upstream: str
    transport: str
    state: str
    client: ClientRow
    endpoint: PairRow
    opened: float
    last_active: float
    closed: float | None
    original: DirectionRow
    reply: DirectionRow
    close_reason: str | None
    close_side: str | None
    close_kind: str | None
    half_closed: float | None
    unsent: UnsentRow | None
    limits: dict[str, float]
    stays: str | None
    source: str
    credentials: CredentialsRow | None
    endpoint_credentials: CredentialsRow | None
    responders: list[ResponderRow] | None
    tlvs: list[TlvRow] | None
    slowed_by: str | None
    legs: LegsRow | None
    stalled: StalledRow | None


def flow_row(
    flow: Flow, wall_offset: float, limits: dict[str, float], stays: Stay | None = None
) -> FlowRow:
    """Describe a flow. Where there are many, ``row_json`` writes the same more quickly.

    The enums' members are their words, and stay what they are: asking for a value is slow.

    Args:
        flow: live or ended.
        wall_offset: Unix time less monotonic time, in seconds.
        limits: the limits in force for it, in seconds and bytes.
        stays: why it would not change its process; None if it would.

    """
    counters = flow.counters
    datagrams = flow.transport.is_datagram
    return {
        "id": flow.id,
        "listener": counters.listener,
        "upstream": upstream_of(flow),
        "transport": counters.transport,
        "state": flow.state,
        "client": {
            "local": format_address(flow.client_local),
            "remote": format_address(flow.client_remote),
            "via": via_row(flow.identity),
        },
        "endpoint": {
            "local": _text(flow.endpoint_local),
            "remote": _text(flow.endpoint_remote),
        },
        "opened": round(flow.opened + wall_offset, 6),
        "last_active": round(flow.active + wall_offset, 6),
        "closed": round(flow.closed + wall_offset, 6) if flow.close_reason else None,
        "original": _direction(flow.original, datagrams),
        "reply": _direction(flow.reply, datagrams),
        "close_reason": flow.close_reason,
        "close_side": flow.close_side,
        "close_kind": None if flow.close_reason is None else KINDS[flow.close_reason],
        "half_closed": _moment(flow.half_closed, wall_offset),
        "unsent": _unsent(flow),
        "limits": limits,
        "stays": stays,
        "source": source_of(flow),
        "credentials": credentials_row(flow.credentials),
        "endpoint_credentials": credentials_row(flow.endpoint_credentials),
        "responders": None if flow.responders is None else flow.responders.rows(),
        "tlvs": tlv_rows(flow.identity),
        **hello_row(flow.identity),
        **insight_row(flow.insight, wall_offset),
    }


def source_of(flow: Flow) -> str:
    """The source a flow's client belongs to: a prefix, or the user of a Unix client."""
    if flow.transport.is_unix:
        return UNKNOWN_SOURCE if flow.credentials is None else flow.credentials.source
    limits = flow.counters.gate.limits
    key = limits.key(flow.client_remote[0])
    return source_text(key, limits.prefix_v4, limits.prefix_v6)


def upstream_of(flow: Flow) -> str:
    """The upstream that a flow goes to; a reload may have given its listener another since."""
    if flow.endpoint is not None:
        return flow.endpoint.counters.upstream
    identity = flow.identity
    return (identity and identity.upstream) or flow.counters.upstream


def server_name_of(flow: Flow) -> str | None:
    """The server that a flow's client asked for in TLS; None if it did not, or nobody looked."""
    identity = flow.identity
    return None if identity is None or identity.hello is None else identity.hello.server_name


def hello_row(identity: Identity | None) -> HelloRow:
    """Describe what a client asked for in TLS."""
    if identity is None or identity.hello is None:
        return {"server_name": None, "alpn": None}
    return {"server_name": identity.hello.server_name, "alpn": list(identity.hello.alpn)}


def via_row(identity: Identity | None) -> PairRow | None:
    """Describe by whom a client comes."""
    if identity is None or identity.via is None:
        return None
    via = identity.via
    return {"local": format_address(via.local), "remote": format_address(via.remote)}


def tlv_rows(identity: Identity | None) -> list[TlvRow] | None:
    """Describe what its header said beside addresses."""
    return [tlv_row(tlv) for tlv in identity.tlvs] if identity and identity.via else None


def credentials_row(credentials: Credentials | None) -> CredentialsRow | None:
    """Describe the process behind a Unix socket."""
    if credentials is None:
        return None
    return {"pid": credentials.pid, "uid": credentials.uid, "gid": credentials.gid}


def _direction(direction: Direction, datagrams: bool) -> DirectionRow:
    return {"bytes": direction.bytes, "packets": direction.packets if datagrams else None}


def _moment(now: float | None, wall_offset: float) -> float | None:
    return None if now is None else round(now + wall_offset, 6)


def _unsent(flow: Flow) -> UnsentRow | None:
    unsent = flow.unsent
    return None if unsent is None else {"original": unsent[0], "reply": unsent[1]}


def _text(address: Address | None) -> str | None:
    return None if address is None else format_address(address)
