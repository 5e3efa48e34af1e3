"""The sources of a listener against a dictionary that forgets nothing."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.core.sources import OVERFLOW, Source, SourceKey, SourceTable, source_key, source_text

KEYS = [f"192.0.2.{low}" for low in range(12)]


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 32), st.integers(0, 128), st.booleans())
def test_clients_have_one_key_exactly_if_they_share_a_prefix(
    one: IPv4Address | IPv6Address,
    other: IPv4Address | IPv6Address,
    prefix_v4: int,
    prefix_v6: int,
    near: bool,
) -> None:
    if near:
        other = ip_address(one.packed[:-1] + other.packed[-1:])
    texts = {
        str(ip_network(f"{address}/{prefix_v4 if address.version == 4 else prefix_v6}", False))
        for address in (one, other)
    }
    keys = {source_key(str(address), prefix_v4, prefix_v6) for address in (one, other)}
    assert len(keys) == len(texts)
    assert {source_text(key, prefix_v4, prefix_v6) for key in keys} == texts


def test_a_fresh_address_in_a_64_and_another_zone_are_the_same_source() -> None:
    key = source_key("2001:db8:0:1::1", 32, 64)
    assert source_key("2001:db8:0:1:ffff::2", 32, 64) == key
    assert source_key("2001:db8:0:2::1", 32, 64) != key
    assert source_key("fe80::1%eth0", 32, 64) == source_key("fe80::2%eth1", 32, 64)


def test_a_user_is_a_source_by_his_own_name() -> None:
    assert source_text("uid:1000", 32, 64) == "uid:1000"
    assert source_text("uid:?", 24, 48) == "uid:?"


class SourceModel(RuleBasedStateMachine):
    """Flows come and go, buckets are spent and run full, with room for few idle sources.

    The model forgets nothing: it knows flows and debt of every key. A key that the table shows by
    itself has exactly those, unless some of its flows are booked on a shared source.
    """

    @initialize(idle_max=st.integers(0, 4))
    def begin(self, idle_max: int) -> None:
        self.now = 0.0
        self.idle_max = idle_max
        self.table = SourceTable(idle_max)
        self.live: list[tuple[SourceKey, Source]] = []
        self.most_live = 0
        self.full_at: dict[SourceKey, float] = {}

    @rule(key=st.sampled_from(KEYS), debt=st.sampled_from([0.0, 1.0, 3.0, 10.0]))
    def enter(self, key: SourceKey, debt: float) -> None:
        found = self.table.find(key, self.now)
        source = self.table.enter(key, self.now)
        assert found in (None, source)
        if found is None:
            assert (source.flows, source.full_at) == (1, 0.0)
        source.full_at = max(source.full_at, self.now) + debt
        self.live.append((key, source))
        self.most_live = max(self.most_live, len(self.live))
        if source.key is not None:
            assert source.key == key
            self.full_at[key] = max(self.full_at.get(key, 0.0), self.now) + debt
        else:
            assert self.owing() >= self.idle_max, "shared, though there was room"

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        _, source = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.table.leave(source, self.now)

    @rule(step=st.sampled_from([0.0, 0.5, 1.0, 3.0, 30.0]))
    def wait(self, step: float) -> None:
        self.now += step

    @rule(ahead=st.sampled_from([0.0, 2.0]))
    def forgive(self, ahead: float) -> None:
        self.table.forgive(self.now + ahead)
        for key, full_at in self.full_at.items():
            self.full_at[key] = min(full_at, self.now + ahead)

    def owing(self) -> int:
        busy = {key for key, source in self.live if source.key is not None}
        return sum(at > self.now for key, at in self.full_at.items() if key not in busy)

    @invariant()
    def nobody_is_reset(self) -> None:
        booked = [source for _, source in self.live]
        for key in KEYS:
            source = self.table.get(key)
            flows = booked.count(source) if source else 0
            owes = max(0.0, self.full_at.get(key, 0.0) - self.now)
            assert (source.flows if source else 0) == flows
            assert (max(0.0, source.full_at - self.now) if source else 0.0) == owes

    @invariant()
    def every_flow_is_on_the_books_once(self) -> None:
        assert sum(source.flows for source in self.table) == len(self.live)

    @invariant()
    def sources_are_bounded(self) -> None:
        shared = [source for source in self.table if source.key is None]
        assert len(shared) <= OVERFLOW
        assert len(self.table) - len(shared) <= self.idle_max + self.most_live


TestSourceModel = SourceModel.TestCase
TestSourceModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_source_without_flows_and_debt_is_forgotten_at_once() -> None:
    table = SourceTable(10)
    for key in KEYS:
        table.leave(table.enter(key, 0.0), 0.0)
    assert len(table) == 0


def test_a_source_that_owes_is_forgotten_when_it_has_paid() -> None:
    table = SourceTable(10)
    for age, key in enumerate(KEYS[:6]):
        source = table.enter(key, 0.0)
        source.full_at = 6.0 - age
        table.leave(source, 0.0)
    assert len(table) == 6
    table.leave(table.enter("another", 3.5), 3.5)
    assert sorted(source.full_at for source in table) == [4.0, 5.0, 6.0]


def test_a_flood_of_invented_sources_resets_nobody_and_shares() -> None:
    table = SourceTable(100)
    owing = table.enter("203.0.113.7", 0.0)
    owing.full_at = 60.0
    table.leave(owing, 0.0)
    for number in range(100_000):
        source = table.enter(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1.0)
        source.full_at = 60.0
        table.leave(source, 1.0)
    assert len(table) == 100 + OVERFLOW
    assert table.get("203.0.113.7") is owing
    assert table.enter("203.0.113.7", 2.0) is owing


def test_newcomers_are_told_apart_again_as_soon_as_there_is_room() -> None:
    table = SourceTable(1)
    debtor = table.enter("a", 0.0)
    debtor.full_at = 5.0
    table.leave(debtor, 0.0)
    shared = table.enter("b", 4.0)
    assert shared.key is None
    assert table.find("b", 4.0) is shared
    assert table.find("b", 5.0) is None
    assert table.enter("b", 5.0).key == "b"
    table.leave(shared, 5.0)
    assert shared.flows == 0


def test_who_has_paid_is_forgotten_in_time_also_after_others_were_forgiven() -> None:
    table = SourceTable(10)
    for key, full_at in (("a", 1.0), ("b", 2.0)):
        source = table.enter(key, 0.0)
        source.full_at = full_at
        table.leave(source, 0.0)
    table.enter("a", 0.0).full_at = 10.0
    table.forgive(5.0)
    table.leave(table.enter("c", 2.0), 2.0)
    assert [source.key for source in table] == ["a"]


def test_a_source_that_has_no_flow_left_cannot_be_left() -> None:
    table = SourceTable(1)
    source = table.enter("a", 0.0)
    table.leave(source, 0.0)
    with pytest.raises(AssertionError):
        table.leave(source, 0.0)
