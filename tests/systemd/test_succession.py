"""Restarts and crashes under a real systemd: who has a flow never notices; nothing stays behind.

The clients run inside, one of streams and one of datagrams; in the end each says how many answers
it got, if every one of them came.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.systemd.lab import Lab
from tests.systemd.test_service import BUSY, CONFIG, FILE, PEER, at_rest, inodes, pid_of, says

CLIENTS = {"staying": ("stay", "80"), "querying": ("query", "53")}

CREW = CONFIG.replace("[engine]", "[engine]\nworkers = 2")

PROCESSES = "/sys/fs/cgroup/system.slice/sockpair.service/cgroup.procs"


@pytest.fixture
def lab(machine: Lab, reinstall: Callable[[Lab], None]) -> Iterator[Lab]:
    """The machine with an endpoint, our configuration, and no service that runs."""
    with at_rest(machine, reinstall):
        yield machine
        machine.ask("systemctl", "stop", *CLIENTS)  # of a test that has failed


def begin_clients(lab: Lab) -> None:
    for unit, (kind, port) in CLIENTS.items():
        lab.ask("systemctl", "reset-failed", unit)
        lab.run("systemd-run", f"--unit={unit}", *PEER, kind, port, "600")
    lab.until(lambda: flows(lab) == 2, "both flows")


def flows(lab: Lab) -> int:
    return len(lab.run("sockpair", "flows", "-o", "ndjson").splitlines())


def end_clients(lab: Lab) -> None:
    """Have the clients end, and see that each got all its answers."""
    lab.run("systemctl", "stop", *CLIENTS)
    for unit in CLIENTS:
        lab.until_told("answers=", f"{unit}.service")
        answers = re.findall(r"answers=(\d+)", lab.journal(f"{unit}.service"))
        assert int(answers[-1]) > 50, answers


def processes(lab: Lab) -> list[str]:
    """Those of ours that run."""
    found = lab.ask("pgrep", "-f", "/opt/sockpair.*(sockpair run|proxy.engine.child)").stdout
    return found.split()


@pytest.mark.parametrize("config", [CONFIG, CREW], ids=["one worker", "two workers"])
def test_a_restart_is_noticed_by_no_flow(lab: Lab, config: str) -> None:
    lab.write(FILE, config)
    lab.start()
    begin_clients(lab)
    listening, pid = inodes(lab), pid_of(lab)
    for _ in range(2):
        lab.start(verb="restart")
        assert flows(lab) == 2
    assert pid_of(lab) != pid
    assert inodes(lab) == listening
    assert says(lab, "udp", 53) == "hello"
    end_clients(lab)
    lab.until_told("handed_over")
    lab.run("systemctl", "stop", "sockpair.service")
    lab.until(lambda: processes(lab) == [], "the end of every process")


@pytest.mark.parametrize("config", [CONFIG, CREW], ids=["one worker", "two workers"])
def test_an_upgrade_by_hand_is_the_same_service(lab: Lab, config: str) -> None:
    lab.write(FILE, config)
    lab.start()
    begin_clients(lab)
    pid, listening = pid_of(lab), inodes(lab)
    told = lab.run("sockpair", "upgrade")
    assert "2 flows handed over" in told
    assert pid_of(lab) != pid
    assert flows(lab) == 2
    lab.until(lambda: lab.ask("kill", "-0", str(pid)).returncode != 0, "the end of the old process")
    assert lab.show("sockpair.service", "ActiveState") == "active"
    lab.start(verb="restart")
    assert inodes(lab) == listening
    assert flows(lab) == 2
    end_clients(lab)
    lab.run("systemctl", "stop", "sockpair.service")
    lab.until(lambda: processes(lab) == [], "the end of every process")
    assert inodes(lab) == {}


def test_a_kill_of_the_service_is_noticed_by_no_flow_of_its_workers(lab: Lab) -> None:
    lab.write(FILE, CREW)
    lab.start()
    begin_clients(lab)
    pid = pid_of(lab)
    lab.run("kill", "-KILL", str(pid))
    lab.until(lambda: pid_of(lab) not in {0, pid}, "the next life")
    lab.until_told("handed_over")
    lab.until(lambda: flows(lab) == 2, "both flows")
    end_clients(lab)
    lab.run("systemctl", "stop", "sockpair.service")
    lab.until(lambda: processes(lab) == [], "the end of every process")


def test_an_address_that_a_stranger_has_cuts_no_flow_at_a_restart(lab: Lab) -> None:
    lab.write(FILE, CREW)
    lab.start()
    begin_clients(lab)
    lab.write(FILE, CREW.replace("[listener.dns]", BUSY))
    assert lab.ask("systemctl", "restart", "sockpair.service").returncode != 0
    lab.until_told("listener.busy: cannot listen on tcp://127.0.0.1:7001")
    assert says(lab, "tcp", 80) == "hello", "who is left serves"
    lab.write(FILE, CREW)
    lab.until(lambda: lab.show("sockpair.service", "SubState") == "running", "the next life")
    lab.until(lambda: flows(lab) == 2, "both flows")
    end_clients(lab)
    lab.until_told("handed_over")
    assert "predecessors_in_the_way" not in lab.journal()


def test_who_is_left_ends_if_it_has_the_address_itself(lab: Lab) -> None:
    crew = CREW.replace('"tcp://0.0.0.0:80"', '"tcp://[::]:80"\ndual_stack = false')
    lab.write(FILE, crew)
    lab.start()
    lab.write(FILE, crew.replace("dual_stack = false", "dual_stack = true"))
    lab.start(verb="restart")
    lab.until_told("predecessors_in_the_way")
    assert says(lab, "tcp", 80) == "hello"


def test_a_stop_while_the_next_life_is_waited_for_leaves_nobody_behind(lab: Lab) -> None:
    lab.write(FILE, CREW)
    lab.start()
    begin_clients(lab)
    lab.run("kill", "-KILL", str(pid_of(lab)))
    lab.until(lambda: lab.show("sockpair.service", "SubState") == "auto-restart", "the pause")
    assert processes(lab), "the workers relay on"
    lab.run("systemctl", "stop", "sockpair.service", *CLIENTS)
    lab.until(lambda: processes(lab) == [], "the end of every process")
    assert inodes(lab) == {}


def test_a_plain_stop_drains_and_leaves_nobody_behind(lab: Lab) -> None:
    lab.write(FILE, CREW.replace('"200ms"', '"1s"'))
    lab.start()
    begin_clients(lab)
    lab.run("systemctl", "stop", "sockpair.service")
    assert processes(lab) == []
    assert '"close_reason":"drained"' in lab.journal()
    lab.run("systemctl", "kill", "--signal=KILL", *CLIENTS)  # one waits for an answer
