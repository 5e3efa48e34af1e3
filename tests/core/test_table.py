"""The table against a naive model: a list of flows that is searched from end to end."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.core.address import Address, SocketPair, Transport
from proxy.core.flow import CloseReason, CloseSide, Flow
from proxy.core.table import FlowTable
from tests.core.flows import tcp_counters, tcp_flow

# Few addresses, so that flows share them often.
ADDRESSES: list[Address] = [("192.0.2.1", 1000), ("192.0.2.1", 1001), ("2001:db8::1", 1000, 0, 0)]
addresses = st.sampled_from(ADDRESSES)


def pairs_of(flow: Flow) -> list[SocketPair]:
    pairs = [SocketPair(Transport.TCP, flow.client_local, flow.client_remote)]
    if flow.endpoint_local is not None and flow.endpoint_remote is not None:
        pairs.append(SocketPair(Transport.TCP, flow.endpoint_local, flow.endpoint_remote))
    return pairs


class TableModel(RuleBasedStateMachine):
    @initialize(limit=st.integers(1, 8), recent=st.integers(0, 4))
    def begin(self, limit: int, recent: int) -> None:
        self.table = FlowTable(limit, recent)
        self.counters = tcp_counters()
        self.live: list[Flow] = []
        self.ended: list[Flow] = []
        self.recent = recent

    @precondition(lambda self: not self.table.full)
    @rule(client=addresses, local=addresses)
    def add(self, client: Address, local: Address) -> None:
        flow = tcp_flow(self.table.take_id(), self.counters, client, local)
        self.table.add(flow)
        self.live.append(flow)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), local=addresses, remote=addresses)
    def set_endpoint(self, data: st.DataObject, local: Address, remote: Address) -> None:
        self.table.set_endpoint(data.draw(st.sampled_from(self.live)), local, remote)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(self.live))
        assert self.table.end(flow, CloseReason.KILLED, CloseSide.PROXY, 1.0)
        assert not self.table.end(flow, CloseReason.FINISHED, CloseSide.CLIENT, 2.0)
        self.live.remove(flow)
        self.ended.append(flow)

    @invariant()
    def same_flows_in_the_same_order(self) -> None:
        assert list(self.table) == self.live
        assert len(self.table) == len(self.live) <= self.table.limit
        assert [self.table.get(flow.id) for flow in self.live] == self.live

    @invariant()
    def every_pair_leads_to_a_flow_that_owns_it(self) -> None:
        for flow in self.live:
            for pair in pairs_of(flow):
                found = self.table.find_pair(pair)
                assert found in self.live
                assert pair in pairs_of(found)

    @invariant()
    def nothing_else_is_found(self) -> None:
        owned = {pair for flow in self.live for pair in pairs_of(flow)}
        for local in ADDRESSES:
            for remote in ADDRESSES:
                pair = SocketPair(Transport.TCP, local, remote)
                assert (self.table.find_pair(pair) is not None) == (pair in owned)

    @invariant()
    def the_ring_holds_the_last_that_ended(self) -> None:
        newest = self.ended[-self.recent :] if self.recent else []
        assert list(self.table.recent) == newest
        assert len(self.counters.live) == 5
        assert sum(self.counters.live.values()) == len(self.live)


TestTableModel = TableModel.TestCase
TestTableModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_indexes_are_empty_when_the_table_is() -> None:
    table = FlowTable(10, 0)
    flows = [tcp_flow(table.take_id()) for _ in range(3)]
    for flow in flows:
        table.add(flow)
        table.set_endpoint(flow, ("127.0.0.1", 5000 + flow.id), ("127.0.0.1", 80))
    for flow in flows:
        table.end(flow, CloseReason.FINISHED, CloseSide.CLIENT, 1.0)
    assert len(table._by_endpoint) == 0


def test_adding_to_a_full_table_is_an_assertion() -> None:
    table = FlowTable(1, 0)
    table.add(tcp_flow(1))
    assert table.full
    with pytest.raises(AssertionError):
        table.add(tcp_flow(2))


def test_one_listener_may_feed_another_but_not_itself() -> None:
    table = FlowTable(10, 0)
    first, second = tcp_counters("first"), tcp_counters("second")
    at_first, at_second = ("127.0.0.1", 81), ("127.0.0.1", 82)
    one, two = ("127.0.0.1", 50001), ("127.0.0.1", 50002)

    assert not table.comes_round(first, ("192.0.2.1", 1000), at_first)
    flow = tcp_flow(1, first, ("192.0.2.1", 1000), at_first)
    table.add(flow)
    table.set_endpoint(flow, one, at_second)
    assert not table.comes_round(second, one, at_second), "first feeds second"

    flow = tcp_flow(2, second, one, at_second)
    table.add(flow)
    table.set_endpoint(flow, two, at_first)
    assert table.comes_round(first, two, at_first), "and second feeds first again"
    assert not table.comes_round(first, two, ("127.0.0.1", 99)), "another socket's pair"
