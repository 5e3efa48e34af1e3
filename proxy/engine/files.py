"""Descriptors are a budget: flows take theirs from it, and what keeps the house going does not."""

from __future__ import annotations

import resource
from typing import Final

RESERVED_FILES: Final = 64
"""Descriptors that flows never take: admin, log, and what Python itself opens. Those of listeners
are set aside beside them, for there may be any number."""


class FileBudget:
    """Counts the descriptors that flows hold, below the process's limit less a reserve."""

    __slots__ = ("limit", "used")

    def __init__(self) -> None:
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limit = soft - RESERVED_FILES
        self.used = 0

    def set_aside(self, count: int) -> None:
        """Leave so many more, or less, to others than flows."""
        self.limit -= count

    def has(self, count: int) -> bool:
        """Whether so many more may be opened."""
        return self.used + count <= self.limit
