"""Metrics: one reading of the relay as Prometheus text or OpenMetrics.

Strategy: the relay is read at once, and that reading is then written in slices of so many lines.
Whoever sends them gives way to the relay between them, so a scrape of many listeners never holds it
for longer than a turn, and the numbers are of one moment all the same.

Invariant: nothing is kept between two scrapes, and nothing has a ``_created`` twin.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from proxy.core.histogram import add_histograms
from proxy.observe.catalogue import CATALOGUE, MetricEntry
from proxy.observe.exposition import OPENMETRICS, content_type, end, head, lines
from proxy.observe.samples import Reading

if TYPE_CHECKING:
    from proxy.core.histogram import HistogramSnapshot
    from proxy.observe.samples import Labels, Samples

SLICE_LINES: Final = 10
"""Lines written before the relay may get its turn: a twentieth of a millisecond at most."""


def render(reading: Reading, accept: str) -> tuple[str, Iterator[bytes]]:
    """Write all metrics in the format that the scraper prefers.

    Args:
        reading: of everything, at one moment.
        accept: the request's ``Accept`` header, or an empty string.

    Returns:
        The content type, and the body in slices.

    """
    kind = content_type(accept)
    return kind, _slices(_lines(reading, openmetrics=kind.startswith(OPENMETRICS)))


def _slices(pieces: Iterator[str]) -> Iterator[bytes]:
    while text := "".join(islice(pieces, SLICE_LINES)):
        yield text.encode()


def _lines(reading: Reading, *, openmetrics: bool) -> Iterator[str]:
    has_twins = reading.has_twins
    for entry in CATALOGUE:
        yield head(entry, openmetrics=openmetrics)
        samples = _summed(entry, reading) if has_twins else entry.read(reading)
        yield from lines(entry, samples, reading.wall_offset if openmetrics else None)
    yield end(openmetrics=openmetrics)


def _summed(entry: MetricEntry, reading: Reading) -> Samples:
    """The samples of an entry, those with the same labels as one.

    A listener that a reload gave another transport has two sets of counters as long as flows of
    the former are left.
    """
    summed: dict[Labels, float | HistogramSnapshot] = {}
    for labels, value in entry.read(reading):
        summed[labels] = _sum(summed[labels], value) if labels in summed else value
    return summed.items()


def _sum(
    one: float | HistogramSnapshot, other: float | HistogramSnapshot
) -> float | HistogramSnapshot:
    if isinstance(one, dict) and isinstance(other, dict):
        return add_histograms(one, other)
    return _number(one) + _number(other)


def _number(value: float | HistogramSnapshot) -> float:
    assert not isinstance(value, dict), value
    return value
