"""The demo, as a first visitor starts it: it makes its environment, shows the table, and ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deploy" / "demo"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.skipif(
    not (ROOT / ".venv" / "stamp").exists(),
    reason="deploy/demo would install an environment here; tests/run has one",
)
def test_demo_ends_by_itself_with_a_summary(tmp_path: Path) -> None:
    done = run(DEMO, "--seconds", "3", cwd=tmp_path, PYTHON=sys.base_prefix + "/bin/python3")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said
    assert "installing" not in said, "the environment of tests/run serves the demo too"
    for word in ("nc ", "dig ", "curl ", "/metrics"):
        assert word in said, word


def test_demo_says_so_when_python_is_missing(tmp_path: Path) -> None:
    done = run(DEMO, cwd=tmp_path, PYTHON="python3.no-such")
    assert done.returncode == 1
    assert "apt-get install python3 python3-venv" in done.stderr


def test_demo_says_so_when_python_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "old python"
    old.write_text('#!/bin/sh\ncase $1 in --version) echo "Python 3.9.2" ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    done = run(DEMO, cwd=tmp_path, PYTHON=str(old))
    assert done.returncode == 1
    assert "Python 3.9.2 is too old: sockpair needs Python 3.11" in done.stderr


def test_demo_says_so_when_the_module_venv_is_missing(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\ncase $2 in *venv*) exit 1 ;; esac\nexit 0\n")
    bare.chmod(0o755)
    done = run(DEMO, cwd=tmp_path, PYTHON=str(bare))
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr
