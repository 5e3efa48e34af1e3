"""What tests of the house share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine import lab


@pytest.fixture(autouse=True)
def close_sockets() -> Iterator[None]:
    """Close what the peers of a test opened and did not close: outside Trio, which is over then.

    They would add up, and reach the numbers that ``test_inherited`` takes for its descriptors.
    """
    yield
    for socket in lab.opened:
        socket._sock.close()
    lab.opened.clear()
