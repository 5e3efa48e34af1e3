"""A flow's row as JSON, written at once: what every flow leaves in the log when it ends.

``flow_row`` says what the row is, and a test holds this to it. Making the dictionary and having it
encoded costs 17 microseconds, a fifth of a connection; this costs 2. Most of a row is the same for
most flows of a listener, and is kept with places for the rest; what many rows share beside that, a
moment or an address, is kept as text. Writing every part anew, with one f-string, cost 5.
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
    from collections.abc import Callable

    from proxy.core.address import Address, Transport
    from proxy.core.flow import CloseReason, CloseSide, Direction, Flow, State
    from proxy.core.identity import Identity

LAYOUTS: Final = 1024
"""Of listeners, ways to end and so on, those that rows were written of lately; 500 KiB."""

MOMENTS: Final = 64
"""As many as the latest rounds of the pump have begun or ended flows in."""

UNIDENTIFIED: Final = ',"tlvs":null,"server_name":null,"alpn":null'


NO_INSIGHT: Final = ',"slowed_by":null,"legs":null,"stalled":null'


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
    return ClosedFlow(
        row_json(flow, wall_offset, limits),
        flow.counters.transport,
        flow.close_reason,
        flow.closed + wall_offset,
        flow.closed - flow.opened,
    )


def row_json(flow: Flow, wall_offset: float, limits: str) -> str:
    """Write what ``flow_row`` describes.

    Args:
        flow: live or ended.
        wall_offset: Unix time less monotonic time, in seconds.
        limits: the limits in force for it, as JSON.

    """
    counters, reason = flow.counters, flow.close_reason
    layout, write = _layout(
        counters.listener,
        upstream_of(flow),
        counters.transport,
        flow.state,
        reason,
        flow.close_side,
        limits,
    )
    credentials, responders, identity = flow.credentials, flow.responders, flow.identity
    insight = flow.insight
    return layout % (
        flow.id,
        _shared_end(flow.client_local),
        _end(flow.client_remote),
        "null" if identity is None else _json(via_row(identity)),
        _end(flow.endpoint_local),
        _shared_end(flow.endpoint_remote),
        time_text(flow.opened + wall_offset),
        time_text(flow.active + wall_offset),
        "null" if reason is None else time_text(flow.closed + wall_offset),
        write(flow.original),
        write(flow.reply),
        _end_of(flow, wall_offset),
        _source(flow),
        "null" if credentials is None else _json(credentials_row(credentials)),
        "null" if responders is None else _json(responders.rows()),
        UNIDENTIFIED if identity is None else _identity(identity),
        NO_INSIGHT if insight is None else insight_json(insight, wall_offset),
    )


def _identity(identity: Identity) -> str:
    """What is known of a client, as the row's further keys."""
    return "," + _json({"tlvs": tlv_rows(identity), **hello_row(identity)})[1:-1]


def _end_of(flow: Flow, wall_offset: float) -> str:
    """How its end came, as the row's further keys."""
    half_closed, unsent = flow.half_closed, flow.unsent
    began = "null" if half_closed is None else time_text(half_closed + wall_offset)
    if unsent is None:
        return f',"half_closed":{began},"unsent":null'
    return f',"half_closed":{began},"unsent":{{"original":{unsent[0]},"reply":{unsent[1]}}}'


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
) -> tuple[str, Callable[[Direction], str]]:
    """What rows have in common that differ in nothing but numbers and addresses.

    Returns:
        The row, for the operator ``%``; and how a direction of it is written.

    """
    row = (
        f'{{"id":\0d,"listener":{quoted(listener)},"upstream":{quoted(upstream)}'
        f',"transport":"{transport}","state":"{state}"'
        ',"client":{"local":\0s,"remote":\0s,"via":\0s}'
        ',"endpoint":{"local":\0s,"remote":\0s}'
        ',"opened":\0s,"last_active":\0s,"closed":\0s,"original":\0s,"reply":\0s'
        f',"close_reason":{_word(reason)},"close_side":{_word(side)}'
        f',"close_kind":{_word(None if reason is None else KINDS[reason])}\0s,"limits":{limits}'
        ',"source":\0s,"credentials":\0s,"responders":\0s\0s\0s}'
    )
    write = _datagrams if transport.is_datagram else _payload
    return row.replace("%", "%%").replace("\0", "%"), write


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
