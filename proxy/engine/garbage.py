"""Python's garbage collector, kept out of the relay's way."""

from __future__ import annotations

import gc


def spare_collector() -> None:
    """Have the collector look seldom, and never at what the program is made of.

    Flows are freed by their reference counts; looking for circles among tens of thousands of live
    ones costs milliseconds, in which nothing is relayed.
    """
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
