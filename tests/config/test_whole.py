"""Between keys: what each may say alone, and not all together."""

from __future__ import annotations

import errno
import itertools
import socket

import pytest

from proxy.config.model import Listener
from proxy.config.problem import Path
from proxy.config.whole import faults


def listener(listen: str, upstream: str = "up", **keys: object) -> dict[str, object]:
    return {"listen": listen, "upstream": upstream, **keys}


def found(
    *listeners: dict[str, object], endpoints: object = ("10.0.0.1:1",), **tables: object
) -> list[tuple[Path, str]]:
    """The faults of a document with these listeners, named l0, l1, and one upstream."""
    document = {
        "admin": {"http": ""},
        "listener": {f"l{number}": table for number, table in enumerate(listeners)},
        "upstream": {"up": {"endpoints": list(endpoints)}},
    }
    return faults({**document, **tables}, Listener)


def test_a_sound_document_has_no_faults() -> None:
    assert found(listener("tcp://0.0.0.0:80"), listener("udp://0.0.0.0:80")) == []


@pytest.mark.parametrize("document", [None, 5, [], {}, {"listener": 3, "upstream": [1]}])
def test_what_is_no_table_is_left_to_others(document: object) -> None:
    assert faults(document, Listener) == []


def test_a_dangling_upstream_is_named_with_the_nearest() -> None:
    [(path, message)] = found(listener("tcp://0.0.0.0:80", "wbe"), upstream={"web": {}})
    assert path == ("listener", "l0", "upstream")
    assert message == 'there is no upstream "wbe"; did you mean "web"?'
    [(_, message)] = found(listener("tcp://0.0.0.0:80", "other"))
    assert message.endswith("add an [upstream.NAME] table with its endpoints")


def test_faults_are_found_though_other_parts_are_wrong() -> None:
    broken = listener("tcp://0.0.0.0:80", "nowhere", backlog="many", limits=3)
    paths = [path for path, _ in found(broken, listener("tcp://0.0.0.0:80"))]
    assert paths == [("listener", "l0", "upstream"), ("listener", "l1", "listen")]


def test_the_admin_has_an_address_too() -> None:
    web = listener("tcp://0.0.0.0:9600")
    for admin in ({}, {"http": "localhost:9600"}, {"http": "127.0.0.1:9600"}):
        [(path, message)] = found(web, admin=admin)
        assert path == ("listener", "l0", "listen")
        assert "already claimed by admin.http" in message
    assert found(web, admin={"http": ""}) == []
    assert found(web, admin={"http": 5}) == []


def test_the_kernel_gives_every_listener_a_port_of_its_own() -> None:
    assert found(*[listener("tcp://127.0.0.1:0")] * 3, admin={"http": "127.0.0.1:0"}) == []


HOSTS = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "dual"]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize(("one", "other"), [*itertools.product(HOSTS, HOSTS)])
def test_addresses_exclude_each_other_as_the_kernel_has_it(
    transport: str, one: str, other: str
) -> None:
    try:
        refused = kernel_refuses(transport, one, other)
    except OSError as error:
        pytest.skip(f"no such address here: {error}")
    tables = [described(transport, one), described(transport, other)]
    assert [path for path, _ in found(*tables)] == [("listener", "l1", "listen")] * refused


def described(transport: str, host: str) -> dict[str, object]:
    if host == "dual":
        return listener(f"{transport}://[::]:4000", dual_stack=True)
    return listener(f"{transport}://[{host}]:4000" if ":" in host else f"{transport}://{host}:4000")


def kernel_refuses(transport: str, one: str, other: str) -> bool:
    """Ask the kernel; asked again when it refuses, lest a stranger had just that port."""
    return all(_kernel_refuses(transport, one, other) for _ in range(10))


def _kernel_refuses(transport: str, one: str, other: str) -> bool:
    with bound(transport, one, 0) as first:
        try:
            bound(transport, other, first.getsockname()[1]).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return False


def bound(transport: str, host: str, port: int) -> socket.socket:
    is_stream = transport == "tcp"
    family = socket.AF_INET if "." in host else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "dual")
        if is_stream:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::" if host == "dual" else host, port))
        if is_stream:
            sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


