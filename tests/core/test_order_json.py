"""Orders are read as they were written."""

from __future__ import annotations

import json
from ipaddress import ip_network
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.live_limit import LimitValues, LiveLimit
from proxy.core.order_json import OrderError, read_order, write_order
from proxy.core.query import FlowQuery
from proxy.core.unix import UnixAddress

PLACES = st.sampled_from(
    [
        None,
        ip_network("10.0.0.0/8"),
        ip_network("fd00::/64"),
        ("10.0.0.1", 80),
        ("fe80::1", 80, 0, 3),
        UnixAddress("/run/x"),
    ]
)
NUMBERS = st.none() | st.integers(1, 1 << 40)

ORDERS = st.builds(
    LiveLimit,
    number=st.integers(1, 1 << 30),
    query=st.builds(
        FlowQuery,
        listener=st.none() | st.text(),
        client=PLACES,
        endpoint=PLACES,
        id=st.none() | st.integers(1),
    ),
    values=st.builds(LimitValues, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    by=st.text(),
    since=st.floats(0, 1e10),
    until=st.none() | st.floats(0, 1e10),
    expires=st.just(inf) | st.floats(0, 1e10),
)

ORDER = write_order(
    LiveLimit(number=1, query=FlowQuery(id=7), values=LimitValues(bytes=1), by="me", since=0.0)
)


@given(ORDERS)
def test_an_order_is_read_as_it_was_written(order: LiveLimit) -> None:
    assert read_order(json.loads(json.dumps(write_order(order)))) == order


@pytest.mark.parametrize(
    "written", [None, [], {}, {"number": 1}, {**ORDER, "client": "x"}, {**ORDER, "values": [1] * 9}]
)
def test_what_is_no_order_is_told(written: Any) -> None:
    with pytest.raises(OrderError):
        read_order(written)
