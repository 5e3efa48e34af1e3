"""The model: what the file says is what the engine gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from proxy.config.load import parse
from proxy.config.model import Config, Listener, PerFlow
from proxy.config.values import ListenAddress, parse_endpoint, parse_group, parse_listen
from proxy.core.address import HostPort, Transport

LEAST = """
[listener.web]
listen = "tcp://0.0.0.0:8080"
upstream = "web"
[upstream.web]
endpoints = ["10.0.0.1:80"]
"""


def test_defaults() -> None:
    config = parse(LEAST, "f")
    assert config.admin.socket == "/run/sockpair/admin.sock"
    assert config.admin.http == HostPort("127.0.0.1", 9600)
    assert (config.engine.table_limit, config.engine.recent) == (100_000, 1000)
    assert (config.log.format, config.log.flows, config.log.level) == ("auto", "all", "info")
    listener = config.listener["web"]
    assert listener.listen == ListenAddress(Transport.TCP, "0.0.0.0", 8080)
    assert (listener.backlog, listener.receive_buffer, listener.dual_stack) == (4096, None, False)
    per_flow = listener.limits.per_flow
    assert (per_flow.connect, per_flow.half_closed, per_flow.unreplied) == (5.0, 240.0, 30.0)
    assert (per_flow.idle, per_flow.duration) == (None, None)
    (endpoint,) = config.upstream["web"].endpoints
    assert (endpoint.address, endpoint.weight, endpoint.backup) == (("10.0.0.1", 80), 1, False)


def test_values_are_seconds_bytes_and_addresses() -> None:
    listener = Listener.model_validate(
        {
            "listen": "udp://[0::0]:0",
            "upstream": "dns",
            "dual_stack": True,
            "receive_buffer": "4MiB",
            "limits": {"per_flow": {"idle": "1m", "duration": "8h", "unreplied": "250ms"}},
        }
    )
    assert listener.listen == ListenAddress(Transport.UDP, "::", 0)
    assert listener.receive_buffer == 4 * 2**20
    assert listener.limits.per_flow.duration == 28800.0
    assert listener.limits.per_flow.unreplied == 0.25
    assert listener.idle == 60.0


@pytest.mark.parametrize(("scheme", "seconds"), [("tcp", 7440.0), ("udp", 300.0)])
def test_idle_is_what_the_rfc_of_the_transport_advises(scheme: str, seconds: float) -> None:
    listener = Listener.model_validate({"listen": f"{scheme}://127.0.0.1:0", "upstream": "x"})
    assert listener.idle == seconds


@pytest.mark.parametrize(
    "url",
    [
        "tcp://0.0.0.0:80",
        "udp://127.0.0.1:0",
        "tcp://[::]:65535",
        "udp://[2001:db8::1]:53",
        "udp://[fe80::1%eth0]:53",
    ],
)
def test_a_listen_address_is_written_as_it_is_read(url: str) -> None:
    assert str(parse_listen(url)) == url


NEAR_GROUPS = ["ff02::c%eth1", "ff01::1%lo", "ff12::1%3", "ff32:40:2001:db8::1%eth1.5"]
FAR_GROUPS = ["ff05::c%eth1", "ff0e::1%eth1", "ff03::1%eth1", "ff02::c%0123456789abcdef"]


@pytest.mark.parametrize("group", [*NEAR_GROUPS, "ff02::c", "ff05::c"])
def test_a_group_within_a_link_or_an_interface_may_have_a_zone(group: str) -> None:
    assert parse_endpoint(f"[{group}]:1901") == HostPort(group, 1901)
    assert parse_group(group) == group


@pytest.mark.parametrize("group", FAR_GROUPS)
def test_no_other_group_has_a_zone(group: str) -> None:
    with pytest.raises(ValueError, match="names a zone"):
        parse_endpoint(f"[{group}]:1901")
    with pytest.raises(ValueError, match="names a zone"):
        parse_group(group)


def test_a_group_with_a_zone_is_joined_and_not_bound() -> None:
    with pytest.raises(ValueError, match=r'listen on "udp://\[::\]:1900", with multicast'):
        parse_listen("udp://[ff02::c%eth1]:1900")


NO_URL = ["", "8080", "0.0.0.0:80", "tcp:0.0.0.0:80", "TCP://0.0.0.0:80", "http://1.1.1.1:80"]
NO_PORT = ["tcp://", "tcp://:80", "tcp://1.1.1.1", "tcp://1.1.1.1:65536", "tcp://1.1.1.1:-1"]
NO_HOST = ["tcp://web:80", "tcp://localhost:80", "tcp://::1:80", "tcp://[1.1.1.1]:80"]
NOT_BOUND = ["tcp://[2001:db8::1%eth0]:80", "udp://[::ffff:1.2.3.4]:53", "tcp://01.1.1.1:80"]
NOT_ZONED = ["tcp://[fe80::1]:80", "udp://[fe80::1%]:53", "udp://[fe80::1%0123456789abcdef]:53"]


@pytest.mark.parametrize("text", [*NO_URL, *NO_PORT, *NO_HOST, *NOT_BOUND, *NOT_ZONED])
def test_what_cannot_be_bound_is_no_listen_address(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"n[eo]|names a zone|is link-local|is a name|is IPv4|is ambiguous"
    ):
        parse_listen(text)


@pytest.mark.parametrize(
    ("text", "http"),
    [
        ('""', None),
        ('"localhost:0"', HostPort("localhost", 0)),
        ('"[0:0::1]:9600"', HostPort("::1", 9600)),
    ],
)
def test_where_the_admin_listens(text: str, http: HostPort | None) -> None:
    assert parse(f'admin.http = {text}\nadmin.socket = ""{LEAST}', "f").admin.http == http


def test_objects_are_frozen() -> None:
    config = parse(LEAST, "f")
    with pytest.raises(ValidationError):
        config.engine.recent = 5


@pytest.mark.parametrize("value", [5, 5.0, True, None, ["5s"]])
def test_a_duration_is_text_also_in_python(value: object) -> None:
    with pytest.raises(ValidationError):
        PerFlow.model_validate({"connect": value})


def test_the_model_itself_refuses_what_is_wrong_between_keys() -> None:
    with pytest.raises(ValidationError, match="there is no upstream"):
        Config.model_validate({"listener": {"a": {"listen": "tcp://1.1.1.1:1", "upstream": "a"}}})


def test_unused_upstreams_are_known() -> None:
    config = parse(LEAST + '[upstream.spare]\nendpoints = ["a:1"]', "f")
    assert config.unused_upstreams() == ["spare"]


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        arguments = getattr(field.annotation, "__args__", ())
        for inner in (field.annotation, *arguments):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from models(inner)


def test_every_key_says_what_it_does_and_how_it_is_written() -> None:
    for model in models(Config):
        for name, field in model.model_fields.items():
            assert field.description, name
            assert field.default is not None or field.examples, name
