"""Silence of a worker: who asks is not to wait for one that says nothing, while others answer.

A worker is *silent* when it has owed an answer for ``SILENT`` seconds: it is stopped, it spins, or
the machine is out of breath. Long before it is ended (``crew.HUNG``) the house answers without it:
with what was last known of it, or with the others' part, and says whose is missing. Orders that
change something go to a silent worker all the same, and wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

SILENT: Final = 1.0
"""Seconds. A worker with all hands full answers within a tenth of one; and a check that is asked by
keepalived or Prometheus waits for two or three at least."""


class Silence:
    """Whether a worker is silent, and who asks it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._asking: set[trio.CancelScope] = set()

    @property
    def seconds(self) -> float | None:
        """For how long it has owed an answer; None if it is not silent."""
        return None if self._since is None else round(trio.current_time() - self._since, 1)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask, but leave when it falls silent, or at once if it is."""
        with trio.CancelScope() as scope:
            if self._since is not None:
                scope.cancel()
            self._asking.add(scope)
            try:
                yield
            finally:
                self._asking.discard(scope)

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Be silent inside, and have been for ``SILENT`` seconds."""
        self._since = trio.current_time() - SILENT
        for scope in self._asking:
            scope.cancel()
        try:
            yield
        finally:
            self._since = None
