"""Interfaces that the configuration names and this host does not have."""

from __future__ import annotations

import pytest

from proxy.config.load import parse
from proxy.control.endpoints import unresolved, upstream_specs
from proxy.control.listen import BindError
from proxy.control.names import Names
from tests.control.binding import bind_listeners

LISTENER = """
[listener.x]
listen = "{listen}"
upstream = "x"
{more}
[upstream.x]
endpoints = ["{endpoint}"]
"""


def text(listen: str = "udp://0.0.0.0:0", endpoint: str = "10.0.0.1:1", more: str = "") -> str:
    return LISTENER.format(listen=listen, endpoint=endpoint, more=more)


def test_an_endpoint_behind_an_unknown_interface_is_named() -> None:
    config = parse(text(endpoint="[fe80::1%absent0]:53"), "f")
    (problem,) = unresolved(config, Names())
    assert problem.text == (
        'upstream.x: cannot reach "[fe80::1%absent0]:53": there is no interface "absent0"; '
        '"ip link" lists them'
    )


def test_a_zone_that_exists_becomes_a_scope() -> None:
    config = parse(text(endpoint="[fe80::1%lo]:53"), "f")
    (endpoint,) = upstream_specs(config, Names())["x"].endpoints
    assert endpoint.address == ("fe80::1%lo", 53, 0, 1)


@pytest.mark.parametrize(
    ("listen", "more"),
    [
        ("udp://[fe80::1%absent0]:53", ""),
        ("tcp://[fe80::1%absent0]:53", ""),
        ("udp://0.0.0.0:0", 'multicast = ["239.1.1.1"]\nmulticast_interface = "absent0"'),
        ("udp://[::]:0", 'multicast = ["ff02::c"]\nmulticast_interface = "absent0"'),
    ],
)
def test_a_listener_on_an_unknown_interface_is_named(listen: str, more: str) -> None:
    with pytest.raises(BindError) as caught:
        bind_listeners(parse(text(listen, more=more), "f"))
    message = f'listener.x: cannot listen on {listen}: there is no interface "absent0"; "ip link"'
    assert str(caught.value).startswith(message)
