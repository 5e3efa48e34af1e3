"""What all tests share: one factor for patience, real programs, and measurements worth a look.

Timeouts in tests are deadlines for conditions, never durations to sit through. On a slow machine
one factor stretches them all: ``SOCKPAIR_TEST_SLOWNESS=5 tests/run``.

A measurement is printed after the summary and never asserted, because a busy machine would make a
liar of it.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # a busy machine is no fault
settings.load_profile("unhurried")

PLACES: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"

MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note a measurement, to be shown after the summary."""
    notes = request.config.stash.setdefault(MEASURED, [])
    name = request.node.name
    return lambda text: notes.append(f"{name}: {text}")


def pytest_configure() -> None:
    """Let programs be interrupted that tests start, as from a terminal.

    What a shell starts in the background ignores SIGINT, and so does all that it starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose real programs are missing, or fail it where all of them must be there.

    This is decided before the test starts: inside one a skip would lose its reason in Trio.
    """
    for mark in item.iter_markers("peers"):
        missing = [name for name in mark.args if shutil.which(name, path=PLACES) is None]
        if missing:
            absent = pytest.fail if os.environ.get("SOCKPAIR_REQUIRE_PEERS") else pytest.skip
            absent(f"not installed: {', '.join(missing)}; as root tests/run installs it")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    notes = config.stash.get(MEASURED, [])
    if notes:
        terminalreporter.section("measured, not asserted")
        for note in notes:
            terminalreporter.line(note)
