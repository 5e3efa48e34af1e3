"""Sockets that share an address: who gets which client, and what may not happen to it.

The kernel's behaviour that ``proxy.control.steering`` is built on is shown here, too, so that a
kernel that behaves otherwise is noticed.
"""

from __future__ import annotations

import errno
import os
import select
import socket as std
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from socket import SO_REUSEPORT, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET
from socket import socket as Socket

import pytest

from proxy.config.load import parse
from proxy.config.values import parse_listen
from proxy.control import steering
from proxy.control.listen import BindError, bind_socket
from proxy.control.steering import Share, attach, bind_group, lone_reason
from proxy.core.steering import Instruction, steering_program
from tests.control.binding import bind_for_workers, bind_listeners
from tests.engine.udp_network import Network, require_namespaces

PATIENCE = 30.0 * float(os.environ.get("SOCKPAIR_TEST_SLOWNESS", "1"))
WORKERS = 4
LOOPBACK = [f"127.1.{number}.{number + 7}" for number in range(24)]
PREFIXES = [f"fd01:{number}::2" for number in range(1, 25)]

CONFIG = """
[upstream.x]
endpoints = ["127.0.0.1:1"]
[listener.x]
upstream = "x"
listen = "{listen}"
{more}
"""


def config_of(listen: str, more: str = "") -> str:
    return CONFIG.format(listen=listen, more=more)


@contextmanager
def group(listen: str, more: str = "", workers: int = WORKERS) -> Iterator[list[Socket]]:
    """The sockets of one listener, closed at the end."""
    config = parse(config_of(listen, more), "f")
    with ExitStack() as undo:
        sockets = bind_for_workers(config, workers)["x"]
        for socket in sockets:
            undo.enter_context(socket)
        yield sockets


class Clients:
    """Sockets of clients, which stay open until the end."""

    def __init__(self, members: Sequence[Socket]) -> None:
        self._members = members
        self._open = ExitStack()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def reach(self, source: str, to: str | None = None) -> int:
        """Come in from there, and say which member it was: one, and no other."""
        self.come(source, to)
        (index,) = self.waiting()
        self.take(index)
        return index

    def come(self, source: str, to: str | None = None) -> None:
        member = self._members[0]
        host, port = member.getsockname()[:2]
        family = std.AF_INET6 if ":" in source else std.AF_INET
        client = self._open.enter_context(Socket(family, member.type))
        client.settimeout(PATIENCE)
        client.bind((source, 0))
        client.connect((to or host, port))
        if member.type == SOCK_DGRAM:
            client.send(b"x")

    def waiting(self, away: int | None = None) -> list[int]:
        """The members that have something, once any has; but for one whose worker is away."""
        poll = select.poll()
        for index, member in enumerate(self._members):
            if index != away:
                poll.register(member, select.POLLIN)
        readable = {descriptor for descriptor, _ in poll.poll(PATIENCE * 1000)}
        return [n for n, member in enumerate(self._members) if member.fileno() in readable]

    def take(self, index: int) -> None:
        member = self._members[index]
        if member.type == SOCK_DGRAM:
            member.recv(1)
        else:
            self._open.enter_context(member.accept()[0])


def reached(members: Sequence[Socket], sources: Sequence[str], to: str | None = None) -> list[int]:
    """Which member each source reaches; twice, from other ports, and the same both times."""
    with Clients(members) as clients:
        first = [clients.reach(source, to) for source in sources]
        assert [clients.reach(source, to) for source in sources] == first
    return first


@pytest.fixture
def host() -> Iterator[None]:
    """A host of its own with many addresses, which the test is on."""
    require_namespaces()
    network = Network()
    try:
        network.add("host")
        for source in PREFIXES:
            network.run("host", "ip", "address", "add", f"{source}/128", "dev", "lo", "nodad")
            other = source.replace("::2", "::ffff:3")
            network.run("host", "ip", "address", "add", f"{other}/128", "dev", "lo", "nodad")
        with network.inside("host"):
            yield
    finally:
        network.close()


def test_a_source_reaches_one_worker_by_any_transport_and_bind() -> None:
    found = []
    for transport in ("tcp", "udp"):
        for bind, dual in (("127.0.0.1", ""), ("0.0.0.0", ""), ("[::]", "dual_stack = true")):
            with group(f"{transport}://{bind}:0", dual) as members:
                assert len(members) == WORKERS
                found.append(reached(members, LOOPBACK, "127.0.0.1"))
    assert all(indices == found[0] for indices in found)
    assert set(found[0]) == set(range(WORKERS))


