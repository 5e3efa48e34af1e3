"""Who inherits a flow: whoever the client's next flow comes to."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.heirs import NO_HEIRS, HeirPlan, PlanError, read_plan
from proxy.core.steering import worker_of

PLAN = HeirPlan(3, {"web": (24, 56), "alone": 2})


@given(st.ip_addresses(), st.integers(1, 64), st.integers(0, 32), st.integers(0, 128))
def test_a_shared_listeners_flows_go_where_the_kernel_steers_their_clients(
    host: Any, size: int, prefix_v4: int, prefix_v6: int
) -> None:
    plan = HeirPlan(size, {"web": (prefix_v4, prefix_v6)})
    assert plan.heir_of("web", str(host)) == worker_of(host, size, prefix_v4, prefix_v6)


def test_one_worker_may_have_all_flows_and_others_have_no_heir() -> None:
    assert PLAN.heir_of("alone", "") == PLAN.heir_of("alone", "10.0.0.1") == 2
    assert PLAN.heir_of("gone", "10.0.0.1") is None
    assert NO_HEIRS.heir_of("web", "10.0.0.1") is None


def test_an_interface_behind_an_address_does_not_count() -> None:
    plain = worker_of(ip_address("fe80::1"), 3, 24, 56)
    assert PLAN.heir_of("web", "fe80::1%eth0") == plain


@given(
    st.integers(1, 64).flatmap(
        lambda size: st.builds(
            HeirPlan,
            st.just(size),
            st.dictionaries(
                st.text(),
                st.integers(0, size - 1) | st.tuples(st.integers(0, 32), st.integers(0, 128)),
            ),
        )
    )
)
def test_a_plan_is_read_as_it_was_written(plan: HeirPlan) -> None:
    assert read_plan(json.loads(json.dumps(plan.write()))) == plan


@pytest.mark.parametrize(
    "written",
    [
        None,
        [],
        {},
        {"size": 2},
        {"size": "2", "listeners": {"a": 0}},
        {"size": 2, "listeners": []},
        {"size": 2, "listeners": {"a": 2}},
        {"size": 2, "listeners": {"a": -1}},
        {"size": 2, "listeners": {"a": [33, 0]}},
        {"size": 2, "listeners": {"a": [1]}},
        {"size": 2, "listeners": {"a": ["x", 1]}},
        {"size": 65, "listeners": {}},
    ],
)
def test_what_is_no_plan_is_told(written: Any) -> None:
    with pytest.raises(PlanError):
        read_plan(written)
