"""A standard output that is full, or that nobody reads: one line at most, and exit code 1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.patience import PATIENCE

FULL = "sockpair: standard output: No space left on device\n"
COMMANDS = [["schema"], ["--help"], ["check", "--help"], ["--version"], ["demo", "--seconds", "0"]]

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def run(arguments: list[str], stdout: int, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
        timeout=6 * PATIENCE,
        check=False,
    )
    return done.returncode, done.stderr


@needs_full
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_one_is_one_line(arguments: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        assert run(arguments, full.fileno(), PYTHONUNBUFFERED=unbuffered) == (1, FULL)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_pipe_that_is_closed_is_not_worth_a_word(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert run(arguments, writing) == (1, "")
    finally:
        os.close(writing)
