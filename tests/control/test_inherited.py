"""Descriptors from the service manager: which are taken, which serve whom, which are dropped."""

from __future__ import annotations

import os
import socket as Socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import structlog.testing

from proxy.config.load import parse
from proxy.config.model import Config
from proxy.control import inherited
from proxy.control.adopt import adopt, allot
from proxy.control.inherited import Inheritance, take_inherited
from proxy.control.notify import Notifier
from proxy.control.store import SocketStore, sockets_to_keep
from proxy.control.unix import socket_files
from proxy.core.address import Transport
from proxy.engine.datagram_options import IP_MTU_DISCOVER, Pmtu, set_pmtu
from proxy.engine.drops import kernel_drops
from proxy.engine.handover.succession import channel
from proxy.engine.worker import Worker
from tests.control.binding import bind_for_workers
from tests.control.manager import Manager
from tests.engine.lab import open_listener

FIRST = 700  # so that the test's own descriptors are not in the way


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    monkeypatch.setattr(inherited, "FIRST_FILE", FIRST)
    with ExitStack() as stack:
        yield stack


def tcp(address: str = "127.0.0.1", port: int = 0) -> Socket.socket:
    made = Socket.socket(Socket.AF_INET6 if ":" in address else Socket.AF_INET)
    made.setsockopt(Socket.SOL_SOCKET, Socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen()
    return made


def udp(address: str = "127.0.0.1") -> Socket.socket:
    made = Socket.socket(Socket.AF_INET, Socket.SOCK_DGRAM)
    made.bind((address, 0))
    return made


def pass_on(stack: ExitStack, *given: Socket.socket | int, names: str | None = None) -> Inheritance:
    """Hand descriptors over as the service manager would."""
    for index, each in enumerate(given):
        fd = each if isinstance(each, int) else each.fileno()
        os.dup2(fd, FIRST + index)
        if not isinstance(each, int):
            each.close()
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(given))}
    found = take_inherited(environ if names is None else {**environ, "LISTEN_FDNAMES": names})
    for one in found.sockets:
        stack.enter_context(one.socket)
    return found


def config_of(**listeners: str) -> Config:
    text = '[upstream.u]\nendpoints = ["127.0.0.1:9"]\n' + "".join(
        f'[listener.{name}]\nupstream = "u"\nlisten = {rest}\n' for name, rest in listeners.items()
    )
    return parse(text, "test.toml")


def test_sockets_are_taken_with_their_names(stack: ExitStack) -> None:
    found = pass_on(stack, tcp(), udp(), names="web:dns")
    assert [(one.name, one.transport) for one in found.sockets] == [
        ("web", Transport.TCP),
        ("dns", Transport.UDP),
    ]
    for one in found.sockets:
        assert not one.socket.get_inheritable()
        assert not one.socket.getblocking()


def test_the_variables_are_gone_afterwards() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    assert take_inherited(environ) == Inheritance()
    assert environ == {"HOME": "/"}


def test_the_descriptors_of_another_process_are_left_alone(stack: ExitStack) -> None:
    with tcp() as other:
        os.dup2(other.fileno(), FIRST)
    assert take_inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == Inheritance()
    os.close(FIRST)  # it is open still


@pytest.mark.parametrize("count", ["many", "-1", "1000000000"])
def test_a_number_that_is_none_is_told(count: str) -> None:
    found = take_inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})
    assert found.rejected == [("LISTEN_FDS", f'"{count}" is no number of descriptors')]


def test_what_is_no_listening_socket_is_closed_and_told(stack: ExitStack) -> None:
    file = os.open("/dev/null", os.O_RDONLY)
    mute = Socket.socket()
    unbound = Socket.socket(Socket.AF_INET, Socket.SOCK_DGRAM)
    packets = Socket.socket(Socket.AF_UNIX, Socket.SOCK_SEQPACKET)
    found = pass_on(stack, file, mute, unbound, packets, names="file:mute:unbound:packets")
    os.close(file)
    assert found.sockets == []
    assert dict(found.rejected) == {
        "file": "is not a socket",
        "mute": 'does not listen; a socket unit needs "Accept=no"',
        "unbound": "is not bound to a port",
        "packets": "is a socket of domain 1, type 5; TCP, UDP or Unix fit",
    }
    for index in range(4):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(FIRST + index)


