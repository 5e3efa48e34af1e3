"""Unix sockets in the configuration: how they are written, and what they go together with."""

from __future__ import annotations

import pytest

from proxy.config.load import ConfigError, parse
from proxy.config.model import Config
from proxy.config.unix import UnixEndpoint, UnixgramEndpoint, parse_mode
from proxy.config.values import ListenAddress, parse_endpoint, parse_listen
from proxy.core.address import Transport

URLS = ["unix:///run/x.sock", "unixgram:///run/x.sock", "unix://@name", "unixgram:///a:b/c"]


@pytest.mark.parametrize("url", URLS)
def test_written_as_it_is_read(url: str) -> None:
    address = parse_listen(url)
    assert str(address) == url
    assert not address.is_ipv6
    assert str(parse_endpoint(url)) == url


def test_what_is_read() -> None:
    assert parse_listen("unix:///run/x") == ListenAddress(Transport.UNIX, "/run/x", 0)
    assert parse_listen("unixgram://@x") == ListenAddress(Transport.UNIXGRAM, "@x", 0)
    endpoint = parse_endpoint("unixgram:///run/x")
    assert isinstance(endpoint, UnixgramEndpoint)
    assert isinstance(parse_endpoint("unix:///run/x"), UnixEndpoint)
    assert (endpoint.transport, endpoint.host) == (Transport.UNIXGRAM, "/run/x")


@pytest.mark.parametrize("name", ["", "/", "@", "run/x", "/a\nb", "/" + "x" * 107, "@" + "x" * 108])
@pytest.mark.parametrize("scheme", ["unix", "unixgram"])
def test_what_no_socket_can_be_called(scheme: str, name: str) -> None:
    for read in (parse_listen, parse_endpoint):
        with pytest.raises(ValueError, match=r"names no Unix socket|is too long"):
            read(f"{scheme}://{name}")


def test_the_longest_names() -> None:
    assert parse_listen("unix:///" + "x" * 106).host == "/" + "x" * 106
    assert parse_listen("unix://@" + "x" * 107).host == "@" + "x" * 107


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("600", 0o600), ("0777", 0o777)])
def test_modes(text: str, mode: int) -> None:
    assert parse_mode(text) == mode


@pytest.mark.parametrize("text", ["", "66", "1777", "0o660", "0668", "rw", "00660"])
def test_what_is_no_mode(text: str) -> None:
    with pytest.raises(ValueError, match="is not the mode of a file"):
        parse_mode(text)


def document(listen: str, *endpoints: str, keys: str = "") -> str:
    shown = ", ".join(f'"{endpoint}"' for endpoint in endpoints)
    return (
        f'[listener.l]\nlisten = "{listen}"\nupstream = "u"\n{keys}\n'
        f"[upstream.u]\nendpoints = [{shown}]\n"
    )


def load(listen: str, *endpoints: str, keys: str = "") -> Config:
    return parse(document(listen, *endpoints, keys=keys), "f")


