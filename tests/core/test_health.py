"""What checks say of an endpoint, against a model that looks at the whole history."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.condition import Health
from proxy.core.health import JITTER, Checked, Result, Thresholds, Verdict, pause

PASSED, FAILED, SILENT = Verdict.PASSED, Verdict.FAILED, Verdict.SILENT
UP, DOWN, UNKNOWN = Health.UP, Health.DOWN, Health.UNKNOWN
MEANS = {PASSED: UP, FAILED: DOWN, SILENT: UNKNOWN}

VERDICTS = st.lists(st.sampled_from(Verdict), max_size=30)
THRESHOLDS = st.builds(Thresholds, st.integers(1, 4), st.integers(1, 4))


def checked(*verdicts: Verdict, rise: int = 2, fall: int = 3) -> Checked:
    state = Checked()
    for now, verdict in enumerate(verdicts):
        state.learn(Result(verdict, str(verdict)), float(now), 0.1, Thresholds(rise, fall))
    return state


def naive(history: list[Verdict], thresholds: Thresholds) -> Health:
    """The health after a history: looks back, each time, over all since the last change."""
    health, since = UNKNOWN, 0
    for end in range(1, len(history) + 1):
        past = history[since:end]
        verdict = past[-1]
        target = MEANS[verdict]
        heard = past if verdict is SILENT else [each for each in past if each is not SILENT]
        run = len(list(takewhile(verdict.__eq__, reversed(heard))))
        leaves_up = target is DOWN or (target is UNKNOWN and health is UP)
        needed = thresholds.fall if leaves_up else thresholds.rise
        if end == 1 or (target is not health and run >= needed):
            health, since = target, end
    return health


@given(VERDICTS, THRESHOLDS)
def test_it_is_as_the_whole_history_says(history: list[Verdict], thresholds: Thresholds) -> None:
    state = Checked()
    for now, verdict in enumerate(history):
        before = state.health
        changed = state.learn(Result(verdict, "why"), float(now), 0.0, thresholds)
        assert changed is (state.health is not before)
        assert state.health is naive(history[: now + 1], thresholds)
        if changed:
            assert state.since == now
    assert sum(state.verdicts.values()) == len(history)


@given(VERDICTS.filter(lambda history: PASSED not in history), THRESHOLDS)
def test_nothing_but_a_passed_check_makes_it_up(
    history: list[Verdict], thresholds: Thresholds
) -> None:
    assert naive(history, thresholds) is not UP
    assert checked(*history, rise=thresholds.rise, fall=thresholds.fall).health is not UP


@pytest.mark.parametrize("verdict", Verdict)
def test_the_first_result_decides(verdict: Verdict) -> None:
    state = checked(verdict, rise=9, fall=9)
    assert state.health is MEANS[verdict]
    assert state.since == 0.0


def test_before_the_first_result_nothing_is_known() -> None:
    state = Checked()
    assert (state.health, state.since, state.last) == (UNKNOWN, None, None)


@pytest.mark.parametrize(
    ("verdicts", "health"),
    [
        ([PASSED, FAILED, FAILED], UP),
        ([PASSED, FAILED, FAILED, FAILED], DOWN),
        ([PASSED, FAILED, FAILED, PASSED, FAILED, FAILED], UP),
        ([FAILED, PASSED], DOWN),
        ([FAILED, PASSED, PASSED], UP),
        ([FAILED, PASSED, FAILED, PASSED], DOWN),
        ([PASSED, SILENT, SILENT], UP),
        ([PASSED, SILENT, SILENT, SILENT], UNKNOWN),
        ([FAILED, SILENT], DOWN),
        ([FAILED, SILENT, SILENT], UNKNOWN),
        ([SILENT, FAILED, FAILED], UNKNOWN),
        ([SILENT, FAILED, FAILED, FAILED], DOWN),
        ([SILENT, PASSED], UNKNOWN),
        ([SILENT, PASSED, PASSED], UP),
        ([PASSED, FAILED, SILENT, FAILED, SILENT, FAILED], DOWN),
        ([PASSED, SILENT, SILENT, FAILED, SILENT], UP),
        ([PASSED, FAILED, FAILED, SILENT, PASSED, FAILED], UP),
    ],
)
def test_results_in_a_row(verdicts: list[Verdict], health: Health) -> None:
    assert checked(*verdicts).health is health


def test_the_last_result_is_remembered_with_its_time() -> None:
    state = checked(PASSED, FAILED)
    assert state.last == Result(FAILED, "failed")
    assert (state.last_at, state.took, state.since) == (1.0, 0.1, 0.0)
    assert state.verdicts == {PASSED: 1, FAILED: 1, SILENT: 0}


@given(st.floats(0.001, 1e6), st.floats(0, 1))
def test_checks_are_a_little_early_or_late(interval: float, dice: float) -> None:
    assert interval * (1 - JITTER) <= pause(interval, dice) <= interval * (1 + JITTER)
    assert pause(10.0, 0.0) == 9.0
    assert pause(10.0, 1.0) == 11.0