def test_a_descriptor_that_is_not_open_is_told(stack: ExitStack) -> None:
    found = take_inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    assert found.rejected == [("unknown", "Bad file descriptor")]


def test_names_go_before_addresses(stack: ExitStack) -> None:
    one, other = tcp(), tcp()
    first, second = one.getsockname()[1], other.getsockname()[1]
    found = pass_on(stack, one, other, names="sockpair.socket:web")
    config = config_of(
        web=f'"tcp://127.0.0.1:{first}"', api=f'"tcp://127.0.0.1:{second}"', far='"tcp://[::1]:1"'
    )
    chosen = allot(config, found.sockets)
    assert {name: one.name for name, (one,) in chosen.items()} == {"web": "web"}, (
        "the name decides, and the address of the other is nobody's"
    )


def test_an_address_serves_whatever_the_name(stack: ExitStack) -> None:
    one, other = tcp(), udp()
    config = config_of(
        dns=f'"udp://127.0.0.1:{other.getsockname()[1]}"',
        web=f'"tcp://127.0.0.1:{one.getsockname()[1]}"',
    )
    chosen = allot(config, pass_on(stack, one, other, names="x.socket:x.socket").sockets)
    assert chosen["web"][0].transport is Transport.TCP
    assert chosen["dns"][0].transport is Transport.UDP


def test_a_name_with_another_transport_does_not_fit(stack: ExitStack) -> None:
    found = pass_on(stack, udp(), names="web")
    assert allot(config_of(web='"tcp://127.0.0.1:80"'), found.sockets) == {}


def adopted(
    stack: ExitStack, tmp_path: Path, config: Config, found: Inheritance, workers: int = 1
) -> tuple[dict[str, tuple[Socket.socket, ...]], list[dict[str, str]], list[str]]:
    """Adopt, and what was told to the manager and to the log."""
    manager = stack.enter_context(Manager(tmp_path))
    notifier = stack.enter_context(Notifier(manager.address))
    store = SocketStore(notifier)
    with structlog.testing.capture_logs() as logs:
        import threading  # the barrier is answered while we wait for it

        said: list[dict[str, str]] = []

        def hear() -> None:
            while "READY" not in (message := manager.hear()):
                said.append(message)

        listening = threading.Thread(target=hear)
        listening.start()
        given = adopt(config, found, store, workers)
        for socket in (socket for group in given.values() for socket in group):
            stack.callback(socket.close)
        store.keep(sockets_to_keep(config, given))
        notifier.ready()
        listening.join()
    return given, said, [record["event"] for record in logs]


def test_what_was_stored_is_used_again_and_not_stored_twice(
    stack: ExitStack, tmp_path: Path
) -> None:
    kept = tcp()
    config = config_of(web=f'"tcp://127.0.0.1:{kept.getsockname()[1]}"')
    given, said, events = adopted(stack, tmp_path, config, pass_on(stack, kept, names="kept/web"))
    assert given.keys() == {"web"}
    assert said == []
    assert events == ["inherited"]


def test_a_listener_that_is_renamed_keeps_its_socket(stack: ExitStack, tmp_path: Path) -> None:
    kept = tcp()
    config = config_of(new=f'"tcp://127.0.0.1:{kept.getsockname()[1]}"')
    given, said, _ = adopted(stack, tmp_path, config, pass_on(stack, kept, names="kept/old"))
    assert given.keys() == {"new"}
    assert [message.get("FDNAME") for message in said] == ["kept/old", "kept/new"]
    assert [next(iter(message)) for message in said] == ["FDSTOREREMOVE", "FDSTORE"]