@pytest.mark.parametrize(
    ("listen", "endpoint", "loops"),
    [
        ("tcp://127.0.0.1:80", "127.0.0.1:80", True),
        ("tcp://127.0.0.1:80", "localhost:80", True),
        ("tcp://127.0.0.1:80", "127.0.0.1:81", False),
        ("tcp://127.0.0.1:80", "127.0.0.2:80", False),
        ("udp://10.0.0.1:80", "10.0.0.1:80", True),
        ("tcp://0.0.0.0:80", "127.0.0.1:80", True),
        ("tcp://0.0.0.0:80", "127.9.9.9:80", True),
        ("tcp://0.0.0.0:80", "[::1]:80", False),
        ("tcp://0.0.0.0:80", "10.0.0.1:80", False),
        ("tcp://0.0.0.0:80", "web:80", False),
        ("tcp://[::]:80", "[::1]:80", True),
        ("tcp://[::]:80", "127.0.0.1:80", False),
        ("tcp://[::]:80", "localhost:80", True),
    ],
)
def test_a_listener_that_forwards_to_itself(listen: str, endpoint: str, loops: bool) -> None:
    paths = [path for path, _ in found(listener(listen), endpoints=["10.9.9.9:1", endpoint])]
    assert paths == [("upstream", "up", "endpoints", 1)] * loops


def test_a_dual_stack_listener_reaches_itself_by_ipv4() -> None:
    assert found(listener("tcp://[::]:80", dual_stack=True), endpoints=["127.0.0.1:80"])


@pytest.mark.parametrize(("listen", "legal"), [("tcp://[::]:80", True), ("tcp://[::1]:80", False)])
def test_dual_stack_is_for_the_ipv6_wildcard(listen: str, legal: bool) -> None:
    paths = [path for path, _ in found(listener(listen, dual_stack=True))]
    assert paths == [("listener", "l0", "dual_stack")] * (not legal)


def test_dual_stack_elsewhere_is_told_what_to_listen_on() -> None:
    [(_, message)] = found(listener("udp://0.0.0.0:53", dual_stack=True))
    assert message == 'needs listen = "udp://[::]:53", found "udp://0.0.0.0:53"'


PER_FLOW = {"connect": "1s", "half_closed": "1s", "unreplied": "1s", "idle": "1s", "duration": "1s"}


@pytest.mark.parametrize(
    ("transport", "without_effect"),
    [
        ("tcp", {"receive_buffer", "unreplied"}),
        ("udp", {"backlog", "connect", "half_closed"}),
    ],
)
def test_a_key_of_the_other_transport_has_no_effect(
    transport: str, without_effect: set[str]
) -> None:
    table = listener(
        f"{transport}://0.0.0.0:80",
        backlog=5,
        receive_buffer="1MiB",
        limits={"per_flow": PER_FLOW},
    )
    all_found = found(table)
    assert {path[-1] for path, _ in all_found} == without_effect
    assert all(f"has no effect on a {transport} listener" in message for _, message in all_found)


def test_an_endpoint_is_listed_once() -> None:
    endpoints = ["web:80", "10.0.0.1:1", "WEB:80", "[::1]:1", "web:81", "[0::1]:1", 5]
    paths = [path for path, _ in found(listener("tcp://0.0.0.0:9"), endpoints=endpoints)]
    assert [path[-1] for path in paths] == [2, 5]


@pytest.mark.parametrize(
    ("listen", "keys", "path", "expected"),
    [
        ("udp://10.0.0.1:9", {"broadcast": True}, ("broadcast",), "udp://0.0.0.0:9"),
        ("udp://[::]:9", {"broadcast": True}, ("broadcast",), "udp://0.0.0.0:9"),
        ("udp://[::]:9", {"multicast": ["239.1.1.1"]}, ("multicast", 0), "udp://0.0.0.0:9"),
        ("udp://0.0.0.0:9", {"multicast": ["239.1.1.1", "ff02::c"]}, ("multicast", 1), "[::]:9"),
        ("udp://10.0.0.1:9", {"multicast": ["239.1.1.1"]}, ("multicast", 0), "udp://0.0.0.0:9"),
    ],
)
def test_many_are_heard_on_a_wildcard_only(
    listen: str, keys: dict[str, object], path: Path, expected: str
) -> None:
    [(where, message)] = found(listener(listen, **keys))
    assert where == ("listener", "l0", *path)
    assert f'{expected}", found "{listen}"' in message


def test_many_are_heard_where_the_kernel_delivers_them() -> None:
    keys = {"broadcast": True, "multicast": ["239.1.1.1"], "multicast_interface": "eth0"}
    assert found(listener("udp://0.0.0.0:9", **keys)) == []
    assert found(listener("udp://[::]:9", multicast=["ff02::c"])) == []


@pytest.mark.parametrize("endpoint", ["239.1.1.1:80", "[ff05::c]:80", "255.255.255.255:80"])
def test_a_stream_cannot_go_to_many(endpoint: str) -> None:
    endpoints = (endpoint,)
    [(path, message)] = found(listener("tcp://0.0.0.0:80"), endpoints=endpoints)
    assert path == ("upstream", "up", "endpoints", 0)
    assert "is many hosts" in message
    assert found(listener("udp://0.0.0.0:80"), endpoints=endpoints) == []
