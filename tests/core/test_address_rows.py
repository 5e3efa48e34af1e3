from __future__ import annotations

from proxy.core.address_rows import address_row, merge_addresses
from proxy.core.condition import Health
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