def problems(listen: str, *endpoints: str, keys: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(listen, *endpoints, keys=keys)
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


STREAMS = ["tcp://127.0.0.1:80", "unix:///run/a"]
DATAGRAMS = ["udp://127.0.0.1:80", "unixgram:///run/a"]


@pytest.mark.parametrize("listen", STREAMS)
def test_streams_go_to_streams(listen: str) -> None:
    load(listen, "10.0.0.1:80", "unix:///run/b", "unix://@b")
    assert problems(listen, "10.0.0.1:80", "unixgram:///run/b") == [
        'listener.l.upstream: takes streams, and "unixgram:///run/b" of its upstream datagrams; '
        "name another upstream"
    ]


@pytest.mark.parametrize("listen", DATAGRAMS)
def test_datagrams_go_to_datagrams(listen: str) -> None:
    load(listen, "10.0.0.1:80", "unixgram:///run/b")
    assert problems(listen, "unix:///run/b") == [
        'listener.l.upstream: takes datagrams, and "unix:///run/b" of its upstream streams; '
        "name another upstream"
    ]


def test_keys_of_a_file() -> None:
    listener = load(
        "unix:///run/a", "a:1", keys='mode = "0600"\nowner = "redis"\ngroup = "www-data"'
    ).listener["l"]
    assert (listener.mode, listener.owner, listener.group) == (0o600, "redis", "www-data")
    defaults = load("unix:///run/a", "a:1").listener["l"]
    assert (defaults.mode, defaults.owner, defaults.group) == (0o660, None, None)
    assert problems("unix:///run/a", "a:1", keys='owner = "a:b"')[0].startswith("listener.l.owner")


@pytest.mark.parametrize("key", ['mode = "0600"', 'owner = "x"', 'group = "x"'])
def test_keys_of_a_file_are_for_those_who_have_one(key: str) -> None:
    name = key.partition(" ")[0]
    assert problems("tcp://127.0.0.1:80", "a:1", keys=key) == [
        f"listener.l.{name}: has no effect on a tcp listener, only on unix and unixgram; remove it"
    ]
    assert problems("unix://@a", "a:1", keys=key) == [
        f"listener.l.{name}: has no effect on an abstract name, which has no file; remove it"
    ]


KEYS = {
    "dual_stack = true": {"tcp", "udp"},
    'receive_buffer = "1MiB"': {"udp"},
    "backlog = 5": {"tcp", "unix"},
    'limits.per_flow.connect = "1s"': {"tcp", "unix"},
    'limits.per_flow.unreplied = "1s"': {"udp", "unixgram"},
    "tcp.nodelay = true": {"tcp", "unix"},
    "transparent = true": {"tcp", "udp"},
    "mark = 5": {"tcp", "udp"},
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("listen", ["unix:///run/a", "unixgram:///run/a"])
def test_keys_that_a_unix_socket_has(key: str, listen: str) -> None:
    scheme = listen.partition(":")[0]
    if scheme in KEYS[key]:
        load(listen, "a:1", keys=key)
    else:
        (problem,) = problems(listen, "a:1", keys=key)
        assert "has no effect on a" in problem


def test_idle_is_that_of_their_kin() -> None:
    assert load("unix:///run/a", "a:1").listener["l"].idle == 7440.0
    assert load("unixgram:///run/a", "a:1").listener["l"].idle == 300.0


def two(one: str, other: str, admin: str = "/run/admin") -> str:
    return (
        f'admin.socket = "{admin}"\n'
        f'[listener.a]\nlisten = "{one}"\nupstream = "u"\n'
        f'[listener.b]\nlisten = "{other}"\nupstream = "u"\n'
        '[upstream.u]\nendpoints = ["a:1"]\n'
    )


def test_a_name_is_claimed_once() -> None:
    for other in ("unix:///run/a", "unixgram:///run/a"):
        with pytest.raises(ConfigError, match=r"already claimed by listener\.a"):
            parse(two("unix:///run/a", other), "f")
    with pytest.raises(ConfigError, match=r"already claimed by admin\.socket"):
        parse(two("unix:///run/a", "unix:///run/admin"), "f")
    parse(two("unix:///run/a", "unix:///run/A"), "f")
    parse(two("unix://@a", "unixgram://@a"), "f")
    with pytest.raises(ConfigError, match=r"already claimed by listener\.a"):
        parse(two("unix://@a", "unix://@a"), "f")


def test_a_listener_that_forwards_to_itself() -> None:
    assert problems("unix:///run/a", "unix:///run/a") == [
        'upstream.u.endpoints[0]: "unix:///run/a" is listener "l" itself ("unix:///run/a"): '
        "an endless loop; name another endpoint"
    ]
    load("unix:///run/a", "unix:///run/b")


def test_an_endpoint_is_listed_once_and_case_matters() -> None:
    assert "already in the list" in problems("unix:///run/a", "unix:///b", "unix:///b")[0]
    load("unix:///run/a", "unix:///b", "unix:///B")
