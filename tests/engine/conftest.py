from __future__ import annotations

import os
from collections.abc import Iterator
from signal import SIGKILL

import pytest

from tests.engine import dying, lab


@pytest.fixture(autouse=True)
def close_sockets() -> Iterator[None]:
    """Close what was opened for a test and is open yet, perhaps because it failed.

    This is no asynchronous fixture, for pytest-trio runs only those that a test names.
    """
    yield
    while lab.opened:
        fd = lab.opened.pop().detach()
        if fd != -1:
            os.close(fd)


@pytest.fixture(autouse=True)
def end_heirs() -> Iterator[None]:
    """End the processes that a failed test has left, which may stand still."""
    yield
    while dying.forked:
        pid = dying.forked.pop()
        os.kill(pid, SIGKILL)
        os.waitpid(pid, 0)