def test_what_is_not_configured_any_more_is_closed_in_both_places(
    stack: ExitStack, tmp_path: Path
) -> None:
    kept = tcp()
    port = kept.getsockname()[1]
    found = pass_on(stack, kept, names="kept/gone")
    given, said, events = adopted(stack, tmp_path, config_of(web='"tcp://127.0.0.1:1"'), found)
    assert given == {}
    assert said == [{"FDSTOREREMOVE": "1", "FDNAME": "kept/gone"}, {"BARRIER": "1"}]
    assert events == ["stored_socket_dropped"]
    tcp(port=port).close()  # the address is free


def test_one_that_has_moved_is_bound_anew(stack: ExitStack, tmp_path: Path) -> None:
    found = pass_on(stack, tcp(), names="kept/web")
    given, _, events = adopted(stack, tmp_path, config_of(web='"tcp://127.0.0.1:1"'), found)
    assert given == {}
    assert events == ["stored_socket_dropped"]


def test_a_stored_socket_that_cannot_be_changed_to_fit_is_bound_anew(
    stack: ExitStack, tmp_path: Path
) -> None:
    kept = tcp("::")
    listen = f'"tcp://[::]:{kept.getsockname()[1]}"'
    found = pass_on(stack, kept, names="kept/web")
    given, _, events = adopted(stack, tmp_path, config_of(web=listen), found)
    assert given == {}, "it serves IPv4 too, and dual_stack is false"
    assert events == ["stored_socket_dropped"]


def test_a_socket_unit_is_believed_and_what_differs_is_told(
    stack: ExitStack, tmp_path: Path
) -> None:
    found = pass_on(stack, tcp("::"), names="web")
    given, said, events = adopted(stack, tmp_path, config_of(web='"tcp://[::1]:80"'), found)
    assert given.keys() == {"web"}
    assert said == [], "what a socket unit has made is not stored, too"
    assert events == ["inherited_differs", "inherited"]


def test_the_sockets_of_workers_are_used_again_together(stack: ExitStack, tmp_path: Path) -> None:
    first, second = bind_for_workers(config_of(web='"tcp://127.0.0.1:0"'), 2)["web"]
    config = config_of(web=f'"tcp://127.0.0.1:{first.getsockname()[1]}"')
    inode = os.fstat(second.fileno()).st_ino
    found = pass_on(stack, second, first, names="kept/web/1:kept/web/0")
    given, said, events = adopted(stack, tmp_path, config, found, workers=2)
    assert [os.fstat(each.fileno()).st_ino == inode for each in given["web"]] == [False, True]
    assert said == []
    assert events == ["inherited", "inherited"]


@pytest.mark.parametrize(
    ("names", "workers"), [("kept/web/0", 2), ("kept/web", 2), ("kept/web/0", 1)]
)
def test_sockets_of_another_number_of_workers_stay_and_further_ones_join(
    stack: ExitStack, tmp_path: Path, names: str, workers: int
) -> None:
    kept = tcp()
    inode, port = os.fstat(kept.fileno()).st_ino, kept.getsockname()[1]
    config = config_of(web=f'"tcp://127.0.0.1:{port}"')
    found = pass_on(stack, kept, names=names)
    given, _, events = adopted(stack, tmp_path, config, found, workers)
    assert len(given["web"]) == workers
    assert os.fstat(given["web"][0].fileno()).st_ino == inode
    assert {socket.getsockname()[1] for socket in given["web"]} == {port}
    assert events == ["inherited"]


def test_sockets_of_more_workers_stay(stack: ExitStack, tmp_path: Path) -> None:
    group = bind_for_workers(config_of(web='"tcp://127.0.0.1:0"'), 3)["web"]
    config = config_of(web=f'"tcp://127.0.0.1:{group[0].getsockname()[1]}"')
    found = pass_on(stack, *group, names="kept/web/0:kept/web/1:kept/web/2")
    given, _, events = adopted(stack, tmp_path, config, found, workers=2)
    assert len(given["web"]) == 3
    assert events == ["inherited"] * 3


