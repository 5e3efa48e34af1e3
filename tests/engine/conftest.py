from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.engine import lab


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
