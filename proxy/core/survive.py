"""What the flows of a listener live on through, by the words of the configuration."""

from __future__ import annotations

from enum import StrEnum


class Survive(StrEnum):
    """What flows are to outlive; the more, the dearer.

    RESTART costs nothing while flows are relayed: they change their process when it leaves for
    another. CRASH needs their state to be known when it ends without a word.
    """

    RESTART = "restart"  # a restart or an upgrade: they are handed over
    CRASH = "crash"  # that, and the end of their process
    OFF = "off"  # neither: a process that leaves drains them
