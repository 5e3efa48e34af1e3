"""A flow's row as JSON, written at once: what every flow leaves in the log when it ends.

``flow_row`` says what the row is, and a test holds this to it. Making the dictionary and having it
encoded costs 17 microseconds, a fifth of a connection; this costs 3 or 4. Most of a row is the same
for most flows of a listener, and is kept as the pieces between the places for the rest; what many
rows share beside that, a moment or an address, is kept as text. Writing every part anew cost 5, and
the operator ``%``, which looks at each character of what is kept, a microsecond more than joining.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.address import format_address
from proxy.core.flow import KINDS
from proxy.core.prefix import V4_BITS
from proxy.core.query import (
    credentials_row,
    hello_row,
    source_of,
    tlv_rows,
    upstream_of,
    via_row,
)
from proxy.core.sample_row import insight_json

if TYPE_CHECKING:
    from proxy.core.address import Address, Transport
    from proxy.core.flow import CloseReason, CloseSide, Direction, Flow, State
    from proxy.core.identity import Identity
    from proxy.core.survive import Stay

LAYOUTS: Final = 1024
"""Of listeners, ways to end and so on, those that rows were written of lately; 500 KiB."""

PLAIN_LAYOUTS: Final = 4096
"""The same with both addresses of ours: there are as many more as endpoints; 5 MiB."""

MOMENTS: Final = 64
"""As many as the latest rounds of the pump have begun or ended flows in."""

UNIDENTIFIED: Final = ',"tlvs":null,"server_name":null,"alpn":null'


NO_INSIGHT: Final = ',"slowed_by":null,"legs":null,"stalled":null'

NULL: Final = "null"

NO_PACKETS: Final = (NULL, NULL)

PLACES: Final = (
    *("id", "client_local", "client_remote", "via", "endpoint_local", "endpoint_remote"),
    *("opened", "active", "closed", "bytes", "packets", "reply_bytes", "reply_packets"),
    *("half_closed", "unsent", "source", "credentials", "endpoint_credentials"),
    *("responders", "identity", "insight"),
)
"""What comes between the pieces of a row."""


class ClosedFlow(NamedTuple):
    """A flow that ended, for its line in the log.

    Attributes:
        row: its row, as JSON.
        closed: Unix seconds.
        duration: seconds.

    """

    row: str
    transport: Transport
    reason: CloseReason
    closed: float
    duration: float


def closed_flow(flow: Flow, wall_offset: float, limits: str) -> ClosedFlow:
    """Describe a flow that has ended; the arguments are those of ``row_json``."""
    assert flow.close_reason is not None
    closed = flow.closed
    fields = (
        row_json(flow, wall_offset, limits),
        flow.counters.transport,
        flow.close_reason,
        closed + wall_offset,
        closed - flow.opened,
    )
    return tuple.__new__(ClosedFlow, fields)  # which is what its own constructor does, and slower


def row_json(flow: Flow, wall_offset: float, limits: str, stays: Stay | None = None) -> str:
    """Write what ``flow_row`` describes.

    Args:
        flow: live or ended.
        wall_offset: Unix time less monotonic time, in seconds.
        limits: the limits in force for it, as JSON.
        stays: why it would not change its process; None if it would, or has ended.

    """
    if flow.is_plain and (row := _plain_row(flow, wall_offset, limits, stays)):
        return row
    counters, reason = flow.counters, flow.close_reason
    original, reply = flow.original, flow.reply
    half_closed, unsent = flow.half_closed, flow.unsent
    client_process, endpoint_process = flow.credentials, flow.endpoint_credentials
    responders, identity, insight = flow.responders, flow.identity, flow.insight
    packets, reply_packets = NO_PACKETS
    if counters.transport.is_datagram:
        packets, reply_packets = str(original.packets), str(reply.packets)
    a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v = _layout(  # noqa: E741
        counters.listener,
        upstream_of(flow),
        counters.transport,
        flow.state,
        reason,
        flow.close_side,
        limits,
        stays,
    )
    return (
        f"{a}{flow.id}{b}{_shared_end(flow.client_local)}{c}{_end(flow.client_remote)}"
        f"{d}{NULL if identity is None else _json(via_row(identity))}"
        f"{e}{_end(flow.endpoint_local)}{f}{_shared_end(flow.endpoint_remote)}"
        f"{g}{time_text(flow.opened + wall_offset)}{h}{time_text(flow.active + wall_offset)}"
        f"{i}{NULL if reason is None else time_text(flow.closed + wall_offset)}"
        f"{j}{original.bytes}{k}{packets}{l}{reply.bytes}{m}{reply_packets}"
        f"{n}{NULL if half_closed is None else time_text(half_closed + wall_offset)}"
        f"{o}{NULL if unsent is None else _unsent(*unsent)}{p}{_source(flow)}"
        f"{q}{NULL if client_process is None else _json(credentials_row(client_process))}"
        f"{r}{NULL if endpoint_process is None else _json(credentials_row(endpoint_process))}"
        f"{s}{NULL if responders is None else _json(responders.rows())}"
        f"{t}{UNIDENTIFIED if identity is None else _identity(identity)}"
        f"{u}{NO_INSIGHT if insight is None else insight_json(insight, wall_offset)}{v}"
    )


def _plain_row(flow: Flow, wall_offset: float, limits: str, stays: Stay | None) -> str | None:
    """The same of what most flows are: plain, and over IPv4; None of any other.

    Less is asked for, and there are half as many pieces. It costs half as much.
    """
    counters, client, local = flow.counters, flow.client_remote, flow.endpoint_local
    if not (
        type(client) is type(local) is tuple
        and len(client) == len(local) == 2
        and counters.gate.limits.prefix_v4 == V4_BITS
    ):
        return None
    half_closed, reason, insight = flow.half_closed, flow.close_reason, flow.insight
    a, b, c, d, e, f, g, h, i, j, k, l = _plain_layout(  # noqa: E741 - letters
        counters.listener,
        upstream_of(flow),
        counters.transport,
        flow.state,
        reason,
        flow.close_side,
        limits,
        stays,
        flow.client_local,
        flow.endpoint_remote,
    )
    host, port = client
    return (
        f'{a}{flow.id}{b}"{host}:{port}"{c}"{local[0]}:{local[1]}"'
        f"{d}{time_text(flow.opened + wall_offset)}{e}{time_text(flow.active + wall_offset)}"
        f"{f}{NULL if reason is None else time_text(flow.closed + wall_offset)}"
        f"{g}{flow.original.bytes}{h}{flow.reply.bytes}"
        f"{i}{NULL if half_closed is None else time_text(half_closed + wall_offset)}"
        f'{j}"{host}/{V4_BITS}"'
        f"{k}{NO_INSIGHT if insight is None else insight_json(insight, wall_offset)}{l}"
    )


def _identity(identity: Identity) -> str:
    """What is known of a client, as the row's further keys."""
    return "," + _json({"tlvs": tlv_rows(identity), **hello_row(identity)})[1:-1]


