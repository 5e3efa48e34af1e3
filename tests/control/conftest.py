"""Closes the sockets of peers, for modules that ask for it: all their tests are async."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.engine import lab


@pytest.fixture
async def close_sockets() -> AsyncIterator[None]:
    """Close what the peers of a test opened and did not close."""
    yield
    for socket in lab.opened:
        socket.close()
    lab.opened.clear()
