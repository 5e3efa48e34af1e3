"""What the file says of names, and of services: what it becomes, and what is said of mistakes."""

from __future__ import annotations

import pytest

from proxy.config.load import ConfigError, parse
from proxy.config.plan import plan
from proxy.config.service import ServiceEndpoint
from proxy.config.values import parse_endpoint

LISTENER = '[listener.web]\nlisten = "tcp://0.0.0.0:8080"\nupstream = "web"\n'
UPSTREAM = '[upstream.web]\nendpoints = ["web.example:80"]\n'
TEXT = LISTENER + UPSTREAM


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    return [str(each) for each in caught.value.problems]


def test_servers_have_a_port_if_it_is_another() -> None:
    servers = ["10.0.0.53", "10.0.0.53:5353", "2001:DB8::53", "[2001:db8::53]", "[2001:db8::53]:54"]
    text = ", ".join(f'"{each}"' for each in servers)
    names = parse(f"{TEXT}[names]\nservers = [{text}]\n", "f").names
    assert [str(each) for each in names.servers] == [
        "10.0.0.53:53",
        "10.0.0.53:5353",
        "[2001:db8::53]:53",
        "[2001:db8::53]:53",
        "[2001:db8::53]:54",
    ]


def test_defaults() -> None:
    names = parse(TEXT, "f").names
    assert names.servers == ()
    assert (names.timeout, names.ttl_min, names.ttl_max) == (5.0, 5.0, 300.0)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ('servers = ["ns.example"]', 'names.servers[0]: "ns.example" is no DNS server: expected'),
        ('servers = ["ns.example:53"]', "names.servers[0]: "),
        ('servers = ["10.0.0.53:0"]', "names.servers[0]: "),
        ('servers = [""]', "names.servers[0]: "),
        ('servers = "10.0.0.53"', "names.servers: expected an array"),
        (f"servers = {['10.0.0.53'] * 9}", "names.servers: "),
        ('timeout = "0s"', "names.timeout: "),
        ('ttl_min = "1h"', 'names.ttl_min: ttl_min, "1h", is more than ttl_max, "5m"'),
        ('ttl_max = "1s"', 'names.ttl_max: ttl_min, "5s", is more than ttl_max, "1s"'),
        ('ttl = "1s"', "names.ttl: unknown key"),
        ("ttl_min = 5", "names.ttl_min: expected text"),
    ],
)
def test_mistakes(keys: str, expected: str) -> None:
    (problem,) = problems(f"{TEXT}[names]\n{keys}\n")
    assert expected in problem


def test_bounds_may_be_the_same() -> None:
    parse(f'{TEXT}[names]\nttl_min = "5s"\nttl_max = "5s"\n', "f")


def test_a_service() -> None:
    endpoint = parse_endpoint("srv://_http._tcp.example.org")
    assert endpoint == ServiceEndpoint("_http._tcp.example.org", 0)
    assert str(endpoint) == "srv://_http._tcp.example.org"
    assert not endpoint.is_literal


@pytest.mark.parametrize(
    "text",
    [
        "srv://",
        "srv://10.0.0.1",
        "srv://_http._tcp.example.org:80",
        "srv://with space",
        "srv://a/b",
        "srv:///run/x",
    ],
)
def test_what_is_no_service(text: str) -> None:
    with pytest.raises(ValueError, match="srv://"):
        parse_endpoint(text)


def test_a_service_that_comes_twice() -> None:
    endpoints = 'endpoints = ["srv://_a._tcp.x", "srv://_A._tcp.x"]\n'
    (problem,) = problems(f"{LISTENER}[upstream.web]\n{endpoints}")
    assert "is already in the list" in problem


def test_a_family_that_there_is_not() -> None:
    (problem,) = problems(f'{TEXT}family = "ipv5"\n')
    assert "upstream.web.family: " in problem


def test_the_plan_tells_of_names() -> None:
    old = parse(TEXT, "f")
    new = parse(f'{TEXT}family = "ipv4"\n[names]\nservers = ["10.0.0.53"]\nttl_max = "1m"\n', "f")
    assert plan(old, new).lines() == [
        "~ upstream.web.family: any -> ipv4",
        "~ names.servers: none -> 10.0.0.53:53",
        "~ names.ttl_max: 5m -> 1m",
    ]
