"""sockpair changes its process under a crowd, and no flow notices.

For more there is ``python -m tests.handover``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.handover.driver import Plan, drive

CROWD = {"flows": 50, "datagram_flows": 50, "pause": 0.3}


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(**CROWD, upgrades=2), id="upgrades"),
        pytest.param(Plan(**CROWD, upgrades=1, workers=2), id="an-upgrade-of-two-workers"),
        pytest.param(Plan(**CROWD, restarts=2, workers=2), id="restarts-two-workers"),
        pytest.param(Plan(**CROWD, deaths=2, workers=2), id="deaths-of-the-supervisor"),
        pytest.param(Plan(upgrades=100), id="a-hundred-upgrades", marks=pytest.mark.slow),
        pytest.param(
            Plan(restarts=20, deaths=20, workers=2), id="forty-lives", marks=pytest.mark.slow
        ),
    ],
)
async def test_no_flow_notices_another_life(
    tmp_path: Path, plan: Plan, measured: Callable[[str], None]
) -> None:
    outcome = await drive(tmp_path, plan)
    measured(f"\n{outcome.report}")
    assert outcome.faults == []
