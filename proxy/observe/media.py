"""Words of HTTP on which the admin server and the command agree.

A file of its own, and without imports: the command loads nothing of the server, and so starts soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

NDJSON: Final = "application/x-ndjson"
"""Lines of JSON: rows, or events."""

EVENTS: Final = "text/event-stream"
"""Events as a browser reads them."""

MATCHED: Final = "Sockpair-Matched"
"""The header that says how many flows match, where the rows are lines."""

SILENT: Final = "Sockpair-Silent"
"""The header that names workers that do not answer, whose flows are missing among the lines."""


def does_not_answer(silent: Sequence[int]) -> str:
    """Name workers that do not."""
    if len(silent) == 1:
        return f"worker {silent[0]} does not answer"
    return f"workers {', '.join(map(str, silent))} do not answer"
