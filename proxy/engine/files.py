"""Descriptors are a budget: flows take theirs from it, and what keeps the house going does not."""

from __future__ import annotations

import resource
from typing import Final

RESERVED_FILES: Final = 64
"""Descriptors that flows never take: listeners, admin, log, and what Python itself opens."""


class FileBudget:
    """Counts the descriptors that flows hold, below the process's limit less a reserve."""

    __slots__ = ("limit", "used")

    def __init__(self) -> None:
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limit = max(0, soft - RESERVED_FILES)
        self.used = 0

    def has(self, count: int) -> bool:
        """Whether so many more may be opened."""
        return self.used + count <= self.limit
