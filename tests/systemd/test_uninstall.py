"""deploy/uninstall: what it removes, what it leaves, and that it may be repeated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.systemd.lab import Lab
from tests.systemd.test_install import FILE, MINE, PLACES, UNINSTALL, exists


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


def test_a_purge_leaves_nothing_and_may_be_repeated(machine: Lab) -> None:
    machine.run(UNINSTALL, "--purge")
    for path in (*PLACES, "/etc/sockpair", "/var/lib/sockpair", "/var/lib/private/sockpair"):
        assert not exists(machine, path), path
    assert machine.ask("getent", "group", "sockpair-admin").returncode != 0
    assert machine.run(UNINSTALL, "--purge") == "uninstall: done\n"
