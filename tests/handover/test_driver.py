"""The driver tells the truth: of a sockpair left alone nothing, of a death what it has cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.handover import driver
from tests.handover.driver import Plan, drive


@pytest.mark.parametrize("workers", [1, 2])
async def test_nothing_is_wrong_with_sockpair(tmp_path: Path, workers: int) -> None:
    outcome = await drive(tmp_path, Plan(flows=60, datagram_flows=30, workers=workers))
    assert outcome.faults == []


async def test_a_worker_that_takes_its_flows_along_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "TOLD", 5.0)  # in vain
    plan = Plan(flows=20, datagram_flows=20, workers=2, kills=1, survive="restart", pause=0.5)
    outcome = await drive(tmp_path, plan)
    said = "\n".join(outcome.faults)
    assert "FIN, before we have said that it is the end" in said
    assert "now, before from" in said  # a datagram flow has another address to the endpoint
    assert "is not in the table" in said
    assert "; the metrics say" in said
