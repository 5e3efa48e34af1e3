"""The state of a flow: everything it is but its descriptors, so that another process can go on.

A worker that leaves writes the states of its flows; its successor reads them, and makes live flows
of them again. Both may be of different versions of the program, so what they write has a version
of its own, ``STATE_VERSION``. Whoever is given one that it cannot read must not guess: flows stay
with the predecessor then, which drains.

Written as JSON, because a worker reads what strangers send: whatever it says is only data. A flow
is an array, its fields in the order they have here; bytes are base64, an address is an array too.

Times are monotonic seconds, which all processes of a host share from one boot to the next.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from proxy.core.address import Transport
from proxy.core.client_hello import Hello
from proxy.core.flow import CloseReason, CloseSide, State
from proxy.core.identity import Arrival, Identity
from proxy.core.proxy_header import Tlv
from proxy.core.stalls import StallState
from proxy.core.unix import Credentials, UnixAddress

if TYPE_CHECKING:
    from proxy.core.address import Address

STATE_VERSION: Final = 2
"""Changes with the fields below, and with what they mean."""

READABLE_STATES: Final = frozenset({1, STATE_VERSION})
"""The versions that are read: the first has no ``endpoint_credentials``, which are last."""

UNREADABLE: Final = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    RecursionError,
)
"""What comes of reading JSON that we have not written: infinite numbers and bottomless lists."""


class StateError(ValueError):
    """What was read are no states of this version."""


Responded: TypeAlias = "tuple[tuple[Address | None, int, int], ...]"
"""Who has answered: address (None for all the others), datagrams, bytes."""


class LegState(NamedTuple):
    """One direction of a flow.

    Attributes:
        received: bytes so far.
        packets: the same in datagrams; 0 for a stream.
        pending: received, and not yet taken by the other side.
        urgent: whether that is one byte of urgent data.
        ended: whether its end has been received, and passed on.
        stalls: how long it stood still; None if it never did.

    """

    received: int
    packets: int = 0
    pending: bytes = b""
    urgent: bool = False
    ended: bool = False
    stalls: StallState | None = None


class DatagramState(NamedTuple):
    """What only a flow of datagrams has.

    Attributes:
        key: what its client's datagrams are looked up by.
        name: the client's raw address.
        control: makes answers leave from the address that the client hit.
        is_indexed: whether the client's next datagram is for this flow.
        has_exit: whether answers leave by a socket that is not the listener's.
        header: sent before each datagram to the endpoint.
        answered: bytes that went out to its client until it was proven.
        proven: whether the client has spoken again after it was answered.
        responders: who has answered; None where the endpoint is not many hosts.
        bucket: when the client's bucket of datagrams is full again, and how many have passed since
            that was reckoned; None if there is none.

    """

    key: bytes
    name: bytes
    control: bytes = b""
    is_indexed: bool = True
    has_exit: bool = False
    header: bytes = b""
    answered: int = 0
    proven: bool = False
    responders: Responded | None = None
    bucket: tuple[float, int] | None = None


class EndState(NamedTuple):
    """How a flow ended.

    Attributes:
        reason: why.
        side: who moved first.
        closed: when.
        unsent: bytes thrown away, each way; None where that is not known.
        limits: in force for it, as JSON.
        responders: who had answered, as ``DatagramState`` has it.

    """

    reason: CloseReason
    side: CloseSide
    closed: float
    unsent: tuple[int, int] | None
    limits: str
    responders: Responded | None = None


class FlowState(NamedTuple):
    """A flow.

    Attributes:
        id: of the flow, which it keeps.
        listener: the name of its listener.
        transport: of that.
        upstream: the name of its upstream; "" while it has no endpoint.
        endpoint: what the configuration calls its endpoint.
        client_remote: the client.
        client_local: the address of ours that the client hit.
        endpoint_local: our outbound address; None if it never had one.
        endpoint_remote: the endpoint.
        state: where it is in its life.
        opened: when it began.
        active: when payload last moved.
        original: from client to endpoint.
        reply: from endpoint to client.
        half_closed: when the first side ended its direction.
        identity: what is known of the client beyond its address.
        credentials: the client's process.
        datagrams: what only a flow of datagrams has.
        end: how it ended; None of one that lives.
        sample: what the kernel last told of its sockets, packed; see ``core.sample``.
        headed: whether a header may have gone before its first byte, either way.
        endpoint_credentials: the process that listens at the endpoint.

    """

    id: int
    listener: str
    transport: Transport
    upstream: str
    endpoint: str
    client_remote: Address
    client_local: Address
    endpoint_local: Address | None
    endpoint_remote: Address | None
    state: State
    opened: float
    active: float
    original: LegState
    reply: LegState
    half_closed: float | None = None
    identity: Identity | None = None
    credentials: Credentials | None = None
    datagrams: DatagramState | None = None
    end: EndState | None = None
    sample: bytes | None = None
    headed: bool = False
    endpoint_credentials: Credentials | None = None


class ClientState(NamedTuple):
    """A client that has connected, and is not admitted yet: it waits for that, or for its header.

    Attributes:
        listener: the name of its listener.
        transport: of that.
        remote: the client.
        local: the address of ours that it hit.
        identity: what its header has said; None if that is still in its socket, or there is none.

    """

    listener: str
    transport: Transport
    remote: Address
    local: Address
    identity: Identity | None = None


def write_states(states: Iterable[FlowState]) -> str:
    """Write states as JSON; the version is for the caller to tell."""
    return json.dumps([_write(state) for state in states], separators=(",", ":"))


def read_states(text: str | bytes) -> list[FlowState]:
    """Read what ``write_states`` of a version in ``READABLE_STATES`` has written.

    Raises:
        StateError: it has not.

    """
    try:
        return [_read(fields) for fields in json.loads(text)]
    except UNREADABLE as error:
        raise StateError(f"not the states of flows, version {STATE_VERSION}: {error}") from error


def write_clients(clients: Iterable[ClientState]) -> str:
    """Write clients as JSON; the version is that of states."""
    return json.dumps([_write_client(each) for each in clients], separators=(",", ":"))


def read_clients(text: str | bytes) -> list[ClientState]:
    """Read what ``write_clients`` of the same version has written.

    Raises:
        StateError: it has not.

    """
    try:
        return [_read_client(*fields) for fields in json.loads(text)]
    except UNREADABLE as error:
        raise StateError(f"no clients, version {STATE_VERSION}: {error}") from error


def _write_client(client: ClientState) -> list[Any]:
    listener, transport, remote, local, identity = client
    written = None if identity is None else _write_identity(identity)
    return [listener, transport, _write_address(remote), _write_address(local), written]


def _read_client(
    listener: str, transport: str, remote: list[Any], local: list[Any], identity: list[Any] | None
) -> ClientState:
    return ClientState(
        listener,
        Transport(transport),
        _read_known(remote),
        _read_known(local),
        None if identity is None else _read_identity(identity),
    )


def _write(state: FlowState) -> list[Any]:
    fields: list[Any] = list(state)
    fields[12], fields[13] = _write_leg(state.original), _write_leg(state.reply)
    for index in ADDRESSES:
        if isinstance(fields[index], UnixAddress):
            fields[index] = [fields[index].name]
    if state.identity is not None:
        fields[15] = _write_identity(state.identity)
    if state.datagrams is not None:
        fields[17] = _write_datagrams(state.datagrams)
    if state.end is not None:
        fields[18] = [*state.end[:-1], _write_responders(state.end.responders)]
    if state.sample is not None:
        fields[19] = _text(state.sample)
    fields[20] = int(state.headed)
    return fields


ADDRESSES: Final = range(5, 9)
"""The fields that are addresses."""


def _read(fields: list[Any]) -> FlowState:
    fields[2], fields[9] = Transport(fields[2]), State(fields[9])
    fields[12], fields[13] = _read_leg(fields[12]), _read_leg(fields[13])
    for index in ADDRESSES:
        fields[index] = _read_address(fields[index])
    identity, credentials, datagrams, end, sample, headed, *last = fields[15:]
    fields[15] = None if identity is None else _read_identity(identity)
    fields[16] = _read_credentials(credentials)
    fields[17] = None if datagrams is None else _read_datagrams(datagrams)
    fields[18] = None if end is None else _read_end(end)
    fields[19] = None if sample is None else _bytes(sample)
    fields[20] = bool(headed)
    fields[21:] = map(_read_credentials, last)
    return FlowState(*fields)


def _read_credentials(fields: list[int] | None) -> Credentials | None:
    return None if fields is None else Credentials(*fields)


def _write_leg(leg: LegState) -> list[Any]:
    received, packets, pending, urgent, ended, stalls = leg
    return [received, packets, _text(pending) if pending else "", int(urgent), int(ended), stalls]


def _read_leg(fields: list[Any]) -> LegState:
    received, packets, pending, urgent, ended, stalls = fields
    known = None if stalls is None else StallState(*stalls)
    return LegState(received, packets, _bytes(pending), bool(urgent), bool(ended), known)


def _write_identity(identity: Identity) -> list[Any]:
    via, tlvs, hello, upstream = identity
    return [
        None if via is None else [_write_address(each) for each in via],
        [[kind, _text(value)] for kind, value in tlvs],
        hello,
        upstream,
    ]


def _read_identity(fields: list[Any]) -> Identity:
    via, tlvs, hello, upstream = fields
    return Identity(
        None if via is None else Arrival(*map(_read_known, via)),
        tuple(Tlv(kind, _bytes(value)) for kind, value in tlvs),
        None if hello is None else Hello(hello[0], tuple(hello[1])),
        upstream,
    )


def _write_datagrams(state: DatagramState) -> list[Any]:
    fields: list[Any] = list(state)
    for index, value in enumerate(fields):
        if isinstance(value, bytes):
            fields[index] = _text(value)
    fields[8] = _write_responders(state.responders)
    return fields


def _read_datagrams(fields: list[Any]) -> DatagramState:
    key, name, control, is_indexed, has_exit, header, answered, proven, responders, bucket = fields
    return DatagramState(
        _bytes(key),
        _bytes(name),
        _bytes(control),
        is_indexed,
        has_exit,
        _bytes(header),
        answered,
        proven,
        _read_responders(responders),
        None if bucket is None else (bucket[0], bucket[1]),
    )


def _write_responders(responders: Responded | None) -> Any:
    if responders is None:
        return None
    return [(_write_address(who), *counts) for who, *counts in responders]


def _read_responders(fields: list[Any] | None) -> Responded | None:
    if fields is None:
        return None
    return tuple((_read_address(who), *counts) for who, *counts in fields)


def _read_end(fields: list[Any]) -> EndState:
    reason, side, closed, unsent, limits, responders = fields
    return EndState(
        CloseReason(reason),
        CloseSide(side),
        closed,
        None if unsent is None else (unsent[0], unsent[1]),
        limits,
        _read_responders(responders),
    )


def _write_address(address: Address | None) -> Any:
    return [address.name] if isinstance(address, UnixAddress) else address


def _read_address(fields: list[Any] | None) -> Address | None:
    return None if fields is None else _read_known(fields)


def _read_known(fields: list[Any]) -> Address:
    if len(fields) == 1:
        return UnixAddress(fields[0])
    if len(fields) == 2:
        return (fields[0], fields[1])
    host, port, flow_info, scope = fields
    return (host, port, flow_info, scope)


def _text(value: bytes) -> str:
    return b64encode(value).decode("ascii")


def _bytes(text: str) -> bytes:
    return b64decode(text) if text else b""
