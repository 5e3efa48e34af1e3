"""From samples to medians, ratios and a table.

A sample is what one measurement of one proxy gave for one part of a workload. The median over the
rounds is what counts; the ratio is sockpair's median over the least of its peers' medians, so below
1 sockpair is the cheapest. The floor is no peer: where it was measured, its own ratio to the best
peer tells whether a goal can be reached, and sockpair's ratio to it what is left to win.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from tests.bench.measure import Figures
from tests.bench.peers import FLOOR
from tests.bench.workload import Figure, Goal, Part, Workload

SUBJECT: Final = "sockpair"

DISTURBED: Final = 5
"""Per cent of the proxy's core for others, from which a measurement is not to be relied on."""


@dataclass(frozen=True)
class Sample:
    """What one measurement gave."""

    round: int
    workload: str
    part: str
    proxy: str
    figures: Figures


@dataclass(frozen=True)
class Standing:
    """Where a figure of sockpair stands.

    Attributes:
        value: its median.
        best: the best peer's name and median; None where the goal is not a ratio, or without peers.
        compared: what the goal is about: the ratio, or the value itself; None if there is no ratio.
        goal: the goal.
        floor: the median of the cheapest relay in Python; None if it has not been measured.

    """

    value: float
    best: tuple[str, float] | None
    compared: float | None
    goal: Goal
    floor: float | None = None

    @property
    def floor_to_best(self) -> float | None:
        """What the ratio would be if sockpair cost no more than the floor."""
        return self.floor / self.best[1] if self.floor and self.best and self.best[1] else None

    @property
    def to_floor(self) -> float | None:
        """How many times the floor sockpair is."""
        return self.value / self.floor if self.floor else None

    @property
    def verdict(self) -> str:
        """Which mark has been reached, in words."""
        goal = self.goal
        if self.compared is None:
            return "no peer"
        if goal.second is not None and self.compared <= goal.second:
            return f"reached {goal.second:g}"
        return f"reached {goal.first:g}" if self.compared <= goal.first else "not reached"


def medians(
    samples: Sequence[Sample], workload: str, part: str, figure: str
) -> Mapping[str, float]:
    """The median of a figure by proxy, for those that have it."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        if (sample.workload, sample.part) == (workload, part) and figure in sample.figures:
            values.setdefault(sample.proxy, []).append(sample.figures[figure])
    return {proxy: median(found) for proxy, found in values.items()}


def standing(by_proxy: Mapping[str, float], goal: Goal) -> Standing | None:
    """Where sockpair stands; None if it has not been measured."""
    value = by_proxy.get(SUBJECT)
    if value is None:
        return None
    if not goal.to_peer:
        return Standing(value, None, value, goal)
    floor = by_proxy.get(FLOOR)
    peers = {proxy: found for proxy, found in by_proxy.items() if proxy not in {SUBJECT, FLOOR}}
    if not peers:
        return Standing(value, None, None, goal, floor)
    best = min(peers.items(), key=lambda item: item[1])
    return Standing(value, best, value / best[1] if best[1] else None, goal, floor)


def table(samples: Sequence[Sample], workloads: Sequence[Workload], proxies: Sequence[str]) -> str:
    """All medians of what was measured, then where sockpair stands to its goals; for people."""
    measured = {(sample.workload, sample.part) for sample in samples}
    lines = []
    for workload in workloads:
        for part in workload.parts:
            if (workload.name, part.name) in measured:
                lines += [*_part_lines(samples, workload, part, proxies), ""]
    lines += [*_goal_lines(samples, workloads), "", *_floor_lines(samples, workloads)]
    return "\n".join([*lines, disturbances(samples)])


def disturbances(samples: Sequence[Sample]) -> str:
    """How many measurements met other programs on the proxy's core, in a line."""
    shares = [sample.figures["others"] for sample in samples if "others" in sample.figures]
    disturbed = sum(share > DISTURBED for share in shares)
    return (
        f"others took more than {DISTURBED} % of the proxy's core "
        f"in {disturbed} of {len(shares)} measurements"
    )


def standings(
    samples: Sequence[Sample], workloads: Sequence[Workload]
) -> Iterator[tuple[str, Figure, Standing]]:
    """Every figure with a goal that has been measured, with its full name."""
    for workload in workloads:
        for part in workload.parts:
            for figure in part.figures:
                if figure.goal is None:
                    continue
                found = medians(samples, workload.name, part.name, figure.key)
                where = standing(found, figure.goal)
                if where is not None:
                    yield f"{_title(workload, part)}, {figure.label}", figure, where


def summary(samples: Sequence[Sample], workloads: Sequence[Workload]) -> list[dict[str, object]]:
    """The standings, for machines."""
    return [
        {
            "figure": name,
            "sockpair": where.value,
            "best_peer": where.best[0] if where.best else None,
            "best_value": where.best[1] if where.best else None,
            "compared": where.compared,
            "goal": [where.goal.first, where.goal.second],
            "floor": where.floor,
            "floor_to_best": where.floor_to_best,
            "to_floor": where.to_floor,
            "verdict": where.verdict,
        }
        for name, _, where in standings(samples, workloads)
    ]


def _part_lines(
    samples: Sequence[Sample], workload: Workload, part: Part, proxies: Sequence[str]
) -> Iterator[str]:
    heading = f"{_title(workload, part)}: {part.about}"
    yield heading
    yield f"  {'':32}" + "".join(f"{proxy:>14}" for proxy in proxies)
    for figure in (*part.figures, Figure("errors", "errors")):
        found = medians(samples, workload.name, part.name, figure.key)
        if figure.key == "errors" and not any(found.values()):
            continue
        cells = "".join(f"{_number(found.get(proxy), figure):>14}" for proxy in proxies)
        yield f"  {figure.label:32}{cells}"


def _goal_lines(samples: Sequence[Sample], workloads: Sequence[Workload]) -> Iterator[str]:
    yield f"{'goals':44}{'sockpair':>10}  {'best peer':20}{'ratio':>6}  {'goal':18}verdict"
    for name, figure, where in standings(samples, workloads):
        best = f"{_number(where.best[1], figure)} {where.best[0]}" if where.best else ""
        ratio = f"{where.compared:.2f}" if where.goal.to_peer and where.compared else ""
        yield (
            f"{name:44}{_number(where.value, figure):>10}  {best:20}{ratio:>6}  "
            f"{_goal(where.goal):18}{where.verdict}"
        )


def _floor_lines(samples: Sequence[Sample], workloads: Sequence[Workload]) -> Iterator[str]:
    """Where the floor is; nothing unless it has been measured beside a peer."""
    lines = [
        f"{name:44}{_number(where.floor, figure):>10}{where.floor_to_best:>18.2f}"
        f"{where.to_floor:>18.2f}  {_goal(where.goal)}"
        for name, figure, where in standings(samples, workloads)
        if where.floor_to_best and where.to_floor
    ]
    if lines:
        head = f"{'the floor':44}{'floor':>10}"
        yield f"{head}{'floor / best peer':>18}{'sockpair / floor':>18}  goal"
        yield from lines
        yield ""


def _goal(goal: Goal) -> str:
    then = f", then {goal.second:g}" if goal.second is not None else ""
    return f"<= {goal.first:g}{then}"


def _number(value: float | None, figure: Figure) -> str:
    return "-" if value is None else f"{value:,.{figure.digits}f}"


def _title(workload: Workload, part: Part) -> str:
    return f"{workload.name} {part.name}".strip()
