"""What all tests share: one factor for patience, real programs, and measurements worth a look.

Timeouts in tests are deadlines for conditions, never durations to sit through. On a slow machine
one factor stretches them all: ``SOCKPAIR_TEST_SLOWNESS=5 tests/run``.

A measurement is printed after the summary and never asserted, because a busy machine would make a
liar of it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note a measurement, to be shown after the summary."""
    notes = request.config.stash.setdefault(MEASURED, [])
    name = request.node.name
    return lambda text: notes.append(f"{name}: {text}")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    notes = config.stash.get(MEASURED, [])
    if notes:
        terminalreporter.section("measured, not asserted")
        for note in notes:
            terminalreporter.line(note)
