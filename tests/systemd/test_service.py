"""The unit file as it is shipped, under a real systemd: its whole life."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.systemd.lab import Lab

CONFIG = """
[engine]
drain_timeout = "200ms"

[listener.web]
listen = "tcp://0.0.0.0:80"
upstream = "echo"
[listener.dns]
listen = "udp://0.0.0.0:53"
upstream = "echo"
[upstream.echo]
endpoints = ["127.0.0.1:7000"]
"""

BUSY = """
[listener.busy]
listen = "tcp://127.0.0.1:7001"
upstream = "echo"
[listener.dns]
"""
"""A stranger has this address."""

PEER = ("/usr/bin/python3", "/checkout/tests/systemd/peer.py")
FILE = "/etc/sockpair/sockpair.toml"
DROP_INS = "/run/systemd/system/sockpair.service.d"


@pytest.fixture
def lab(machine: Lab, reinstall: Callable[[Lab], None]) -> Iterator[Lab]:
    """The machine with an endpoint, our configuration, and no service that runs."""
    with at_rest(machine, reinstall):
        yield machine


@contextmanager
def at_rest(machine: Lab, reinstall: Callable[[Lab], None]) -> Iterator[None]:
    """Bring a machine to rest before and after, with an endpoint and our configuration."""
    reinstall(machine)
    for unit, port in (("echo", "7000"), ("stranger", "7001")):
        if machine.ask("systemctl", "is-active", unit).stdout != "active\n":
            machine.run("systemd-run", f"--unit={unit}", *PEER, "echo", port)
    rest(machine)
    machine.write(FILE, CONFIG)
    yield
    print(machine.journal())  # pytest shows it of a test that failed
    rest(machine)


def rest(machine: Lab) -> None:
    """Bring a machine to rest: no service, no socket units, no drop-ins, an empty journal."""
    machine.run("sh", "-c", "systemctl stop 'sockpair*.socket' sockpair hoarding staying || true")
    machine.run("sh", "-c", "rm -rf /run/systemd/system/sockpair*; systemctl daemon-reload")
    machine.run("systemctl", "reset-failed")
    machine.run("journalctl", "--rotate", "--vacuum-time=1us", "--quiet")


def says(lab: Lab, kind: str, port: int) -> str:
    return lab.run(*PEER, kind, str(port), "hello").strip()


def pid_of(lab: Lab) -> int:
    return int(lab.show("sockpair.service", "MainPID"))


def inodes(lab: Lab) -> dict[str, str]:
    """The sockets that listen on our ports, by transport."""
    found = lab.run("ss", "-Hlnate", "( sport = 80 )") + lab.run("ss", "-Hlnaue", "( sport = 53 )")
    rows = [line for line in found.splitlines() if "LISTEN" in line or "UNCONN" in line]
    return {line.split()[0]: re.findall(r"ino:(\d+)", line)[0] for line in rows}


def test_it_serves_ports_below_1024_as_a_dynamic_user(lab: Lab) -> None:
    lab.start()
    assert says(lab, "tcp", 80) == "hello"
    assert says(lab, "udp", 53) == "hello"
    assert lab.run(*PEER, "bulk", "80", "32") == f"{32 << 20}\n", "pipes are permitted, too"
    status = dict(
        line.split(":\t", 1)
        for line in lab.run("cat", f"/proc/{pid_of(lab)}/status").splitlines()
        if ":\t" in line
    )
    assert int(status["Uid"].split()[0]) >= 61184, "the range of dynamic users: systemd.exec(5)"
    assert "sockpair:" not in lab.run("cat", "/etc/passwd")
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 1 << 10
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert lab.show("sockpair.service", "StatusText").startswith("0 of 100000 flows")
    metrics = lab.run("curl", "--silent", "http://127.0.0.1:9600/metrics")
    files = int(re.findall(r"^process_max_fds (\d+)", metrics, re.MULTILINE)[0])
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # a container may have a bound of its own
    assert files in {524288, most}
    for name in ("process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"):
        assert re.search(rf"^{name} [1-9]", metrics, re.MULTILINE), name


def test_a_mark_needs_a_capability_and_the_unit_can_be_given_it(lab: Lab) -> None:
    lab.write(FILE, CONFIG.replace("[listener.dns]", "mark = 7\n[listener.dns]"))
    assert lab.ask("systemctl", "start", "sockpair.service").returncode != 0
    wrong = "listener.web.mark: cannot be used: Operation not permitted; it needs CAP_NET_ADMIN"
    assert lab.show("sockpair.service", "StatusText") == wrong
    more = "[Service]\nAmbientCapabilities=CAP_NET_ADMIN\nCapabilityBoundingSet=CAP_NET_ADMIN\n"
    lab.write(f"{DROP_INS}/mark.conf", more)
    lab.run("systemctl", "daemon-reload")
    lab.start()
    assert says(lab, "tcp", 80) == "hello"


def test_its_exposure_is_small(lab: Lab) -> None:
    lab.run("systemd-analyze", "security", "--threshold=15", "--no-pager", "sockpair.service")


def test_members_of_the_group_may_use_the_admin_socket_and_others_not(lab: Lab) -> None:
    lab.start()
    plain = ("setpriv", "--reuid=4711", "--regid=4711")
    status = json.loads(
        lab.run(*plain, "--groups=sockpair-admin", "sockpair", "status", "-o", "json")
    )
    assert status["pid"] == pid_of(lab)
    refused = lab.ask(*plain, "--clear-groups", "sockpair", "status")
    assert refused.returncode == 1
    assert "may not be opened by this user" in refused.stderr


def test_a_restart_keeps_the_listening_sockets(lab: Lab) -> None:
    lab.start()
    before, pid = inodes(lab), pid_of(lab)
    assert lab.show("sockpair.service", "NFileDescriptorStore") == "2"
    lab.run("systemctl", "restart", "sockpair.service")
    assert pid_of(lab) != pid
    assert inodes(lab) == before
    assert says(lab, "udp", 53) == "hello"
    lab.run("systemctl", "stop", "sockpair.service")
    assert inodes(lab) == {}, "a stop gives them back"


def test_nobody_who_connects_during_a_restart_is_refused(lab: Lab) -> None:
    lab.start()
    lab.run("systemd-run", "--unit=knocking", *PEER, "knock", "80", "3")
    lab.run("systemctl", "restart", "sockpair.service")
    lab.run("systemctl", "restart", "sockpair.service")
    lab.until(
        lambda: lab.ask("systemctl", "is-active", "knocking").stdout != "active\n", "the client"
    )
    told = lab.journal("knocking.service")
    (line,) = [line for line in told.splitlines() if "served=" in line]
    outcomes = dict(part.split("=") for part in line.split())
    assert int(outcomes["served"]) > 1, line
    assert "ConnectionRefusedError" not in outcomes, line
    assert "TimeoutError" not in outcomes, line


def test_a_listener_that_is_gone_from_the_file_is_gone_after_a_restart(lab: Lab) -> None:
    lab.start()
    lab.write(FILE, CONFIG.replace("tcp://0.0.0.0:80", "tcp://0.0.0.0:81"))
    lab.run("systemctl", "restart", "sockpair.service")
    assert says(lab, "tcp", 81) == "hello"
    assert lab.ask(*PEER, "tcp", "80", "hello").returncode != 0
    assert lab.show("sockpair.service", "NFileDescriptorStore") == "2"
    lab.until_told("stored_socket_dropped")


def last_reload(lab: Lab) -> str:
    """What the metrics say of it: "1" if it did anything."""
    metrics = lab.run("curl", "--silent", "http://127.0.0.1:9600/metrics")
    return re.findall(r"^sockpair_config_last_reload_successful (\d)", metrics, re.MULTILINE)[0]


def reload_fails(lab: Lab, why: str) -> None:
    """A reload changes nothing; systemctl says so, and who runs knows it."""
    pid, failures = pid_of(lab), lab.journal().count('"reload_failed"')
    assert lab.ask("systemctl", "reload", "sockpair.service").returncode != 0
    lab.until_told(why)
    lab.until(lambda: lab.journal().count('"reload_failed"') > failures, "the event")
    assert last_reload(lab) == "0"
    assert pid_of(lab) == pid
    assert lab.show("sockpair.service", "ActiveState") == "active"
    assert lab.show("sockpair.service", "SubState") == "running"
    assert says(lab, "tcp", 80) == "hello"


def test_a_reload_that_fails_is_known_to_systemctl_and_to_who_runs(lab: Lab) -> None:
    lab.start()
    lab.run("systemctl", "reload", "sockpair.service")
    assert last_reload(lab) == "1"
    lab.write(FILE, CONFIG.replace("listen =", "lissten ="))
    reload_fails(lab, f'{FILE}:6: listener.web.lissten: unknown key; did you mean "listen"?')
    lab.write(FILE, CONFIG)
    lab.run("systemctl", "reload", "sockpair.service")
    assert last_reload(lab) == "1"
    lab.write(FILE, CONFIG.replace("[listener.dns]", BUSY))
    reload_fails(lab, "listener.busy: cannot listen on tcp://127.0.0.1:7001")
    lab.write(FILE, CONFIG)
    lab.run("systemctl", "reload", "sockpair.service")
    assert last_reload(lab) == "1"


def test_a_reload_without_an_admin_socket_is_by_signal(lab: Lab) -> None:
    admin = '[admin]\nsocket = ""\n'
    lab.write(FILE, admin + CONFIG)
    lab.start()
    lab.run("systemctl", "reload", "sockpair.service")
    lab.until_told('"reloaded"')
    lab.write(FILE, admin + CONFIG.replace("listen =", "lissten ="))
    reload_fails(lab, f"{FILE}:8: listener.web.lissten")


def test_a_reload_by_an_admin_socket_elsewhere(lab: Lab) -> None:
    place = "/run/sockpair/other.sock"
    admin = f'[admin]\nsocket = "{place}"\n'
    lab.write(FILE, admin + CONFIG)
    lab.write(f"{DROP_INS}/admin.conf", f"[Service]\nEnvironment=SOCKPAIR_ADMIN={place}\n")
    lab.run("systemctl", "daemon-reload")
    lab.start()
    lab.run("systemctl", "reload", "sockpair.service")
    lab.write(FILE, admin + CONFIG.replace("[listener.dns]", BUSY))
    reload_fails(lab, "listener.busy: cannot listen on tcp://127.0.0.1:7001")


def test_a_start_with_a_broken_file_says_what_is_wrong(lab: Lab) -> None:
    lab.write(FILE, CONFIG.replace('"echo"', '"ecko"', 1))
    assert lab.ask("systemctl", "start", "sockpair.service").returncode != 0
    lab.until_told(f"{FILE}:7: listener.web.upstream")


def test_an_address_that_is_not_to_be_had_is_the_status(lab: Lab) -> None:
    lab.write(FILE, CONFIG.replace("0.0.0.0:80", "192.0.2.1:80"))
    assert lab.ask("systemctl", "start", "sockpair.service").returncode != 0
    assert "cannot listen on tcp://192.0.2.1:80" in lab.show("sockpair.service", "StatusText")


def test_a_relay_that_hangs_is_killed_and_its_clients_are_served_by_the_next(lab: Lab) -> None:
    lab.write(f"{DROP_INS}/quick.conf", "[Service]\nWatchdogSec=2\nRestartSec=100ms\n")
    lab.run("systemctl", "daemon-reload")
    lab.start()
    before, pid = inodes(lab), pid_of(lab)
    lab.run("sleep", "3")
    assert pid_of(lab) == pid, "an idle relay lives"
    lab.run("kill", "-STOP", str(pid))
    # Who comes now waits for the next life. But a process that was stopped, which is as near to one
    # that hangs as can be had, goes on for a moment before it aborts, and may take in a client.
    lab.until(lambda: lab.ask(*PEER, "tcp", "80", "hello").stdout == "hello\n", "an answer")
    assert pid_of(lab) != pid
    assert inodes(lab) == before
    assert lab.show("sockpair.service", "NRestarts") == "1"
    lab.until_told("Watchdog timeout")
    lab.until_told("Fatal Python error: Aborted")  # and a traceback, of where it hung


def test_a_kill_loses_no_listening_socket(lab: Lab) -> None:
    lab.write(f"{DROP_INS}/quick.conf", "[Service]\nRestartSec=100ms\n")
    lab.run("systemctl", "daemon-reload")
    lab.start()
    before, pid = inodes(lab), pid_of(lab)
    lab.run("kill", "-KILL", str(pid))
    assert says(lab, "tcp", 80) == "hello"
    assert says(lab, "udp", 53) == "hello"
    assert pid_of(lab) != pid
    assert inodes(lab) == before


def socket_unit(listen: str, name: str = "") -> str:
    named = f"FileDescriptorName={name}\n" if name else ""
    return f"[Socket]\nService=sockpair.service\n{listen}\n{named}PassPacketInfo=yes\n"


def test_the_first_client_starts_it_by_tcp(lab: Lab) -> None:
    units = "/run/systemd/system"
    lab.run("cp", "/checkout/deploy/sockpair.socket", f"{units}/sockpair-web.socket")
    lab.write(f"{units}/sockpair-dns.socket", socket_unit("ListenDatagram=0.0.0.0:53", "dns"))
    lab.run("systemctl", "daemon-reload")
    lab.run("systemctl", "start", "sockpair-web.socket", "sockpair-dns.socket")
    before = inodes(lab)
    assert lab.show("sockpair.service", "ActiveState") == "inactive"
    assert says(lab, "tcp", 80) == "hello"
    assert says(lab, "udp", 53) == "hello"
    assert inodes(lab) == before
    assert lab.show("sockpair.service", "NFileDescriptorStore") == "0", "systemd has them anyway"


def test_the_first_datagram_starts_it_and_is_answered(lab: Lab) -> None:
    unit = socket_unit("ListenDatagram=0.0.0.0:53")  # no name: the address tells whose it is
    lab.write("/run/systemd/system/sockpair-any.socket", unit)
    lab.run("systemctl", "daemon-reload")
    lab.run("systemctl", "start", "sockpair-any.socket")
    assert says(lab, "udp", 53) == "hello"
    assert says(lab, "tcp", 80) == "hello", "what no unit has made is bound as usual"
    assert lab.show("sockpair.service", "NFileDescriptorStore") == "1"


def test_a_socket_that_nobody_wants_is_told_and_the_rest_serves(lab: Lab) -> None:
    unit = socket_unit("ListenStream=0.0.0.0:8081", "nobody")
    lab.write("/run/systemd/system/sockpair-odd.socket", unit)
    lab.run("systemctl", "daemon-reload")
    lab.run("systemctl", "start", "sockpair-odd.socket")
    lab.start()
    assert says(lab, "tcp", 80) == "hello"
    lab.until_told("inherited_unused")


def test_a_stop_is_in_order_and_leaves_nothing(lab: Lab) -> None:
    lab.start()
    lab.run("systemctl", "stop", "sockpair.service")
    assert lab.show("sockpair.service", "Result") == "success"
    assert lab.ask("test", "-e", "/run/sockpair").returncode == 1
    lab.until_told('"stopping"')