def test_of_a_group_with_a_gap_the_beginning_stays(stack: ExitStack, tmp_path: Path) -> None:
    group = bind_for_workers(config_of(web='"tcp://127.0.0.1:0"'), 3)["web"]
    group.pop(1).close()
    config = config_of(web=f'"tcp://127.0.0.1:{group[0].getsockname()[1]}"')
    found = pass_on(stack, *group, names="kept/web/0:kept/web/2")
    given, _, events = adopted(stack, tmp_path, config, found, workers=2)
    assert len(given["web"]) == 2
    assert events == ["inherited", "stored_socket_dropped"]


def test_a_socket_unit_gives_one_worker_its_socket(stack: ExitStack, tmp_path: Path) -> None:
    found = pass_on(stack, tcp(), names="web")
    config = config_of(web='"tcp://127.0.0.1:80"')
    given, _, events = adopted(stack, tmp_path, config, found, workers=2)
    assert [len(group) for group in given.values()] == [1]
    assert events == ["inherited"]


def test_a_foreign_socket_is_closed_and_the_others_serve(stack: ExitStack, tmp_path: Path) -> None:
    one = tcp()
    config = config_of(web=f'"tcp://127.0.0.1:{one.getsockname()[1]}"')
    found = pass_on(stack, udp(), one, names="what:web")
    given, _, events = adopted(stack, tmp_path, config, found)
    assert given.keys() == {"web"}
    assert events == ["inherited", "inherited_unused"]


def test_options_are_set_on_the_living_socket_and_taken_back(
    stack: ExitStack, tmp_path: Path
) -> None:
    kept = tcp()
    kept.setsockopt(Socket.SOL_SOCKET, Socket.SO_KEEPALIVE, 1)
    kept.setsockopt(Socket.IPPROTO_TCP, Socket.TCP_USER_TIMEOUT, 5000)
    kept.setsockopt(Socket.IPPROTO_IP, Socket.IP_TOS, 184)
    port = kept.getsockname()[1]
    config = config_of(web=f'"tcp://127.0.0.1:{port}"\n[listener.web.tcp]\nfastopen = 7')
    given, _, _ = adopted(stack, tmp_path, config, pass_on(stack, kept, names="kept/web"))
    option = given["web"][0].getsockopt
    assert option(Socket.IPPROTO_TCP, Socket.TCP_NODELAY)
    assert option(Socket.IPPROTO_TCP, Socket.TCP_FASTOPEN) == 7
    assert option(Socket.SOL_SOCKET, Socket.SO_OOBINLINE)
    assert not option(Socket.SOL_SOCKET, Socket.SO_KEEPALIVE)
    assert not option(Socket.IPPROTO_TCP, Socket.TCP_USER_TIMEOUT)
    assert not option(Socket.IPPROTO_IP, Socket.IP_TOS)


def test_a_receive_buffer_that_is_gone_from_the_file_is_the_systems_again(
    stack: ExitStack, tmp_path: Path
) -> None:
    with udp() as fresh:
        usual = fresh.getsockopt(Socket.SOL_SOCKET, Socket.SO_RCVBUF)
    kept = udp()
    kept.setsockopt(Socket.SOL_SOCKET, Socket.SO_RCVBUF, 4096)
    config = config_of(dns=f'"udp://127.0.0.1:{kept.getsockname()[1]}"')
    given, _, _ = adopted(stack, tmp_path, config, pass_on(stack, kept, names="kept/dns"))
    assert given["dns"][0].getsockopt(Socket.SOL_SOCKET, Socket.SO_RCVBUF) == usual


