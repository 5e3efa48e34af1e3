"""Standard descriptors that the parent had closed: a place for each, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.patience import PATIENCE

SHELL = "exec {python} -m proxy {arguments} {closing}"
WHERE_THEY_LEAD = """
import os, sys
from proxy.cli.standard import fill_standard_descriptors
fill_standard_descriptors()
print("lost", file=sys.stderr)
with open({answer!r}, "w") as answer:
    answer.write(" ".join(os.readlink(f"/proc/self/fd/{{fd}}") for fd in range(3)))
    answer.write(" " + repr(os.read(0, 1)))
    answer.write(" " + str([os.get_inheritable(fd) for fd in range(3)]))
"""


def run(command: str) -> tuple[int, str, str]:
    """Run a line of the shell, which closes descriptors before it executes; code and outputs."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def sockpair(arguments: str, closing: str) -> tuple[int, str, str]:
    return run(SHELL.format(python=sys.executable, arguments=arguments, closing=closing))


@pytest.mark.parametrize("arguments", ["schema", "check -c {file}", "demo --seconds 0"])
def test_a_closed_output_is_one_line(arguments: str, tmp_path: Path) -> None:
    file = tmp_path / "sockpair.toml"
    file.write_text(
        '[listener.a]\nlisten = "tcp://127.0.0.1:0"\nupstream = "a"\n'
        '[upstream.a]\nendpoints = ["127.0.0.1:9"]\n'
    )
    code, _, told = sockpair(arguments.format(file=file), ">&-")
    assert (code, told) == (1, "sockpair: standard output: Bad file descriptor\n")


def test_a_closed_error_is_no_reason_to_fail() -> None:
    code, written, _ = sockpair("schema", "2>&-")
    assert code == 0
    assert written.startswith("{")


def test_each_leads_nowhere_also_for_children(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    script = tmp_path / "script.py"
    script.write_text(WHERE_THEY_LEAD.format(answer=str(answer)))
    code, _, _ = run(f"PYTHONPATH={Path.cwd()} exec {sys.executable} {script} <&- >&- 2>&-")
    assert code == 0
    assert answer.read_text() == "/dev/null /dev/null /dev/null b'' [True, True, True]"
