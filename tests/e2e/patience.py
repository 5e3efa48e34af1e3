"""Waiting in tests: for a condition, with a deadline, never for a time."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, Final

import trio

SLOWNESS: Final = float(os.environ.get("SOCKPAIR_TEST_SLOWNESS", "1"))

PATIENCE: Final = 30 * SLOWNESS
"""Seconds until a condition that comes true in milliseconds is given up."""

LOOK_AGAIN: Final = 0.01
"""Seconds between two looks at a condition."""


async def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Look until the condition is true, and return what it returned.

    Args:
        condition: plain or async function; true when the wait is over.
        what: what is waited for, to be read when it does not come.
        seconds: until it is given up.

    """
    value = None
    with trio.move_on_after(seconds):
        while True:
            answer = condition()
            value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value
            await trio.sleep(LOOK_AGAIN)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}; last seen: {value!r}")
