"""The Debian package: built, looked at, installed by apt, upgraded, removed, purged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.lab import OFFLINE, Lab
from tests.systemd.test_uninstall import enable_socket_units, states

FILE = "/etc/sockpair/sockpair.toml"
APT = ("apt-get", "--yes", "--quiet", "--no-install-recommends")
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}


@pytest.fixture(scope="module")
def lab(bootable: None, wheels: Path, wheel: str) -> Iterator[Lab]:
    """A machine that has the package in /tmp, not installed."""
    with Lab("deb", wheels) as machine:
        machine.run("rm", "-f", "/var/lib/man-db/auto-update")  # an index of all pages takes long
        said = machine.run("/checkout/deploy/build-deb", "--output", "/tmp/made", wheel, **OFFLINE)
        assert said.startswith("build-deb: built /tmp/made/sockpair_")
        yield machine


@pytest.fixture(scope="module")
def package(lab: Lab) -> str:
    return lab.run("sh", "-c", "ls /tmp/made/sockpair_*.deb").strip()


@pytest.fixture(scope="module")
def installed(lab: Lab, package: str) -> Lab:
    lab.install_story = lab.run(*APT, "install", package, **QUIET)
    return lab


def test_it_says_nothing_of_where_it_was_built(lab: Lab, package: str) -> None:
    lab.run("dpkg-deb", "--extract", package, "/tmp/looked")
    found = lab.ask("grep", "-rIlE", "/tmp/tmp\\.|/checkout|/wheels", "/tmp/looked")
    assert found.stdout == ""


def test_it_belongs_to_root_and_nobody_else_may_write(lab: Lab, package: str) -> None:
    for line in lab.run("dpkg-deb", "--contents", package).splitlines():
        mode, owner = line.split()[:2]
        assert owner == "root/root", line
        assert mode[0] == "l" or "w" not in mode[5:], line


def test_its_checksums_are_right(installed: Lab) -> None:
    assert installed.run("dpkg", "--verify", "sockpair") == ""


def test_it_starts_nothing_by_itself(installed: Lab) -> None:
    assert "systemctl enable --now sockpair" in installed.install_story
    assert installed.show("sockpair.service", "ActiveState") == "inactive"
    assert installed.run("sockpair", "check").startswith(f"{FILE}: valid")
    assert installed.ask("test", "-e", "/usr/share/man/man5/sockpair.toml.5.gz").returncode == 0


def test_an_upgrade_restarts_what_runs_and_leaves_the_configuration(
    installed: Lab, package: str
) -> None:
    mine = installed.run("cat", FILE).replace(":8080", ":8090")
    installed.write(FILE, mine)
    installed.start()
    pid = installed.show("sockpair.service", "MainPID")
    said = installed.run(*APT, "install", "--reinstall", package, **QUIET)
    assert "sockpair: restarted sockpair.service; it kept its listening sockets" in said
    assert installed.show("sockpair.service", "MainPID") != pid
    assert installed.show("sockpair.service", "ActiveState") == "active"
    assert installed.run("cat", FILE) == mine


def test_the_script_does_not_mix_in(installed: Lab) -> None:
    for script in ("/checkout/deploy/install", "/checkout/deploy/uninstall"):
        failed = installed.ask(script)
        assert failed.returncode == 1
        assert "the Debian package sockpair is installed here" in failed.stderr


def test_removing_stops_it_and_leaves_the_configuration(installed: Lab) -> None:
    installed.run("systemctl", "stop", "sockpair.service")
    enable_socket_units(installed)
    installed.run("systemctl", "start", "sockpair.service")
    said = installed.run(*APT, "remove", "sockpair", **QUIET)
    assert "sockpair: stopped and disabled sockpair-mine.socket" in said
    assert states(installed, "sockpair-mine.socket") == ("inactive\n", "disabled\n")
    assert states(installed, "sockpair-other.socket") == ("active\n", "enabled\n")
    assert installed.ask("systemctl", "is-active", "sockpair").stdout != "active\n"
    assert installed.ask("test", "-e", "/opt/sockpair").returncode == 1
    assert installed.ask("test", "-e", FILE).returncode == 0


def test_a_purge_leaves_nothing(installed: Lab) -> None:
    said = installed.run(*APT, "purge", "sockpair", **QUIET)
    assert "sockpair: removed /etc/systemd/system/sockpair-mine.socket" in said
    assert states(installed, "sockpair-mine.socket")[1] == "", "there is none"
    assert states(installed, "sockpair-other.socket") == ("active\n", "enabled\n")
    for path in ("/etc/sockpair", "/var/lib/sockpair", "/var/lib/private/sockpair"):
        assert installed.ask("test", "-e", path).returncode == 1, path
    assert installed.ask("getent", "group", "sockpair-admin").returncode != 0


def test_it_does_not_mix_in_with_the_script(lab: Lab, package: str) -> None:
    lab.run("mkdir", "-p", "/opt/sockpair/env.x/bin")
    lab.run("ln", "-s", "env.x/bin", "/opt/sockpair/bin")
    failed = lab.ask(*APT, "install", package, **QUIET)
    assert failed.returncode != 0
    assert "remove it with deploy/uninstall" in failed.stdout + failed.stderr
