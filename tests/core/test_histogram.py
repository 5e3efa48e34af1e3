"""Histograms of several places as one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.histogram import Exemplar, Histogram, HistogramSnapshot, add_histograms

BOUNDS = (1.0, 2.0)

observations = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(0, 9)))


def histogram_of(seen: list[tuple[int, int, int]]) -> HistogramSnapshot:
    histogram = Histogram(BOUNDS)
    for value, flow, now in sorted(seen, key=lambda each: each[2]):  # time does not go back
        histogram.observe(value, flow, now)
    return histogram.snapshot()


def when(exemplar: Exemplar | None) -> float | None:
    return None if exemplar is None else exemplar[2]


@given(observations, observations)
def test_a_sum_is_as_if_all_had_been_seen_in_one_place(
    here: list[tuple[int, int, int]], there: list[tuple[int, int, int]]
) -> None:
    both, whole = (
        add_histograms(histogram_of(here), histogram_of(there)),
        histogram_of(here + there),
    )
    assert (both["counts"], both["sum"]) == (whole["counts"], whole["sum"])
    assert [*map(when, both["exemplars"])] == [*map(when, whole["exemplars"])]
    assert both == add_histograms(histogram_of(there), histogram_of(here))


def test_a_snapshot_is_not_changed_any_more() -> None:
    histogram = Histogram(BOUNDS)
    before = histogram.snapshot()
    histogram.observe(1.0, 7, 3.0)
    assert before == Histogram(BOUNDS).snapshot()
    assert histogram.snapshot()["exemplars"] == [(7, 1.0, 3.0), None, None]
