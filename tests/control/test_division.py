"""What each worker of a crew gets: the parts add up to the whole."""

from __future__ import annotations

import pytest

from proxy.control.division import GENERATION, Division
from proxy.core.pace import Pace
from proxy.engine.specs import EVERYTHING, Change, DrainOrder

PACE = Pace(timeout=30.0, rate=100.0, spread=10.0)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_parts_of_the_bounds_add_up(size: int) -> None:
    division = Division(size, 1001, 10)
    change = Change(upstreams=(), pace=PACE, table_limit=1001, recent=10)
    parts = [division.part(change, index) for index in range(size)]
    assert sum(part.table_limit for part in parts) == 1001
    assert sum(part.recent for part in parts) == 10
    assert [division.settings(index).table_limit for index in range(size)] == [
        part.table_limit for part in parts
    ]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_workers_together_end_flows_at_the_rate_of_one(size: int) -> None:
    division = Division(size, 10, 10)
    change = Change(upstreams=(), pace=PACE, table_limit=10, recent=10)
    paces = [division.part(change, index).pace for index in range(size)]
    assert sum(pace.rate for pace in paces) == pytest.approx(PACE.rate)
    ordered = division.order(DrainOrder(EVERYTHING, PACE)).pace
    assert [ordered] * size == paces
    assert (ordered.timeout, ordered.spread) == (PACE.timeout, PACE.spread)


def test_ids_tell_the_worker_also_in_its_next_life() -> None:
    division = Division(3, 10, 10)
    lives = [division.settings(1) for _ in range(2)]
    assert [division.worker_of(life.first_id) for life in lives] == [1, 1]
    assert lives[1].first_id - lives[0].first_id == 3 * GENERATION
