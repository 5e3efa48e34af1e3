"""Keys that say who the client is: what they go together with."""

from __future__ import annotations

import pytest

from proxy.config.load import ConfigError, parse
from proxy.config.model import Config
from proxy.control.specs import proxied_of, routes_of, style_of
from proxy.core.proxy_protocol import HeaderStyle
from proxy.core.server_names import RoutePattern


def config(
    listener: str = "",
    upstream: str = "",
    listen: str = "tcp://127.0.0.1:1",
    to: str = "10.0.0.1:1",
) -> Config:
    return parse(
        f'[listener.a]\nlisten = "{listen}"\nupstream = "b"\n{listener}\n'
        f'[upstream.b]\nendpoints = ["{to}"]\n{upstream}\n',
        "test",
    )


def problem(**parts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**parts)
    (found,) = caught.value.problems
    return str(found)


def test_whom_a_listener_believes() -> None:
    assert proxied_of(config().listener["a"]) is None
    terms = proxied_of(
        config('proxy_from = ["10.0.0.0/8"]\nproxy_only = true\nproxy_timeout = "2s"').listener["a"]
    )
    assert terms is not None
    assert (terms.alone, terms.time) == (True, 2.0)
    assert [terms.trusted.admits(host) for host in ("10.1.2.3", "11.0.0.1", "::1")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("upstream", "style"),
    [
        ("", None),
        ('send_proxy = "v1"', HeaderStyle(1)),
        ('send_proxy = "v2"', HeaderStyle(2)),
        ('send_proxy = "v2"\nsend_proxy_crc32c = true', HeaderStyle(2, checksum=True)),
    ],
)
def test_what_an_upstream_sends(upstream: str, style: HeaderStyle | None) -> None:
    assert style_of(config(upstream=upstream).upstream["b"]) == style


def test_what_does_not_go_together() -> None:
    trusted = 'proxy_from = ["10.0.0.0/8"]'
    assert "there is no proxy_from" in problem(listener="proxy_only = true")
    assert "hides the destination" in problem(listener=trusted, to="original")
    transparent = f"{trusted}\ntransparent = true"
    assert "on a transparent UDP" in problem(listener=transparent, listen="udp://127.0.0.1:1")
    assert "only on tcp and udp" in problem(listener=trusted, listen="unix:///run/x")
    for upstream in ("", 'send_proxy = "v1"'):
        found = problem(upstream=f"{upstream}\nsend_proxy_crc32c = true")
        assert 'needs send_proxy = "v2"' in found
    found = problem(upstream='send_proxy = "v3"\nsend_proxy_crc32c = true')
    assert 'expected "v1" or "v2", found "v3"' in found
    found = problem(upstream='send_proxy = ["v2"]\nsend_proxy_crc32c = true')
    assert "found an array" in found
    found = problem(upstream='send_proxy = "v1"', listen="udp://127.0.0.1:1")
    assert "version 1, which datagrams cannot have" in found
    config(listener=trusted, upstream='send_proxy = "v2"', listen="udp://127.0.0.1:1")


ROUTES = """[listener.a.routes]
"WWW.example.org." = "b"
"*.example.org" = "b"
".example.org/h2" = "b"
"""


def test_routes() -> None:
    listener = config(ROUTES).listener["a"]
    spec = routes_of(listener)
    assert spec is not None
    assert spec.time == 3.0
    assert spec.upstreams == (
        (RoutePattern("www.example.org"), "b"),
        (RoutePattern("*.example.org"), "b"),
        (RoutePattern(".example.org", "h2"), "b"),
    )
    assert routes_of(config().listener["a"]) is None
    assert listener.upstreams == ("b",)


def test_routes_are_counted_where_that_is_wanted() -> None:
    for key, counted in (("", False), ("route_metrics = true\n", True)):
        spec = routes_of(config(key + ROUTES).listener["a"])
        assert spec is not None
        assert spec.counted is counted
    assert "has no effect without routes" in problem(listener="route_metrics = true")
    many = "\n".join(f'"{n}.example" = "b"' for n in range(1001))
    found = problem(listener=f"route_metrics = true\n[listener.a.routes]\n{many}")
    assert "is for 1000 routes at most, and there are 1001" in found


def routes(*lines: str) -> str:
    return "[listener.a.routes]\n" + "\n".join(lines)


def test_what_is_wrong_with_routes() -> None:
    assert "there is no upstream" in problem(listener=routes('"a.example" = "c"'))
    assert 'did you mean "b"' in problem(listener=routes('"a.example" = "bb"'))
    found = problem(listener=routes('"a.example" = "b"', '"A.example." = "b"'))
    assert 'is the same as "a.example"' in found
    found = problem(listener=routes('"a.example" = "b"'), listen="udp://127.0.0.1:1")
    assert "has no effect on a udp listener, only on tcp" in found
    assert 'write "xn--' in problem(listener=routes('"b\u00fccher.example" = "b"'))
    assert "no server name" in problem(listener=routes('"a..example" = "b"'))
    others = '[upstream.c]\nendpoints = ["original"]'
    found = problem(listener=routes('"a.example" = "c"'), upstream=others)
    assert "goes to original destinations" in found
    others = '[upstream.c]\nendpoints = ["unixgram:///run/x"]'
    found = problem(listener=routes('"a.example" = "c"'), upstream=others)
    assert "listener.a.routes" in found
    assert "datagrams" in found
    others = '[upstream.c]\nendpoints = ["127.0.0.1:1"]'
    assert "endless loop" in problem(listener=routes('"a.example" = "c"'), upstream=others)


def test_every_route_to_nowhere_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        config(listener=routes('"a.example" = "c"', '"b.example" = "c"'))
    assert len(caught.value.problems) == 2
