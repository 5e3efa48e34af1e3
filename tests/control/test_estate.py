"""What a life leaves to the next: read as it was written, and what cannot be read is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.config.load import parse
from proxy.control.estate import Estate, read_estate, write_estate
from proxy.control.heirs import leave_order
from proxy.control.sockets import Bound
from proxy.core.condition import Administration
from proxy.core.live_limit import LimitValues, LiveLimit
from proxy.core.query import FlowQuery
from proxy.engine.merge import merge_counters
from proxy.engine.specs import EndpointOrder, Steered

ORDER = LiveLimit(number=3, query=FlowQuery(id=7), values=LimitValues(bytes=1), by="me", since=1.0)
DISABLED = EndpointOrder("web", "10.0.0.1:80", Administration.DISABLED)
READING = {**merge_counters([]), "log_dropped": 5}


def test_an_estate_is_read_as_it_was_written() -> None:
    written = json.loads(json.dumps(write_estate([ORDER], [DISABLED], [READING])))
    assert read_estate(written) == Estate((ORDER,), (DISABLED,), (READING,))


@pytest.mark.parametrize("key", ["orders", "disabled", "past"])
@pytest.mark.parametrize("value", [None, 1, "x", {}])
def test_a_part_that_is_none_is_left_out(key: str, value: Any) -> None:
    written = {**write_estate([ORDER], [DISABLED], []), key: value}
    estate = read_estate(written)
    assert getattr(estate, key) == ()
    assert estate != Estate()


@pytest.mark.parametrize("row", [None, 1, "x", [], ["a"], ["a", "b", "c"], {}])
def test_a_row_that_cannot_be_read_is_left_out(row: Any) -> None:
    written = write_estate([ORDER], [DISABLED], [])
    written["orders"].insert(0, row)
    written["disabled"].insert(0, row)
    assert read_estate(written) == Estate((ORDER,), (DISABLED,))


TEXT = """
[listener.web]
listen = "tcp://0.0.0.0:80"
upstream = "u"
[listener.web.limits.per_source]
prefix_v4 = 24
[listener.dns]
listen = "udp://0.0.0.0:53"
upstream = "u"
[listener.moved]
listen = "udp://0.0.0.0:54"
upstream = "u"
[listener.unix]
listen = "unix:///run/x"
upstream = "u"
[listener.off]
listen = "tcp://0.0.0.0:81"
upstream = "u"
survive = "off"
[upstream.u]
endpoints = ["127.0.0.1:9"]
"""


def test_flows_go_to_the_worker_that_their_clients_come_to() -> None:
    listeners = parse(TEXT, "f").listener
    sockets: dict[str, Any] = dict.fromkeys(listeners, ("one", "two")) | {"unix": ("one",)}
    bound = {name: Bound(each, sockets[name]) for name, each in listeners.items()}
    order = leave_order(bound, 2, {"web", "dns", "unix", "off"})
    lone = order["unix"].lone
    assert order == {
        "web": Steered(2, 0, 24, 64),
        "dns": Steered(2, 0, 32, 64),
        "unix": Steered(1, lone),
    }


def test_one_worker_has_all_flows_however_many_sockets_there_are() -> None:
    listener = parse(TEXT, "f").listener["web"]
    sockets: Any = ("one", "two")
    order = leave_order({"web": Bound(listener, sockets)}, 1, {"web"})
    assert order["web"].heir_of("10.0.0.1") == 0
