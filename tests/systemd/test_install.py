"""deploy/install, on a Debian of our own: again and again, and with faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.systemd.lab import OFFLINE, Lab

INSTALL = "/checkout/deploy/install"
UNINSTALL = "/checkout/deploy/uninstall"
FILE = "/etc/sockpair/sockpair.toml"
MINE = """
[listener.mine]
listen = "tcp://127.0.0.1:4040"
upstream = "mine"
[upstream.mine]
endpoints = ["127.0.0.1:9"]
"""
TEXTS = [
    "/usr/local/share/man/man1/sockpair.1",
    "/usr/local/share/man/man5/sockpair.toml.5",
    "/usr/local/share/bash-completion/completions/sockpair",
    "/usr/local/share/zsh/site-functions/_sockpair",
    "/usr/local/share/fish/vendor_completions.d/sockpair.fish",
]
PLACES = [
    *TEXTS,
    "/opt/sockpair",
    "/usr/local/bin/sockpair",
    "/usr/local/share/doc/sockpair",
    "/etc/systemd/system/sockpair.service",
    "/etc/sysusers.d/sockpair.conf",
]


@pytest.fixture
def lab(machine: Lab, reinstall: Callable[[Lab], None]) -> Lab:
    reinstall(machine)
    return machine


def environments(lab: Lab) -> list[str]:
    return lab.run("sh", "-c", "ls -d /opt/sockpair/env.*").split()


def exists(lab: Lab, path: str) -> bool:
    return lab.ask("test", "-e", path).returncode == 0


def test_the_first_time_says_what_was_done_and_starts_nothing(lab: Lab) -> None:
    for words in (
        "made /opt/sockpair/env.",
        f"wrote {FILE}, a sample",
        "made the group sockpair-admin",
        "/usr/local/bin/sockpair is now sockpair, version",
        "start it with: systemctl enable --now sockpair",
    ):
        assert words in lab.install_story
    for path in PLACES:
        assert exists(lab, path), path


def test_the_shell_completes_commands(lab: Lab) -> None:
    assert lab.run("bash", "-c", f"source {TEXTS[2]}; complete -p sockpair").strip()
    words = {"COMP_WORDS": "sockpair fl", "COMP_CWORD": "1", "_SOCKPAIR_COMPLETE": "bash_complete"}
    assert lab.run("sockpair", **words) == "plain,flows\n"
    for path, mark in ((TEXTS[3], "#compdef sockpair"), (TEXTS[4], "complete --no-files")):
        assert mark in lab.run("cat", path)


def test_the_manual_is_found(lab: Lab) -> None:
    assert lab.run("man", "-w", "1", "sockpair").endswith("/man1/sockpair.1\n")
    assert lab.run("man", "-w", "5", "sockpair.toml").endswith("/man5/sockpair.toml.5\n")


def test_an_upgrade_restarts_what_runs_and_leaves_the_configuration(lab: Lab, wheel: str) -> None:
    lab.write(FILE, MINE)
    lab.start()
    pid, before = lab.show("sockpair.service", "MainPID"), environments(lab)
    said = lab.run(INSTALL, wheel, **OFFLINE)
    assert "restarted sockpair.service" in said
    assert f"{FILE}: valid, and left as it is" in said
    assert lab.run("cat", FILE) == MINE
    assert lab.show("sockpair.service", "MainPID") != pid
    assert lab.show("sockpair.service", "ActiveState") == "active"
    assert len(environments(lab)) == 1
    assert environments(lab) != before
    assert lab.run("sockpair", "status").strip()


def test_an_upgrade_that_fails_changes_nothing(lab: Lab, wheel: str) -> None:
    lab.write(FILE, MINE)
    lab.start()
    pid, before = lab.show("sockpair.service", "MainPID"), environments(lab)
    lab.write("/tmp/broken-1.0-py3-none-any.whl", "not a wheel")
    failed = lab.ask(INSTALL, "/tmp/broken-1.0-py3-none-any.whl", **OFFLINE)
    assert failed.returncode == 1
    assert "pip could not install" in failed.stderr
    assert "what was installed before is unchanged" in failed.stderr
    assert environments(lab) == before
    assert lab.show("sockpair.service", "MainPID") == pid


@pytest.mark.slow
def test_a_version_that_does_not_take_the_file_is_not_installed(lab: Lab, wheel: str) -> None:
    before = environments(lab)
    lab.write(FILE, MINE.replace("listen =", "lissten ="))
    failed = lab.ask(INSTALL, wheel, **OFFLINE)
    lab.write(FILE, MINE)
    assert failed.returncode == 1
    assert f"{FILE}:3: listener.mine.lissten: unknown key" in failed.stderr
    assert f"this version does not take {FILE}" in failed.stderr
    assert environments(lab) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere.whl"], "there is no /nowhere.whl; name a wheel of sockpair"),
        (["one.whl", "two.whl"], "one wheel at most"),
    ],
)
def test_wrong_arguments_are_told(lab: Lab, arguments: list[str], words: str) -> None:
    failed = lab.ask(INSTALL, *arguments)
    assert failed.returncode == 1
    assert words in failed.stderr


@pytest.mark.parametrize("script", [INSTALL, UNINSTALL])
def test_only_root_may(lab: Lab, script: str) -> None:
    failed = lab.ask("setpriv", "--reuid=4711", "--regid=4711", "--clear-groups", script)
    assert failed.returncode == 1
    assert "run it with sudo" in failed.stderr
