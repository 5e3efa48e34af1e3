"""Proof that the pump turns.

A pump with nothing to do makes no rounds, so counting them proves nothing. This asks for one: an
event of our own goes through the pump's epoll, and only a round of the pump answers it. Whoever
waits for the answer goes through Trio, too; so it comes only if both are alive.
"""

from __future__ import annotations

import os
from select import EPOLLIN
from typing import TYPE_CHECKING, Final

import structlog
import trio

if TYPE_CHECKING:
    from proxy.engine.pump import Pump

NONE: Final = -1

log = structlog.get_logger()


class Pulse:
    """Asks a pump for signs of life. Owns an eventfd, from the first time it asks."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._fd = NONE
        self._turned = trio.Event()

    async def wait_turn(self) -> None:
        """Return when the pump has made a round that began after this call."""
        if self._fd == NONE:
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._pump.register(self._fd, self, EPOLLIN)
        turned = self._turned
        os.eventfd_write(self._fd, 1)
        await turned.wait()

    def ready(self, mask: int, now: float) -> None:
        """Answer all who wait: the pump has called."""
        os.eventfd_read(self._fd)
        self._turned.set()
        self._turned = trio.Event()

    def crashed(self, error: Exception, now: float) -> None:
        """Report a fault of ours; the next question may be answered."""
        log.error("pulse_crashed", exc_info=error)

    def close(self) -> None:
        """Ask no more."""
        if self._fd != NONE:
            os.close(self._fd)
            self._fd = NONE
