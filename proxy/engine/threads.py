"""Work that blocks, in a thread that no signal reaches.

Signals are the main thread's: it is where Python handles them, and where the loop runs that they
wake. The kernel gives a signal of the whole process to any thread that does not block it, and a
thread that Trio keeps for later is glad of one. Of most signals nothing is seen, but one that
kills lets the main thread go on for the time that ``faulthandler`` needs to write its story: a
process that hung, was stopped for instance, then takes in the clients that have waited meanwhile,
and resets them. So it must find the main thread, which then does nothing else (signal(7)).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import trio

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

EVERY_SIGNAL: Final = signal.valid_signals()


async def in_thread(work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Do work that may block in a thread, and wait for it.

    Args:
        work: What to do; it may not use Trio.
        arguments: What it is called with.

    Raises:
        Exception: whatever the work raises.

    """
    return await trio.to_thread.run_sync(_deaf, work, *arguments)


def _deaf(work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    signal.pthread_sigmask(signal.SIG_SETMASK, EVERY_SIGNAL)
    return work(*arguments)
