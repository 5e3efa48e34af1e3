"""Words of HTTP on which the admin server and the command agree.

A file of its own, and without imports: the command loads nothing of the server, and so starts soon.
"""

from __future__ import annotations

from typing import Final

NDJSON: Final = "application/x-ndjson"
"""Lines of JSON: rows, or events."""

EVENTS: Final = "text/event-stream"
"""Events as a browser reads them."""

MATCHED: Final = "Sockpair-Matched"
"""The header that says how many flows match, where the rows are lines."""
