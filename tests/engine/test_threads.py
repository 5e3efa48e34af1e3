from __future__ import annotations

import signal
import threading

import pytest

from proxy.engine.threads import EVERY_SIGNAL, in_thread


def blocked() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


async def test_a_signal_of_the_process_is_left_to_the_main_thread() -> None:
    unblockable = {signal.SIGKILL, signal.SIGSTOP}
    assert await in_thread(blocked) == EVERY_SIGNAL - unblockable
    assert not blocked(), "here they arrive"


async def test_what_the_work_returns_or_raises_is_passed_on() -> None:
    name, size = await in_thread(
        lambda of, size: (threading.current_thread(), len(of) * size), "ab", 3
    )
    assert (name is not threading.current_thread(), size) == (True, 6)
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)
