"""Where a run was made: the machine, the interpreter, the checkout."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from tests.bench.peers import ROOT


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "python": platform.python_version(),
    }


def cpu_model(cpuinfo: str) -> str:
    """The first model name in /proc/cpuinfo; not every architecture has one."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def commit() -> str | None:
    """The commit that is checked out, with "+" if files differ from it; None outside of git."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None
