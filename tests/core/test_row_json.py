"""A row written at once is the row that ``flow_row`` describes."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.address import Address, Transport
from proxy.core.counters import ListenerCounters
from proxy.core.endpoint import Endpoint
from proxy.core.flow import CloseReason, CloseSide, Direction, Flow, State
from proxy.core.identity import Arrival, Identity
from proxy.core.proxy_header import Tlv
from proxy.core.query import flow_row
from proxy.core.responders import Responders
from proxy.core.row_json import closed_flow, row_json
from proxy.core.sample import Insight
from proxy.core.survive import Stay
from proxy.core.unix import Credentials, UnixAddress
from tests.core.test_sample import samples, stalls

IPV6 = st.sampled_from(["::1", "2001:db8::1", "fe80::1%eth0"])
PORTS = st.integers(0, 65535)
UNIX: st.SearchStrategy[Address] = st.builds(UnixAddress, st.text(max_size=20))
IP: st.SearchStrategy[Address] = st.one_of(
    st.tuples(st.ip_addresses(v=4).map(str), PORTS),
    st.tuples(IPV6, PORTS, st.just(0), st.just(0)),
)
ADDRESSES = IP | UNIX
TIMES = st.floats(0, 1e6)
WALL = 1_700_000_000.123456


class KnownFlow(Flow):
    """A flow that tells all there is to tell."""

    known: Credentials | None = None
    served_by: Credentials | None = None
    answers: Responders | None = None
    said: Identity | None = None
    seen: Insight | None = None
    fin: float | None = None
    lost: tuple[int, int] | None = None

    @property
    def is_plain(self) -> bool:
        known = (self.known, self.served_by, self.answers, self.said)
        lost = None if self.close_reason is None else (0, 0)
        plain = self.lost == lost and all(each is None for each in known)
        return plain and not self.transport.is_datagram

    @property
    def half_closed(self) -> float | None:
        return self.fin

    @property
    def unsent(self) -> tuple[int, int] | None:
        return self.lost

    @property
    def identity(self) -> Identity | None:
        return self.said

    @property
    def credentials(self) -> Credentials | None:
        return self.known

    @property
    def endpoint_credentials(self) -> Credentials | None:
        return self.served_by

    @property
    def insight(self) -> Insight | None:
        return self.seen

    @property
    def responders(self) -> Responders | None:
        return self.answers


@st.composite
def flows(draw: st.DrawFn) -> KnownFlow:
    transport = draw(st.sampled_from(Transport))
    first = State.UNREPLIED if transport.is_datagram else State.CONNECTING
    name = draw(st.text(max_size=10))
    counters = ListenerCounters(name, transport, draw(st.text(max_size=10)))
    ends = UNIX if transport.is_unix else IP
    client, local = draw(ends), draw(ends)
    number, now = draw(st.integers(1, 10**12)), draw(TIMES)
    flow = KnownFlow(number, counters, client, local, Direction(), Direction(), first, now)
    flow.endpoint_local = draw(st.none() | ADDRESSES)
    flow.endpoint_remote = draw(st.none() | ADDRESSES)
    for direction in (flow.original, flow.reply):
        direction.bytes, direction.packets = draw(st.integers(0, 10**15)), draw(st.integers(0, 9))
    flow.active = draw(TIMES)
    if draw(st.booleans()):
        flow.endpoint = Endpoint(draw(st.text(max_size=10)), "it", ("192.0.2.1", 1))
    if draw(st.booleans()):
        flow.known = Credentials(draw(PORTS), draw(PORTS), draw(PORTS))
    if draw(st.booleans()):
        flow.served_by = Credentials(draw(PORTS), draw(PORTS), draw(PORTS))
    if draw(st.booleans()):
        tlvs = draw(
            st.lists(st.builds(Tlv, st.integers(0, 255), st.binary(max_size=9)), max_size=2)
        )
        via = draw(st.none() | st.builds(Arrival, IP, IP))
        flow.said = Identity(via, tuple(tlvs))
    if draw(st.booleans()):
        flow.answers = Responders()
        flow.answers.count(draw(ADDRESSES), 7)
    flow.fin = draw(st.none() | TIMES)
    flow.lost = draw(st.none() | st.tuples(st.integers(0, 10**15), st.integers(0, 10**15)))
    flow.seen = draw(st.none() | st.builds(Insight, st.none() | samples, stalls, stalls))
    if draw(st.booleans()):
        flow.end(draw(st.sampled_from(CloseReason)), draw(st.sampled_from(CloseSide)), draw(TIMES))
    return flow


@given(flows(), st.none() | st.sampled_from(Stay))
def test_it_is_the_same_row(flow: KnownFlow, stays: Stay | None) -> None:
    limits = {"idle": 7440.0}
    if flow.close_reason is not None:
        stays = None
    text = row_json(flow, WALL, json.dumps(limits), stays)
    assert json.loads(text) == flow_row(flow, WALL, limits, stays)
    assert list(json.loads(text)) == list(flow_row(flow, WALL, limits, stays))
    assert text.isascii()
    assert text.isprintable()


@given(flows(), st.none() | st.sampled_from(Stay), st.booleans())
def test_a_plain_row_is_the_same_row(flow: KnownFlow, stays: Stay | None, reached: bool) -> None:
    flow.known = flow.served_by = flow.answers = flow.said = None
    if reached and not flow.transport.is_unix:
        flow.client_remote, flow.endpoint_local = ("192.0.2.7", 1234), ("10.0.0.9", 40001)
    if flow.close_reason is None:
        flow.lost = None
    else:
        flow.lost, stays = (0, 0), None
    assert flow.is_plain is not flow.transport.is_datagram
    text = row_json(flow, WALL, "{}", stays)
    assert json.loads(text) == flow_row(flow, WALL, {}, stays)
    assert list(json.loads(text)) == list(flow_row(flow, WALL, {}))


@given(flows())
def test_a_flow_that_ended_has_what_its_line_needs(flow: KnownFlow) -> None:
    flow.end(CloseReason.KILLED, CloseSide.PROXY, flow.opened + 2.5)
    closed = closed_flow(flow, WALL, "{}")
    assert closed.reason is flow.close_reason
    assert closed.transport is flow.transport
    assert closed.row == row_json(flow, WALL, "{}")
    assert (closed.closed, closed.duration) == (flow.closed + WALL, flow.closed - flow.opened)


def test_the_name_of_a_unix_socket_may_look_like_a_host() -> None:
    counters = ListenerCounters("l", Transport.UNIX, "u")
    client = UnixAddress("")
    flow = Flow(1, counters, client, client, Direction(), Direction(), State.CONNECTING, 0.0)
    for flow.endpoint_remote in (("a", 0), UnixAddress("a")):
        row = json.loads(row_json(flow, WALL, "{}"))
        assert row["endpoint"] == flow_row(flow, WALL, {})["endpoint"]