@lru_cache(maxsize=64)
def _unsent(original: int, reply: int) -> str:
    """What had not arrived: nothing, as a rule."""
    return f'{{"original":{original},"reply":{reply}}}'


def counts_json(flow: Flow, wall_offset: float) -> str:
    """Write what a flow has moved so far: of its row the id and what goes on changing."""
    write = _datagrams if flow.counters.transport.is_datagram else _payload
    return (
        f'{{"id":{flow.id},"last_active":{flow.active + wall_offset:.6f}'
        f',"original":{write(flow.original)},"reply":{write(flow.reply)}}}'
    )


@lru_cache(maxsize=MOMENTS)
def time_text(unix: float) -> str:
    """A time as JSON, to the microsecond: many flows begin or end in one round of the pump."""
    return f"{unix:.6f}"


@lru_cache(maxsize=LAYOUTS)
def _layout(
    listener: str,
    upstream: str,
    transport: Transport,
    state: State,
    reason: CloseReason | None,
    side: CloseSide | None,
    limits: str,
    stays: Stay | None,
) -> list[str]:
    """What rows have in common that differ in nothing but numbers and addresses: the pieces.

    Between two pieces is a place, but for the last.
    """
    row = (
        f'{{"id":\0,"listener":{quoted(listener)},"upstream":{quoted(upstream)}'
        f',"transport":"{transport}","state":"{state}"'
        ',"client":{"local":\0,"remote":\0,"via":\0}'
        ',"endpoint":{"local":\0,"remote":\0}'
        ',"opened":\0,"last_active":\0,"closed":\0'
        ',"original":{"bytes":\0,"packets":\0},"reply":{"bytes":\0,"packets":\0}'
        f',"close_reason":{_word(reason)},"close_side":{_word(side)}'
        f',"close_kind":{_word(None if reason is None else KINDS[reason])}'
        f',"half_closed":\0,"unsent":\0,"limits":{limits},"stays":{_word(stays)}'
        ',"source":\0,"credentials":\0,"endpoint_credentials":\0,"responders":\0\0\0}'
    )
    return row.split("\0")


@lru_cache(maxsize=PLAIN_LAYOUTS)
def _plain_layout(
    listener: str,
    upstream: str,
    transport: Transport,
    state: State,
    reason: CloseReason | None,
    side: CloseSide | None,
    limits: str,
    stays: Stay | None,
    client_local: Address,
    endpoint_remote: Address | None,
) -> list[str]:
    """The pieces of a plain row: what it has in common with others is in its places already."""
    first, *pieces = _layout(listener, upstream, transport, state, reason, side, limits, stays)
    filled = {
        "client_local": _end(client_local),
        "via": NULL,
        "endpoint_remote": _end(endpoint_remote),
        "packets": NULL,
        "reply_packets": NULL,
        "unsent": NULL if reason is None else _unsent(0, 0),
        "credentials": NULL,
        "endpoint_credentials": NULL,
        "responders": NULL,
        "identity": UNIDENTIFIED,
    }
    row = [first]
    for place, piece in zip(PLACES, pieces, strict=True):
        if place in filled:
            row[-1] += filled[place] + piece
        else:
            row.append(piece)
    return row


@lru_cache(maxsize=1024)
def quoted(text: str) -> str:
    """A name as JSON: there are as many as listeners and upstreams."""
    return json.dumps(text)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _word(word: str | None) -> str:
    return "null" if word is None else f'"{word}"'


def _end(address: Address | None) -> str:
    if address is None:
        return "null"
    if type(address) is tuple and len(address) == 2:  # IPv4, from the kernel
        return f'"{address[0]}:{address[1]}"'
    return json.dumps(format_address(address))


@lru_cache(maxsize=1024, typed=True)  # the name of a Unix socket may look like a host
def _shared_end(address: Address | None) -> str:
    """An address that many flows have: the listener's, or the endpoint's."""
    return _end(address)


def _source(flow: Flow) -> str:
    client = flow.client_remote
    if (
        type(client) is tuple
        and len(client) == 2
        and flow.counters.gate.limits.prefix_v4 == V4_BITS
    ):
        return f'"{client[0]}/32"'
    return json.dumps(source_of(flow))


def _payload(direction: Direction) -> str:
    return f'{{"bytes":{direction.bytes},"packets":null}}'


def _datagrams(direction: Direction) -> str:
    return f'{{"bytes":{direction.bytes},"packets":{direction.packets}}}'