def test_a_policy_of_fragmentation_that_is_gone_from_the_file_is_the_systems_again(
    stack: ExitStack, tmp_path: Path
) -> None:
    with udp() as fresh:
        usual = fresh.getsockopt(Socket.IPPROTO_IP, IP_MTU_DISCOVER)
    kept = udp()
    set_pmtu(kept, Pmtu.FORBID)
    config = config_of(dns=f'"udp://127.0.0.1:{kept.getsockname()[1]}"\npmtu = "system"')
    given, _, _ = adopted(stack, tmp_path, config, pass_on(stack, kept, names="kept/dns"))
    assert given["dns"][0].getsockopt(Socket.IPPROTO_IP, IP_MTU_DISCOVER) == usual


def test_the_store_follows_a_change_of_the_listeners(tmp_path: Path) -> None:
    with Manager(tmp_path) as manager, Notifier(manager.address) as notifier:
        store = SocketStore(notifier)
        with tcp() as web, tcp() as moved, udp() as dns:
            store.keep({"web": [web], "dns": [dns]})
            assert {manager.hear()["FDNAME"], manager.hear()["FDNAME"]} == {"kept/web", "kept/dns"}
            store.keep({"web": [moved]})
            assert {manager.hear()["FDNAME"], manager.hear()["FDNAME"]} == {"kept/web", "kept/dns"}
            assert not manager.stored
            assert manager.hear()["FDSTORE"] == "1"
            assert os.path.sameopenfile(manager.stored["kept/web"], moved.fileno())


async def test_what_the_kernel_dropped_in_an_earlier_life_is_not_counted_again() -> None:
    kept = udp()
    kept.setsockopt(Socket.SOL_SOCKET, Socket.SO_RCVBUF, 4096)
    with Socket.socket(Socket.AF_INET, Socket.SOCK_DGRAM) as client:
        for _ in range(100):
            client.sendto(bytes(1000), kept.getsockname())
    assert kernel_drops(kept)
    kept.setblocking(False)
    worker = Worker(10, 10)
    await open_listener(worker, "dns", kept, [], Transport.UDP)
    (dns,) = (await worker.counters())["listeners"]
    assert dns["dropped"]["kernel"] == 0
    worker.stop()


def unix(path: Path) -> Socket.socket:
    made = Socket.socket(Socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


def test_a_stored_unix_socket_goes_on_with_its_file(stack: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "x"
    found = pass_on(stack, unix(path), names="kept/web")
    config = config_of(web=f'"unix://{path}"')
    given, _, events = adopted(stack, tmp_path, config, found)
    assert events == ["inherited"]
    (file,) = socket_files(given["web"])
    file.remove()
    assert not path.exists()


def test_a_stored_unix_socket_without_its_file_is_of_no_use(
    stack: ExitStack, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    listening = unix(path)
    path.unlink()
    found = pass_on(stack, listening, names="kept/web")
    assert found.sockets == []
    assert found.rejected == [("kept/web", "No such file or directory")]


def test_the_file_of_a_socket_unit_is_not_ours(stack: ExitStack, tmp_path: Path) -> None:
    found = pass_on(stack, unix(tmp_path / "x"), names="web")
    given, _, _ = adopted(stack, tmp_path, config_of(web=f'"unix://{tmp_path}/x"'), found)
    assert socket_files(given["web"]) == []


def test_ends_of_succession_channels_are_known_by_their_names(stack: ExitStack) -> None:
    ours, theirs = channel()
    found = pass_on(stack, ours, tcp(), names="worker/7:worker/8")
    (one,) = found.channels
    stack.enter_context(one.end)
    theirs.close()
    assert one.name == "worker/7"
    assert found.rejected == [("worker/8", "is no end of a succession channel")]


def test_only_a_predecessor_passes_sockets_of_the_admin(stack: ExitStack) -> None:
    found = pass_on(stack, tcp(), names=inherited.ADMIN_HTTP)
    assert found.admin == {}
    passed = Inheritance(is_passed=True)
    inherited.take(passed, found.sockets[0].socket.detach(), inherited.ADMIN_HTTP)
    assert passed.sockets == []
    stack.enter_context(passed.admin[inherited.ADMIN_HTTP])
