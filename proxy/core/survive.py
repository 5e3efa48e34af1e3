"""What the flows of a listener live on through, and why some do not."""

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


class Stay(StrEnum):
    """Why a flow stays in its process when that leaves for another, and drains there."""

    SURVIVE = "survive"  # its listener has ``survive = "off"``
    MULTICAST = "multicast"  # the next process joins the groups of its listener with a new socket
    LEFT = "left"  # its listener, or the socket that its client sends to, takes no flows any more