@pytest.mark.usefixtures("host")
def test_an_ipv6_prefix_reaches_one_worker() -> None:
    found = []
    for transport in ("tcp", "udp"):
        for bind, dual in (("[fd01:1::2]", ""), ("[::]", ""), ("[::]", "dual_stack = true")):
            with group(f"{transport}://{bind}:0", dual) as members:
                found.append(reached(members, PREFIXES, "fd01:1::2"))
                others = [source.replace("::2", "::ffff:3") for source in PREFIXES]
                found.append(reached(members, others, "fd01:1::2"))
    assert all(indices == found[0] for indices in found)
    assert set(found[0]) == set(range(WORKERS))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_the_program_decides_about_the_prefix(transport: str) -> None:
    sources = [f"127.{net}.{host}.1" for net in range(1, 9) for host in range(4)]
    with group(f"{transport}://127.0.0.1:0") as members:
        attach(members[2], steering_program(WORKERS, prefix_v4=16))  # any member speaks for all
        found = reached(members, sources)
    assert all(found[n : n + 4] == [found[n]] * 4 for n in range(0, len(found), 4))
    assert len(set(found)) > 1


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_clients_wait_for_a_worker_that_is_away(transport: str) -> None:
    with group(f"{transport}://127.0.0.1:0") as held:
        homes = reached(held, LOOPBACK)
        workers = [member.dup() for member in held]
        gone = homes[0]
        workers[gone].close()
        with Clients(held) as clients:
            for source in LOOPBACK:
                clients.come(source)
                if homes[LOOPBACK.index(source)] != gone:
                    (index,) = clients.waiting(gone)
                    clients.take(index)
            assert clients.waiting() == [gone]
            for _ in range(homes.count(gone)):
                clients.take(gone)
        for worker in workers:
            worker.close()
        assert reached(held, LOOPBACK) == homes


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_DGRAM])
def test_the_last_takes_the_index_of_one_that_closes(kind: int) -> None:
    scheme = "tcp" if kind == SOCK_STREAM else "udp"
    with group(f"{scheme}://127.0.0.1:0", workers=3) as members:
        homes = reached(members, LOOPBACK)
        members[0].close()
        left = [members[2], members[1]]  # by their new index
        attach(left[0], steering_program(2))
        with group(f"{scheme}://127.0.0.1:0", workers=2) as two:
            assert reached(left, LOOPBACK) == reached(two, LOOPBACK)
        again = Socket(std.AF_INET, kind | SOCK_NONBLOCK)
        again.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
        if kind == SOCK_STREAM:
            again.setsockopt(SOL_SOCKET, std.SO_REUSEADDR, 1)
        again.bind(left[0].getsockname())
        if kind == SOCK_STREAM:
            again.listen()
        with again:
            attach(again, steering_program(3))
            assert reached([*left, again], LOOPBACK) == homes


def test_tcp_sockets_are_numbered_as_they_listen() -> None:
    with ExitStack() as undo:
        members = []
        for _ in range(3):
            member = undo.enter_context(Socket(std.AF_INET, SOCK_STREAM | SOCK_NONBLOCK))
            member.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
            member.bind(members[0].getsockname() if members else ("127.0.0.1", 0))
            members.append(member)
        for index in (2, 0, 1):
            members[index].listen()
        attach(members[0], steering_program(3))
        found = reached([members[2], members[0], members[1]], LOOPBACK)
        with group("tcp://127.0.0.1:0", workers=3) as ours:
            assert reached(ours, LOOPBACK) == found


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("before", [1, WORKERS])
@pytest.mark.parametrize("second", [1, WORKERS])
def test_a_second_instance_is_told_that_the_address_is_in_use(
    transport: str, before: int, second: int
) -> None:
    with group(f"{transport}://127.0.0.1:0", workers=before) as members:
        port = members[0].getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            config = parse(config_of(f"{transport}://{host}:{port}"), "f")
            with pytest.raises(BindError, match="another program has it"):
                bind_for_workers(config, second)
        if before > 1:
            reached(members, LOOPBACK)


def test_two_that_start_at_once_do_not_share() -> None:
    with bind_socket(parse_listen("tcp://127.0.0.1:0"), share=Share.FIRST) as first:
        same = parse_listen(f"tcp://127.0.0.1:{first.getsockname()[1]}")
        with pytest.raises(OSError, match="in use"):
            bind_socket(same, share=Share.FIRST)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_who_joins_behind_us_gets_nobody(transport: str) -> None:
    with group(f"{transport}://127.0.0.1:0") as members:
        homes = reached(members, LOOPBACK)
        same = parse_listen(f"{transport}://127.0.0.1:{members[0].getsockname()[1]}")
        with bind_socket(same, share=Share.NEXT) as late:
            steering.let_in(late)
            assert reached([*members, late], LOOPBACK) == homes
        assert reached(members, LOOPBACK) == homes


