"""The unit files, as systemd-analyze reads them; nothing is booted for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.systemd.lab import ROOT

UNITS = [ROOT / "deploy" / "sockpair.service", ROOT / "deploy" / "sockpair.socket"]

pytestmark = pytest.mark.peers("systemd-analyze")


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_exposure_is_at_most_1_5() -> None:
    done = analyze("security", "--offline=true", "--threshold=15", "--no-pager", UNITS[0])
    assert done.returncode == 0, done.stdout


def test_every_line_is_understood() -> None:
    done = analyze("verify", "--recursive-errors=no", "--man=no", *UNITS)
    known = "Command /opt/sockpair/bin/sockpair is not executable"  # it is not installed here
    complaints = [line for line in done.stderr.splitlines() if known not in line]
    assert complaints == []
