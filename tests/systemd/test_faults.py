"""What befalls the machine that sockpair serves on, and what then does not befall the service."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.systemd.lab import Lab
from tests.systemd.test_service import (
    CONFIG,
    DROP_INS,
    FILE,
    PEER,
    at_rest,
    inodes,
    pid_of,
    says,
)

JOURNALD = "systemd-journald.service"
SOCKETS = [f"systemd-journald{part}.socket" for part in ("", "-dev-log", "-audit")]
STAYED = "/tmp/stayed"

ROOM = 16
"""MiB that may be used beyond what is used already."""


@pytest.fixture
def lab(machine: Lab, reinstall: Callable[[Lab], None]) -> Iterator[Lab]:
    """The machine with an endpoint, our configuration, and no service that runs."""
    with at_rest(machine, reinstall):
        yield machine
        machine.run("systemctl", "start", *SOCKETS, JOURNALD)


def metric(lab: Lab, name: str) -> int:
    text = lab.run("curl", "--silent", "http://127.0.0.1:9600/metrics")
    return int(sum(float(value) for value in re.findall(rf"^{name}\S* (\S+)$", text, re.MULTILINE)))


def stay(lab: Lab, seconds: int) -> None:
    """Have a client that says something over one flow for so long."""
    lab.run(
        *("systemd-run", "--unit=staying", f"--property=StandardOutput=truncate:{STAYED}"),
        *(*PEER, "stay", "80", str(seconds)),
    )
    lab.until(lambda: metric(lab, "sockpair_table_entries") == 1, "the client")


def stayed(lab: Lab) -> int:
    """How many answers it had in all, every one that it asked for."""
    told = lab.until(lambda: lab.run("cat", STAYED), "the client's end")
    return int(re.findall(r"^answers=(\d+)$", told, re.MULTILINE)[0])


def test_journald_is_killed_and_no_line_is_lost(lab: Lab) -> None:
    """systemd keeps the streams of services for the next journald (its own FDSTORE)."""
    lab.start()
    stay(lab, 2)
    for _ in range(2):
        lab.run("kill", "-KILL", lab.show(JOURNALD, "MainPID"))
        assert says(lab, "tcp", 80) == "hello"
    assert stayed(lab) > 10
    lab.until(lambda: lab.journal().count('"event":"flow"') == 3, "the lines of all flows")
    assert metric(lab, "sockpair_log_records_dropped_total") == 0


def test_journald_is_stopped_and_the_service_goes_on(lab: Lab) -> None:
    """Our stream ends with it (EPIPE); when it is back a line is lost, and the next ones come."""
    lab.write(f"{DROP_INS}/quick.conf", "[Service]\nWatchdogSec=1\n")
    lab.run("systemctl", "daemon-reload")
    lab.start()
    pid = pid_of(lab)
    stay(lab, 4)
    lab.run("systemctl", "stop", *SOCKETS, JOURNALD)
    for _ in range(5):
        assert says(lab, "tcp", 80) == "hello"
    assert stayed(lab) > 20, "longer than the watchdog waits"
    name = "sockpair_log_records_dropped_total"
    lab.until(lambda: metric(lab, name) == 6, "the lines that nobody took")
    lab.run("systemctl", "start", *SOCKETS, JOURNALD)
    assert says(lab, "tcp", 80) == "hello"
    lab.until(lambda: metric(lab, name) == 7, "the line that finds out that it is back")
    assert says(lab, "tcp", 80) == "hello"
    lab.until_told('"event":"flow"')
    lab.until_told('"event":"log_lines_dropped","lines":7')
    assert metric(lab, name) == 7
    assert pid_of(lab) == pid
    assert lab.show("sockpair.service", "ActiveState") == "active"
    assert lab.show("sockpair.service", "NRestarts") == "0"


@contextmanager
def little_memory(lab: Lab, pid: int) -> Iterator[None]:
    """Give the service, or this one process of it, little more memory than it has.

    Where the unified hierarchy has no memory controller, because the machine uses the old one,
    MemoryMax= has no effect; a cgroup of the old kind is made then. What a process has is not
    charged to it, and neither is the memory of sockets.
    """
    if "memory" in lab.run("cat", "/sys/fs/cgroup/cgroup.controllers").split():
        most = int(lab.show("sockpair.service", "MemoryCurrent")) + (ROOM << 20)
        bounds = (f"MemoryMax={most}", "MemorySwapMax=0")
        lab.run("systemctl", "set-property", "--runtime", "sockpair.service", *bounds)
        yield
        return
    lab.run("mkdir", "-p", "/run/memory")
    mounted = lab.ask("mount", "-t", "cgroup", "-o", "memory", "memory", "/run/memory")
    if mounted.returncode != 0:
        pytest.skip(f"no cgroup bounds memory here: {mounted.stderr}")
    group = f"/run/memory/sockpair-test-{os.getpid()}"  # the kernel's, not the container's
    try:
        lab.run("mkdir", group)
        lab.run("sh", "-c", f"echo {ROOM}M >{group}/memory.limit_in_bytes")
        lab.run("sh", "-c", f"echo {pid} >{group}/cgroup.procs")
        yield
    finally:
        lab.until(lambda: lab.ask("rmdir", group).returncode == 0, "the cgroup's end")
        lab.run("umount", "/run/memory")


def hoard(lab: Lab) -> None:
    """Have a client that opens flow after flow, sends, and reads nothing, until it is cut."""
    lab.run("systemd-run", "--unit=hoarding", *PEER, "hoard", "80", "1000")


def hoarded(lab: Lab) -> str:
    lab.until_told("cut after", "hoarding.service")
    return lab.journal("hoarding.service")


def test_out_of_memory_it_is_started_again_with_its_sockets(lab: Lab) -> None:
    lab.write(f"{DROP_INS}/quick.conf", "[Service]\nRestartSec=100ms\n")
    lab.run("systemctl", "daemon-reload")
    lab.start()
    before, pid = inodes(lab), pid_of(lab)
    with little_memory(lab, pid):
        hoard(lab)
        lab.until(lambda: pid_of(lab) not in {0, pid}, "the next life", 60)
        assert "ConnectionResetError" in hoarded(lab)
    assert says(lab, "tcp", 80) == "hello"
    assert says(lab, "udp", 53) == "hello"
    assert inodes(lab) == before
    assert lab.show("sockpair.service", "NRestarts") == "1"


CREW = CONFIG.replace("[engine]", "[engine]\nworkers = 2")


def workers_of(lab: Lab) -> list[dict[str, int]]:
    rows: list[dict[str, int]] = json.loads(lab.run("sockpair", "status", "-o", "json"))["workers"]
    return rows


def busy_of(workers: list[dict[str, int]]) -> int:
    """The process of the worker that has flows: that of all clients at 127.0.0.1."""
    (busy,) = [row["pid"] for row in workers if row["flows"]]
    return busy


def test_a_worker_out_of_memory_takes_nobody_along(lab: Lab) -> None:
    lab.write(FILE, CREW)
    lab.start()
    assert lab.show("sockpair.service", "OOMPolicy") == "continue"
    pid = pid_of(lab)
    stay(lab, 1)
    workers = workers_of(lab)
    victim = busy_of(workers)
    with little_memory(lab, victim):
        hoard(lab)
        lab.until_told('"event":"worker_lost"')
        assert "ConnectionResetError" in hoarded(lab)
    lab.until(lambda: "not running" not in lab.run("sockpair", "status"), "the next worker")
    assert says(lab, "tcp", 80) == "hello"
    now = workers_of(lab)
    assert {row["pid"] for row in now} & {row["pid"] for row in workers} == {
        row["pid"] for row in workers if row["pid"] != victim
    }
    assert pid_of(lab) == pid
    assert lab.show("sockpair.service", "NRestarts") == "0"
    assert metric(lab, "sockpair_worker_restarts_total") == 1


def test_flows_outlive_a_worker_that_is_out_of_memory(lab: Lab) -> None:
    """Those of the client that is to blame, too: it is not cut off."""
    lab.write(FILE, CREW.replace("[listener.web]", '[listener.web]\nsurvive = "crash"'))
    lab.start()
    lab.run("systemd-run", "--unit=staying", *PEER, "stay", "80", "600")
    lab.until(lambda: metric(lab, "sockpair_table_entries") == 1, "the client")
    victim = busy_of(workers_of(lab))
    with little_memory(lab, victim):
        hoard(lab)
        lab.until_told('"event":"survived"')
    lab.until(lambda: busy_of(workers_of(lab)) != victim, "the next worker")
    assert metric(lab, "sockpair_flows_taken_over_total") > 10
    assert metric(lab, "sockpair_flows_lost_total") == 0
    assert lab.show("hoarding.service", "SubState") == "running"
    lab.run("systemctl", "stop", "staying")
    lab.until_told("answers=", "staying.service")
    assert lab.show("sockpair.service", "NRestarts") == "0"
