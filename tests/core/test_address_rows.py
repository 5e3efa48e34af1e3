from __future__ import annotations

from collections.abc import Collection

import pytest

from proxy.core.address_rows import address_row, is_up, merge_addresses
from proxy.core.condition import Administration, Health
from proxy.core.counters import EndpointCounters
from proxy.core.ejection import EjectionTerms
from proxy.core.endpoint import Endpoint
from proxy.core.upstream import HOME, Upstream


def upstream_of(slow_start: float = 0.0) -> Upstream:
    endpoints = [Endpoint("web", f"e{n}", ("192.0.2.1", n + 1)) for n in range(2)]
    endpoints[0].become(3, backup=False, ceiling=10)
    upstream = Upstream("web", endpoints)
    upstream.judge_by(EjectionTerms())
    upstream.become(endpoints, HOME, slow_start=slow_start)
    return upstream


def test_what_an_address_is_when_nothing_has_befallen_it() -> None:
    endpoint = upstream_of().endpoints[0]
    endpoint.take()
    assert address_row(endpoint, 50.0, 1000.0) == {
        "address": "192.0.2.1:1",
        "condition": "unknown",
        "since": None,
        "reason": "",
        "weight": 3,
        "share": 100,
        "backup": False,
        "flows": 1,
        "ceiling": 10,
        "ejections": 0,
        "seconds_left": None,
    }


def test_why_it_is_down_or_ejected_and_how_long() -> None:
    one, two = upstream_of().endpoints
    one.set_health(Health.DOWN, "status 404", 40.0)
    row = address_row(one, 50.0, 1000.0)
    assert (row["condition"], row["since"], row["reason"]) == ("down", 1040.0, "status 404")
    one.set_health(Health.UP, "", 45.0)
    assert two.try_eject("5 failures to reach it in a row", 46.0)
    row = address_row(two, 50.0, 1000.0)
    assert (row["condition"], row["reason"]) == ("ejected", "5 failures to reach it in a row")
    assert (row["seconds_left"], row["ejections"]) == (6.0, 1)


def test_why_flows_fail_at_one_that_may_not_be_ejected() -> None:
    views = [upstream_of().endpoints for _ in range(2)]
    one, two = views[1]
    assert one.try_eject("because", 46.0)
    for _ in range(5):
        assert two.record is not None
        verdict = two.record.missed(46.0)
    assert not two.try_eject(verdict, 46.0)
    rows = merge_addresses(address_row(each, 50.0, 1000.0) for view in views for each in view)
    assert [(row["condition"], row["reason"]) for row in rows] == [
        ("ejected", "because"),
        ("unknown", "5 failures to reach it in a row; not ejected, as too few would be left"),
    ]
    two.record.reached(47.0)
    assert address_row(two, 50.0, 1000.0)["reason"] == ""


def test_a_share_is_seen_to_grow() -> None:
    upstream = upstream_of(slow_start=10.0)
    endpoint = upstream.endpoints[0]
    endpoint.set_health(Health.DOWN, "", 1.0)
    endpoint.set_health(Health.UP, "", 2.0)
    assert address_row(endpoint, 2.0, 0.0)["share"] == 5
    upstream.refresh(20.0)
    assert address_row(endpoint, 20.0, 0.0)["share"] == 100


def test_views_of_several_workers_add_up_and_the_worst_is_shown() -> None:
    mine, others = upstream_of().endpoints, upstream_of().endpoints
    for endpoint in (mine[0], others[0], others[0]):
        endpoint.take()
    others[0].try_eject("because", 46.0)
    rows = [address_row(each, 50.0, 1000.0) for each in (*mine, *others)]
    merged = merge_addresses(rows)
    assert [row["address"] for row in merged] == ["192.0.2.1:1", "192.0.2.1:2"]
    assert (merged[0]["flows"], merged[0]["ceiling"]) == (3, 20)
    assert (merged[0]["condition"], merged[0]["reason"]) == ("ejected", "because")
    assert merged[0]["seconds_left"] == 6.0
    assert merged[1]["condition"] == "unknown"


def test_several_workers_call_it_well_since_the_last_did_and_out_since_the_first() -> None:
    views = [upstream_of().endpoints[0] for _ in range(3)]
    assert merge_addresses(address_row(each, 50.0, 1000.0) for each in views)[0]["since"] is None

    def since() -> tuple[str, float | None]:
        (row,) = merge_addresses(address_row(each, 50.0, 1000.0) for each in views)
        return row["condition"], row["since"]

    views[1].try_eject("because", 30.0)
    assert since() == ("ejected", 1030.0)
    views[2].try_eject("because", 32.0)
    assert since() == ("ejected", 1030.0)
    for each, now in ((views[1], 40.0), (views[2], 42.0)):
        assert each.upstream is not None
        each.upstream.refresh(now)
    assert since() == ("unknown", 1042.0), "though the first was never ejected"


DOWN, UP, UNKNOWN = Health.DOWN, Health.UP, Health.UNKNOWN


@pytest.mark.parametrize(
    ("ejected", "health", "answers", "up"),
    [
        ((), (), True, True),
        ((), (), False, False),  # nobody checks it, and it has just refused a flow
        ((), (UP, UP), False, True),  # checks know better
        ((), (UP, DOWN), True, True),
        ((), (DOWN, DOWN), True, False),
        ((), (DOWN, UNKNOWN), True, True),
        ((0,), (), True, True),
        ((0, 1), (), True, False),
        ((0, 1), (UP, UP), True, False),  # accepts checks, and fails flows
        ((0,), (UP, DOWN), True, False),
        ((0,), (DOWN, UP), True, True),
    ],
)
def test_whether_an_endpoint_of_two_addresses_is_up(
    ejected: Collection[int], health: Collection[Health], answers: bool, up: bool
) -> None:
    upstream = upstream_of()
    for number, each in enumerate(health):
        upstream.endpoints[number].set_health(each, "", 1.0)
    for number in ejected:
        endpoint = upstream.endpoints[number]
        assert endpoint.record is not None
        endpoint.record.eject("because", 1.0)
        endpoint.eject(1.0)
    rows = [address_row(each, 2.0, 0.0) for each in upstream.endpoints]
    row = EndpointCounters("web", "e").snapshot(2.0, rows)
    row["up"] = answers
    assert is_up(row, health) is up


def test_operators_have_no_say_in_it() -> None:
    upstream = upstream_of()
    for each, order in zip(upstream.endpoints, ("draining", "disabled"), strict=True):
        each.administer(Administration(order), 1.0)
    rows = [address_row(each, 2.0, 0.0) for each in upstream.endpoints]
    assert is_up(EndpointCounters("web", "e").snapshot(2.0, rows), ())
