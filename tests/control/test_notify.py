"""What the service manager is told, word for word, and what becomes of what it does not take."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, socket

import pytest
import structlog.testing

from proxy.control.notify import FEEDS_PER_WATCH, STATUS_EVERY, Notifier
from proxy.engine.worker import open_files
from tests.control.manager import Manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(tmp_path) as listening:
        yield listening


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    with Notifier(manager.address) as line:
        yield line


def test_ready_and_status_are_one_message(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("12 flows")
    assert manager.hear() == {"READY": "1", "STATUS": "12 flows"}


def test_a_status_cannot_smuggle_an_assignment(manager: Manager, notifier: Notifier) -> None:
    notifier.status("upstream\nMAINPID=1")
    assert manager.hear() == {"STATUS": "upstream MAINPID=1"}


def test_reloading_tells_the_monotonic_clock(manager: Manager, notifier: Notifier) -> None:
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    said = manager.hear()
    assert said.keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert before <= int(said["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000


def test_stopping_can_ask_for_time(manager: Manager, notifier: Notifier) -> None:
    notifier.stopping("draining", patience=90)
    assert manager.hear() == {
        "STOPPING": "1",
        "EXTEND_TIMEOUT_USEC": "90000000",
        "STATUS": "draining",
    }


def test_a_sign_of_life_feeds_the_watchdog(manager: Manager, notifier: Notifier) -> None:
    notifier.alive("3 flows")
    assert manager.hear() == {"WATCHDOG": "1", "STATUS": "3 flows"}


def test_sockets_are_stored_by_name_and_forgotten(manager: Manager, notifier: Notifier) -> None:
    with socket(AF_UNIX, SOCK_DGRAM) as kept:
        notifier.store("kept/dns", [kept])
        said = manager.hear()
        assert said == {"FDSTORE": "1", "FDNAME": "kept/dns", "FDPOLL": "0"}
        assert os.path.sameopenfile(manager.stored["kept/dns"], kept.fileno())
    notifier.forget("kept/dns")
    assert manager.hear() == {"FDSTOREREMOVE": "1", "FDNAME": "kept/dns"}


def test_an_abstract_name_is_reached(tmp_path: Path) -> None:
    with (
        Manager(tmp_path, f"sockpair-test-{os.getpid()}") as manager,
        Notifier(manager.address) as line,
    ):
        line.ready()
        assert manager.hear() == {"READY": "1"}


def test_the_environment_is_read_once_and_emptied() -> None:
    environ = {
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "OTHER": "stays",
    }
    with Notifier.from_environment(environ) as line:
        assert line
        assert line.watchdog == 3
        assert line.interval == 3 / FEEDS_PER_WATCH
    assert environ == {"OTHER": "stays"}


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {},
    ],
)
def test_a_watchdog_of_somebody_else_is_not_fed(environ: dict[str, str]) -> None:
    with Notifier.from_environment({"NOTIFY_SOCKET": "@x", **environ}) as line:
        assert line.watchdog is None
        assert line.interval == STATUS_EVERY


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative"])
def test_without_a_socket_nothing_is_said(address: str) -> None:
    with Notifier.from_environment({"NOTIFY_SOCKET": address}) as line:
        assert not line
        line.ready()
        line.wait_done()


def test_a_manager_that_is_gone_is_one_line_in_the_log(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs, Notifier(str(tmp_path / "gone")) as line:
        line.ready()
        line.alive()
    assert [record["event"] for record in logs] == ["notify_failed"]
    assert logs[0]["socket"] == str(tmp_path / "gone")


def test_a_manager_with_a_full_queue_does_not_hold_up_the_relay(
    manager: Manager, notifier: Notifier
) -> None:
    before = time.monotonic()
    for _ in range(1000):
        notifier.alive("busy")
    assert time.monotonic() - before < 1, "it waited, although nobody reads"
    assert manager.hear()["WATCHDOG"] == "1"


def test_what_is_held_back_is_said_later_with_its_descriptors(manager: Manager) -> None:
    with Notifier(manager.address, held=True) as line:
        with socket() as kept:
            line.store("kept/web", [kept])
        line.status("unsaid until then")
        line.alive("never said")
        line.wait_done()
        manager.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.socket.recv(1)
        manager.socket.setblocking(True)
        line.speak()
        assert manager.hear()["FDNAME"] == "kept/web"
        assert manager.hear() == {"STATUS": "unsaid until then"}
        assert manager.stored.keys() == {"kept/web"}
        line.status("at once")
        assert manager.hear() == {"STATUS": "at once"}


def test_what_is_never_said_is_closed(manager: Manager) -> None:
    before = open_files()
    with Notifier(manager.address, held=True) as line, socket() as kept:
        line.store("kept/web", [kept])
    assert open_files() == before


def test_the_main_process_is_told_and_that_it_is_known_is_awaited(
    manager: Manager, notifier: Notifier
) -> None:
    hearing = threading.Thread(target=manager.hear_until, args=("BARRIER",))
    said = []
    manager_hear, manager.hear = manager.hear, lambda: said.append(manager_hear()) or said[-1]  # type: ignore[method-assign]
    hearing.start()
    notifier.main_process(7)
    hearing.join()
    assert said[0] == {"MAINPID": "7"}
