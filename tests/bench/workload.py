"""What a workload is: who does it, what it needs, its lines in the report, its goals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tests.bench.measure import Figures, Stand
from tests.bench.peers import PLAIN, Peer, Settings


@dataclass(frozen=True)
class Goal:
    """What a figure should reach: a first mark, and a second one where there is more to win.

    Attributes:
        first: at most so much.
        second: what comes after it.
        to_peer: whether the marks are for the ratio to the best peer, or for the figure itself.

    """

    first: float
    second: float | None = None
    to_peer: bool = True


@dataclass(frozen=True)
class Figure:
    """A line of the report."""

    key: str
    label: str
    digits: int = 0
    goal: Goal | None = None


@dataclass(frozen=True)
class Part:
    """Something measured within a workload: its name, what it is, and its lines in the report."""

    name: str
    about: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Workload:
    """One measurement of one proxy.

    Attributes:
        name: for ``--only``.
        transport: ``tcp`` or ``udp``.
        origin: what kind of origin it needs.
        needs: commands that must be installed, and the packages that have them.
        parts: what it measures.
        measure: does it; the figures by part.
        alone: whether only sockpair can be measured.
        prompt: whether the proxy has real-time priority, so that a small share of its core which
            others take is not told as latency.
        settings: how sockpair is configured beyond the ordinary.

    """

    name: str
    transport: str
    origin: str
    needs: Mapping[str, str]
    parts: tuple[Part, ...]
    measure: Callable[[Stand], Awaitable[dict[str, Figures]]]
    alone: bool = False
    prompt: bool = False
    settings: Settings = PLAIN

    def suits(self, peer: Peer) -> bool:
        """Whether this proxy can be measured at all."""
        return self.transport in peer.transports and (peer.name == "sockpair" or not self.alone)


OTHERS: Final = Figure("others", "core busy with others, %")
