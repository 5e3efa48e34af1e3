"""A short soak, as part of the gate; for a long one there is ``python -m tests.soak``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak.soak import soak


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [
        pytest.param(2, 1, id="brief"),
        pytest.param(1, 30, marks=pytest.mark.slow, id="one worker"),
        pytest.param(2, 30, marks=pytest.mark.slow, id="two workers"),
    ],
)
async def test_the_books_of_all_agree_after_mixed_traffic_reloads_and_kills(
    tmp_path: Path, workers: int, seconds: float, measured: Callable[[str], None]
) -> None:
    outcome = await soak(tmp_path, seconds, workers, seed=1)
    assert outcome.faults == [], outcome.report
    measured(f"\n{outcome.report}")
