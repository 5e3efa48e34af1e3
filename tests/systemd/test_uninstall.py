"""deploy/uninstall: what it removes, what it leaves, and that it may be repeated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.systemd.lab import Lab
from tests.systemd.test_install import FILE, MINE, PLACES, UNINSTALL, exists

UNITS = "/etc/systemd/system"


def enable_socket_units(lab: Lab) -> tuple[str, str]:
    """Have a socket unit of ours listen, with a drop-in, and one that is called like ours."""
    mine, other = "sockpair-mine.socket", "sockpair-other.socket"
    sample = lab.run("cat", "/checkout/deploy/sockpair.socket")
    lab.write(f"{UNITS}/{mine}", sample.replace("0.0.0.0:80", "127.0.0.1:4040"))
    lab.write(f"{UNITS}/{mine}.d/more.conf", "[Socket]\nBacklog=7\n")
    lab.write(
        f"{UNITS}/{other}",
        "[Socket]\nListenStream=127.0.0.1:4141\nAccept=yes\n[Install]\nWantedBy=sockets.target\n",
    )
    lab.write("/run/systemd/system/sockpair-other@.service", "[Service]\nExecStart=/bin/true\n")
    lab.run("systemctl", "daemon-reload")
    lab.run("systemctl", "enable", "--now", mine, other)
    return mine, other


def states(lab: Lab, unit: str) -> tuple[str, str]:
    return tuple(lab.ask("systemctl", verb, unit).stdout for verb in ("is-active", "is-enabled"))


@pytest.fixture
def lab(machine: Lab, reinstall: Callable[[Lab], None]) -> Lab:
    reinstall(machine)
    return machine


def test_it_stops_the_service_and_leaves_the_configuration(lab: Lab) -> None:
    lab.write(FILE, MINE)
    lab.start()
    said = lab.run(UNINSTALL)
    assert "stopped and disabled sockpair.service" in said
    for path in PLACES:
        assert f"removed {path}" in said
        assert not exists(lab, path), path
    assert "--purge removes it, too" in said
    assert lab.run("cat", FILE) == MINE
    assert lab.ask("systemctl", "cat", "sockpair.service").returncode != 0


def test_socket_units_of_ours_listen_no_more(lab: Lab) -> None:
    mine, other = enable_socket_units(lab)
    lab.start()
    said = lab.run(UNINSTALL)
    first = said.index("stopped and disabled sockpair-mine.socket")
    assert first < said.index("stopped and disabled sockpair.service"), "else a client starts it"
    assert states(lab, mine) == ("inactive\n", "disabled\n")
    assert states(lab, other) == ("active\n", "enabled\n"), "another service's"
    assert "stopped" not in lab.run(UNINSTALL), "it is done already"
    said = lab.run(UNINSTALL, "--purge")
    assert f"removed {UNITS}/{mine}\n" in said
    assert f"removed {UNITS}/{mine}.d" in said
    assert not exists(lab, f"{UNITS}/{mine}")
    assert states(lab, other) == ("active\n", "enabled\n")
    lab.run("systemctl", "disable", "--now", other)
    lab.run("rm", f"{UNITS}/{other}")


def test_a_purge_leaves_nothing_and_may_be_repeated(machine: Lab) -> None:
    machine.run(UNINSTALL, "--purge")
    for path in (*PLACES, "/etc/sockpair", "/var/lib/sockpair", "/var/lib/private/sockpair"):
        assert not exists(machine, path), path
    assert machine.ask("getent", "group", "sockpair-admin").returncode != 0
    assert machine.run(UNINSTALL, "--purge") == "uninstall: done\n"
