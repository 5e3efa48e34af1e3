"""Every shell script of the checkout, as shellcheck sees it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.systemd.lab import ROOT


def scripts() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    return [file for file in files if file.is_file() and is_script(file)]


def is_script(file: Path) -> bool:
    if file.suffix == ".sh":
        return True
    with file.open("rb") as opened:
        first = opened.readline()
    return first.startswith(b"#!") and (b"bash" in first or b"/sh" in first)


def test_all_are_found() -> None:
    names = {str(file.relative_to(ROOT)) for file in scripts()}
    assert {"tests/run", "deploy/install", "deploy/places.sh", "deploy/debian/postinst"} <= names


@pytest.mark.peers("shellcheck")
@pytest.mark.parametrize("script", scripts(), ids=lambda script: str(script.relative_to(ROOT)))
def test_shellcheck_has_nothing_against_it(script: Path) -> None:
    done = subprocess.run(
        ["shellcheck", "--external-sources", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
