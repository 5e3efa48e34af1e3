"""sockpair upstreams, disable and enable, against a real admin socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import structlog.testing

from proxy.cli.upstreams import _reason
from tests.cli.test_completion import offered
from tests.cli.test_table import House
from tests.observe.fake_relay import WALL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with structlog.testing.capture_logs(), House(tmp_path / "admin.sock") as house:
        house.relay.addresses = [
            {
                "address": address,
                "condition": condition,
                "since": WALL,
                "reason": reason,
                "weight": 2,
                "share": 100,
                "backup": False,
                "flows": 3,
                "ceiling": ceiling,
                "ejections": 1,
                "seconds_left": left,
            }
            for address, condition, reason, ceiling, left in (
                ("10.0.0.1:80", "ejected", "5 failures in a row", 100, 12.0),
                ("192.0.2.9:80", "up", "", None, None),
            )
        ]
        yield house


def test_endpoints_by_upstream(house: House) -> None:
    result = house.run("upstreams")
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    assert head.split()[:4] == ["UPSTREAM", "ENDPOINT", "ADDRESS", "CONDITION"]
    assert [line.split()[0] for line in lines[:3]] == ["web", "web", "resolvers"]
    assert lines[3:] == []
    assert "ejected" in lines[0]
    assert "5 failures in a row; back in 12s" in lines[0]
    assert "3/100" in lines[0]
    assert "192.0.2.9:80" in lines[1]


def test_who_waits_for_an_endpoint(house: House) -> None:
    (queue,) = house.relay.queues
    queue.waiting, queue.ceiling, queue.waited, queue.turned_away, queue.expired = 2, 40, 9, 5, 3
    *_, blank, line = house.run("upstreams").stdout.splitlines()
    assert blank == ""
    assert line == (
        "upstream web: 2 of at most 40 flows wait for an endpoint; "
        "9 waited so far, 3 of them in vain, and 5 found no room to wait"
    )
    assert "wait" not in house.run("upstreams", "--upstream", "resolvers").stdout


def test_one_upstream_as_json(house: House) -> None:
    (row,) = json.loads(house.run("upstreams", "--upstream", "web", "-o", "json").stdout)
    assert row["upstream"] == "web"
    assert row["endpoints"][0]["addresses"][0]["condition"] == "ejected"
    lines = house.run("upstreams", "-o", "ndjson").stdout.splitlines()
    assert [json.loads(line)["upstream"] for line in lines] == ["web", "resolvers"]


def test_an_upstream_that_there_is_not(house: House) -> None:
    result = house.run("upstreams", "--upstream", "wbe")
    assert result.exit_code == 1
    assert 'there is no upstream "wbe"; there are: web, resolvers' in result.stderr


@pytest.mark.parametrize("order", ["disable", "enable"])
def test_disable_and_enable(house: House, order: str) -> None:
    result = house.run(order, "10.0.0.1:80", "--upstream", "web")
    assert (result.exit_code, result.stdout) == (0, f"{order}d 10.0.0.1:80 of upstream web\n")
    assert house.steward.asked[-1] == (f"{order}d", "10.0.0.1:80", "web")
    result = house.run(order, "10.9.9.9:80")
    assert result.exit_code == 1
    assert "no upstream has the endpoint" in result.stderr


def test_the_shell_offers_addresses_as_flows_have_them(house: House) -> None:
    assert offered(house.path, "sockpair flows --endpoint ") == ["10.0.0.1:80", "192.0.2.9:80"]
    assert offered(house.path, "sockpair limit --endpoint 19") == ["192.0.2.9:80"]


@pytest.mark.parametrize(
    ("condition", "reason", "shown"),
    [
        ("up", "5 failures in a row; not ejected", "5 failures in a row; not ejected"),
        ("up", "", "connected, checked 3s ago"),
        ("down", "refused", "connected, checked 3s ago"),
    ],
)
def test_what_flows_met_with_goes_before_what_the_last_check_showed(
    condition: str, reason: str, shown: str
) -> None:
    check = {"last": 7.0, "reason": "connected"}
    address = {"condition": condition, "reason": reason, "seconds_left": None, "check": check}
    assert _reason(address, 10.0) == shown
