"""States of flows: what is written is read again, and what is no state is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.address import Address, Transport
from proxy.core.client_hello import Hello
from proxy.core.flow import CloseReason, CloseSide, State
from proxy.core.flow_state import (
    ClientState,
    DatagramState,
    EndState,
    FlowState,
    LegState,
    StateError,
    read_clients,
    read_states,
    write_clients,
    write_states,
)
from proxy.core.identity import Arrival, Identity
from proxy.core.proxy_header import Tlv
from proxy.core.stalls import StallState
from proxy.core.unix import Credentials, UnixAddress

ports = st.integers(0, 65535)
numbers = st.integers(0, 2**63)
times = st.floats(0, 1e9)
addresses: st.SearchStrategy[Address] = st.one_of(
    st.tuples(st.ip_addresses(v=4).map(str), ports),
    st.tuples(st.ip_addresses(v=6).map(str), ports, st.just(0), st.integers(0, 9)),
    st.text(max_size=20).map(UnixAddress),
)
stalls = st.builds(
    StallState, blocked=times, held=times, since=st.none() | times, by_limit=st.booleans()
)
legs = st.builds(
    LegState,
    received=numbers,
    packets=numbers,
    pending=st.binary(max_size=50),
    urgent=st.booleans(),
    ended=st.booleans(),
    stalls=st.none() | stalls,
)
responded = st.lists(st.tuples(st.none() | addresses, numbers, numbers), max_size=3).map(tuple)
identities = st.builds(
    Identity,
    via=st.none() | st.builds(Arrival, addresses, addresses),
    tlvs=st.lists(st.builds(Tlv, st.integers(0, 255), st.binary(max_size=9)), max_size=3).map(
        tuple
    ),
    hello=st.none()
    | st.builds(Hello, st.none() | st.text(), st.lists(st.text(), max_size=2).map(tuple)),
    upstream=st.none() | st.text(),
)
datagrams = st.builds(
    DatagramState,
    key=st.binary(max_size=40),
    name=st.binary(max_size=28),
    control=st.binary(max_size=40),
    is_indexed=st.booleans(),
    has_exit=st.booleans(),
    header=st.binary(max_size=40),
    answered=numbers,
    proven=st.booleans(),
    responders=st.none() | responded,
    bucket=st.none() | st.tuples(times, numbers),
)
ends = st.builds(
    EndState,
    reason=st.sampled_from(CloseReason),
    side=st.sampled_from(CloseSide),
    closed=times,
    unsent=st.none() | st.tuples(numbers, numbers),
    limits=st.just('{"idle":60.0}'),
    responders=st.none() | responded,
)
states = st.builds(
    FlowState,
    id=numbers,
    listener=st.text(max_size=9),
    transport=st.sampled_from(Transport),
    upstream=st.text(max_size=9),
    endpoint=st.text(max_size=9),
    client_remote=addresses,
    client_local=addresses,
    endpoint_local=st.none() | addresses,
    endpoint_remote=st.none() | addresses,
    state=st.sampled_from(State),
    opened=times,
    active=times,
    original=legs,
    reply=legs,
    half_closed=st.none() | times,
    identity=st.none() | identities,
    credentials=st.none() | st.builds(Credentials, numbers, numbers, numbers),
    datagrams=st.none() | datagrams,
    end=st.none() | ends,
    sample=st.none() | st.binary(max_size=50),
    endpoint_credentials=st.none() | st.builds(Credentials, numbers, numbers, numbers),
)


@given(st.lists(states, max_size=4))
def test_what_is_written_is_read_again(some: list[FlowState]) -> None:
    again = read_states(write_states(some))
    assert again == some
    for before, after in zip(some, again, strict=True):
        for field, value in zip(before, after, strict=True):  # a tuple equals a named one
            assert type(field) is type(value)


@given(states)
def test_what_the_first_version_wrote_is_read_too(state: FlowState) -> None:
    """It ended one field before."""
    (fields,) = json.loads(write_states([state]))
    (again,) = read_states(json.dumps([fields[:-1]]))
    assert again == state._replace(endpoint_credentials=None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "7",
        "null",
        "[7]",
        "[[]]",
        "[[1,2,3]]",
        '[["id","web","carrier-pigeon"]]',
        json.dumps([list(range(19))]),
        "[" * 100_000,
    ],
)
def test_what_is_no_state_is_refused(text: str) -> None:
    with pytest.raises(StateError, match="version 2"):
        read_states(text)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    try:
        read_states(data)
    except StateError:
        pass
    else:
        assert data.strip() == b"[]"


clients = st.builds(
    ClientState,
    listener=st.text(max_size=9),
    transport=st.sampled_from(Transport),
    remote=addresses,
    local=addresses,
    identity=st.none() | identities,
)


@given(st.lists(clients, max_size=4))
def test_clients_that_are_written_are_read_again(some: list[ClientState]) -> None:
    again = read_clients(write_clients(some))
    assert again == some
    for before, after in zip(some, again, strict=True):
        for field, value in zip(before, after, strict=True):
            assert type(field) is type(value)


@pytest.mark.parametrize(
    "text", ["", "1", "[1]", "[[]]", "[" * 100_000, '[["a","sctp",["::1",1],["::1",1],null]]']
)
def test_what_is_no_client_is_refused(text: str) -> None:
    with pytest.raises(StateError):
        read_clients(text)