def test_nothing_comes_in_before_the_group_is_whole() -> None:
    with bind_socket(parse_listen("udp://127.0.0.1:0"), share=Share.FIRST) as first:
        with Socket(std.AF_INET, SOCK_DGRAM) as client:
            client.connect(first.getsockname())
            client.send(b"early")
            steering.let_in(first)
            client.send(b"in time")
        assert first.recv(16) == b"in time"


def test_a_kernel_that_forbids_filters_does_not_forbid_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some keep them for CAP_NET_ADMIN, which the service does not have."""
    set_program = steering._set_program

    def refuse(socket: Socket, option: int, program: Sequence[Instruction]) -> None:
        if option == steering.SO_ATTACH_FILTER:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        set_program(socket, option, program)

    monkeypatch.setattr(steering, "_set_program", refuse)
    for transport in ("tcp", "udp"):
        with group(f"{transport}://127.0.0.1:0") as members:
            assert len(members) == WORKERS


def test_a_connection_that_came_too_early_comes_again() -> None:
    with (
        bind_socket(parse_listen("tcp://127.0.0.1:0"), share=Share.FIRST) as first,
        Socket(std.AF_INET, SOCK_STREAM | SOCK_NONBLOCK) as client,
    ):
        assert client.connect_ex(first.getsockname()) == errno.EINPROGRESS
        steering.let_in(first)  # its SYN is sent again after a second
        with Clients([first]) as clients:
            assert clients.waiting() == [0]
            clients.take(0)


def test_all_or_none() -> None:
    bound: list[Socket] = []

    def bind(listen: object, share: Share) -> Socket:
        if len(bound) == 2:
            raise OSError(errno.ENOBUFS, "no room")
        bound.append(bind_socket(parse_listen("udp://127.0.0.1:0"), share=share))
        return bound[-1]

    with pytest.raises(OSError, match="no room"):
        bind_group(bind, parse_listen("udp://127.0.0.1:0"), 3, steering_program(3))
    assert [socket.fileno() for socket in bound] == [-1, -1]


def test_a_listener_that_fails_takes_the_groups_of_others_down() -> None:
    with group("udp://127.0.0.1:0", workers=1) as (taken,):
        port = taken.getsockname()[1]
        with Socket(std.AF_INET, SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            other = free.getsockname()[1]
        more = f'[listener.y]\nupstream = "x"\nlisten = "udp://127.0.0.1:{port}"'
        config = parse(config_of(f"udp://127.0.0.1:{other}", more), "f")
        with pytest.raises(BindError, match=r"listener\.y"):
            bind_for_workers(config, WORKERS)
        with group(f"udp://127.0.0.1:{other}"):
            pass


@pytest.mark.parametrize(
    ("listen", "more", "reason"),
    [
        ("unix:///run/x.sock", "", "Unix"),
        ("unixgram:///run/x.sock", "", "Unix"),
        ("udp://0.0.0.0:53", "broadcast = true", "copy"),
        ("udp://0.0.0.0:53", 'multicast = ["239.1.1.1"]', "copy"),
        ("tcp://0.0.0.0:53", "tcp = { mptcp = true }", "Multipath"),
        ("udp://0.0.0.0:53", "transparent = true", "TPROXY"),
        ("tcp://0.0.0.0:53", "transparent = true", None),
        ("tcp://0.0.0.0:53", "", None),
        ("udp://[::]:53", "dual_stack = true", None),
    ],
)
def test_what_one_worker_has_alone(listen: str, more: str, reason: str | None) -> None:
    found = lone_reason(parse(config_of(listen, more), "f").listener["x"])
    assert (found is None) == (reason is None)
    assert reason is None or reason in (found or "")


def test_a_lone_listener_has_one_socket() -> None:
    with group("udp://0.0.0.0:0", "broadcast = true") as members:
        assert len(members) == 1
        assert not members[0].getsockopt(SOL_SOCKET, SO_REUSEPORT)


def test_one_worker_shares_nothing() -> None:
    sockets = bind_listeners(parse(config_of("tcp://127.0.0.1:0"), "f"))
    with sockets["x"] as socket:
        assert not socket.getsockopt(SOL_SOCKET, SO_REUSEPORT)
