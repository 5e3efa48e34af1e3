"""Orders: who they are for, what they allow together, when they end."""

from __future__ import annotations

from ipaddress import ip_network
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.expiry import FlowLimits
from proxy.core.live_limit import (
    FREE,
    ORDERS_MAX,
    Books,
    LimitValues,
    order_row,
    problem_of,
    restrained,
    restraint_of,
)
from proxy.core.query import FlowQuery

SLOW = LimitValues(bandwidth=1000.0)
WEB = FlowQuery(listener="web")


def test_an_order_ends_when_its_time_is_over_and_not_before() -> None:
    books = Books()
    books.give(WEB, SLOW, "uid 0", now=100.0, wall=5000.0, lasting=60.0)
    books.give(WEB, SLOW, "uid 0", now=100.0, wall=5000.0)
    assert books.next_end == 160.0
    assert books.expire(159.9) == []
    assert [order.number for order in books.expire(160.0)] == [1]
    assert [order.number for order in books.orders] == [2]
    assert books.next_end == inf
    assert books.expire(1e9) == []


def test_a_number_is_never_used_again() -> None:
    books = Books()
    assert books.give(WEB, SLOW, "a", 0.0, 0.0).number == 1
    lifted = books.lift(1)
    assert lifted is not None
    assert books.lift(1) is None
    assert books.give(WEB, SLOW, "a", 0.0, 0.0).number == 2


def test_there_are_so_many_orders_at_most() -> None:
    books = Books()
    for _ in range(ORDERS_MAX):
        assert not books.full
        books.give(WEB, SLOW, "a", 0.0, 0.0)
    assert books.full


@pytest.mark.parametrize(
    ("query", "values"),
    [
        (WEB, LimitValues()),
        (FlowQuery(), SLOW),
        (FlowQuery(id=7), LimitValues(flows=1)),
        (FlowQuery(endpoint=ip_network("10.0.0.0/8")), LimitValues(flows=1)),
    ],
)
def test_what_cannot_be_an_order_is_told(query: FlowQuery, values: LimitValues) -> None:
    assert problem_of(query, values)


def test_an_order_for_flows_knows_a_client_before_it_has_one() -> None:
    query = FlowQuery(listener="web", client=ip_network("192.0.2.0/24"))
    order = Books().give(query, LimitValues(flows=1), "a", 0.0, 0.0)
    assert order.admits_to("web", ("192.0.2.9", 1))
    assert not order.admits_to("dns", ("192.0.2.9", 1))
    assert not order.admits_to("web", ("198.51.100.9", 1))


numbers = st.none() | st.integers(1, 1 << 40)
orders = st.builds(LimitValues, numbers, numbers, numbers, numbers)


@given(st.lists(orders))
def test_of_several_orders_the_strictest_is_felt(given_orders: list[LimitValues]) -> None:
    base = FlowLimits(bytes=1 << 20, bandwidth_reply=1 << 20)
    limits = restrained(base, restraint_of(given_orders))
    budgets = [each.bytes for each in given_orders if each.bytes is not None]
    speeds = [
        speed
        for each in given_orders
        for speed in (each.bandwidth, each.flow_bandwidth)
        if speed is not None
    ]
    assert limits.bytes == min([base.bytes, *budgets])
    assert limits.bandwidth_original == min([inf, *speeds])
    assert limits.bandwidth_reply == min([base.bandwidth_reply, *speeds])
    assert limits.idle == base.idle


def test_without_an_order_the_limits_are_the_same_object() -> None:
    limits = FlowLimits()
    assert restrained(limits, FREE) is limits


def test_a_row_says_all_of_it() -> None:
    query = FlowQuery(client=ip_network("192.0.2.0/24"), endpoint=("10.0.0.1", 80))
    order = Books().give(query, SLOW, "uid 0", 10.0, 5000.0, 30.0)
    row = order_row(order, 4)
    assert (row["client"], row["endpoint"], row["listener"]) == (
        "192.0.2.0/24",
        "10.0.0.1:80",
        None,
    )
    assert (row["bandwidth"], row["matched"], row["since"], row["until"]) == (1000, 4, 5000, 5030)
