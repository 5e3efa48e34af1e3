"""Every line is what the client library would have written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as Seen
from prometheus_client.utils import floatToGoString

from proxy.core.histogram import CONNECT_BOUNDS, Exemplar, Histogram
from proxy.observe.catalogue import CATALOGUE, MetricEntry, MetricType
from proxy.observe.exposition import content_type, end, head, lines, number
from proxy.observe.metrics import SLICE_LINES, render
from proxy.observe.samples import Reading
from tests.observe.fake_relay import WALL, FakeRelay, FakeSteward

if TYPE_CHECKING:
    from proxy.observe.samples import Samples

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
FORMATS = ("", OPENMETRICS)

FAMILIES: dict[MetricType, Callable[..., CounterMetricFamily | GaugeMetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}


class One(Collector):
    """A single family, as the library's encoders want it."""

    def __init__(self, family: Metric) -> None:
        self.family = family

    def collect(self) -> Iterable[Metric]:
        return (self.family,)


def exemplar_of(seen: Exemplar | None) -> Seen | None:
    return None if seen is None else Seen({"flow": str(seen[0])}, seen[1], seen[2] + WALL)


def family_of(entry: MetricEntry, samples: Samples) -> Metric:
    if entry.type == "info":
        info = InfoMetricFamily(entry.name.removesuffix("_info"), entry.help)
        for labels, _ in samples:
            info.add_metric((), dict(zip(entry.labels, labels, strict=True)))
        return info
    if entry.type == "histogram":
        histogram = HistogramMetricFamily(entry.name, entry.help, labels=entry.labels)
        for labels, value in samples:
            assert isinstance(value, dict)
            bounds = [*(str(float(bound)) for bound in value["bounds"]), "+Inf"]
            counts, examples = accumulate(value["counts"]), map(exemplar_of, value["exemplars"])
            buckets = list(zip(bounds, counts, cast("list[Seen]", examples), strict=True))
            histogram.add_metric(labels, buckets, value["sum"])
        return histogram
    family = FAMILIES[entry.type](entry.name, entry.help, labels=entry.labels)
    for labels, value in samples:
        assert not isinstance(value, dict)
        family.add_metric(labels, value)
    return family


def by_library(entry: MetricEntry, samples: Samples, accept: str) -> str:
    encode, _ = choose_encoder(accept)
    text: str = encode(One(family_of(entry, samples))).decode()
    return text.removesuffix("# EOF\n")


def by_us(entry: MetricEntry, samples: Samples, accept: str) -> str:
    return head(entry, openmetrics=bool(accept)) + "".join(
        lines(entry, samples, WALL if accept else None)
    )


def entry_of(kind: MetricType, help: str = "Help.") -> MetricEntry:
    suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
    return MetricEntry(f"sockpair_it{suffix}", kind, ("web", "about"), help, lambda _: ())


def histogram_of(values: Iterable[float]) -> Histogram:
    histogram = Histogram(CONNECT_BOUNDS)
    for value in values:
        histogram.observe(value, 7, 3.5)
    return histogram


LABELS = st.tuples(st.text(), st.text())
VALUES = st.integers(0, 2**64) | st.floats(0, allow_infinity=False, allow_nan=False)


@pytest.mark.parametrize("accept", FORMATS)
@given(LABELS, VALUES, st.sampled_from(["counter", "gauge", "info"]), st.text())
def test_a_sample_is_what_the_library_writes(
    accept: str, labels: tuple[str, str], value: float, kind: MetricType, help: str
) -> None:
    entry = entry_of(kind, help)
    samples = [(labels, 1 if kind == "info" else value)]
    assert by_us(entry, samples, accept) == by_library(entry, samples, accept)


@pytest.mark.parametrize("accept", FORMATS)
@given(LABELS, st.lists(st.floats(0, 10)))
def test_a_histogram_is_what_the_library_writes(
    accept: str, labels: tuple[str, str], observed: list[float]
) -> None:
    entry, samples = entry_of("histogram"), [(labels, histogram_of(observed).snapshot())]
    assert by_us(entry, samples, accept) == by_library(entry, samples, accept)


@given(VALUES | st.integers(-(10**9), 10**9))
def test_a_number_is_written_as_the_library_does(value: float) -> None:
    assert number(value) == floatToGoString(value)


@pytest.mark.parametrize("accept", FORMATS)
async def test_the_whole_is_what_the_library_writes(accept: str) -> None:
    relay = FakeRelay()
    relay.open_tcp(original=5_000_000)
    relay.end(relay.open_tcp())
    counters, status = await relay.counters(), await relay.status()
    reading = Reading(
        counters,
        status,
        7,
        FakeSteward().last_reload(),
        WALL,
        FakeSteward().names(),
        FakeSteward().checks(),
    )
    entries = [each for each in CATALOGUE if each.name.startswith("sockpair")]  # the rest move
    expected = [by_library(each, each.read(reading), accept) for each in entries]
    text = b"".join(render(reading, accept)[1]).decode()
    assert text.startswith("".join(expected))
    assert text.endswith(end(openmetrics=bool(accept)))


async def test_a_slice_has_so_many_lines_at_most() -> None:
    relay = FakeRelay()
    reading = Reading(
        await relay.counters(),
        await relay.status(),
        0,
        FakeSteward().last_reload(),
        WALL,
        FakeSteward().names(),
        FakeSteward().checks(),
    )
    sizes = [text.count(b"\n") for text in render(reading, "")[1]]
    assert max(sizes) < SLICE_LINES + len(CATALOGUE)  # some pieces are two lines
    assert len(sizes) > 1


@pytest.mark.parametrize("escaping", ["underscores", "allow-utf-8", "dots", "values"])
def test_our_names_need_no_escaping_whatever_is_asked_for(escaping: str) -> None:
    for kind in ("application/openmetrics-text;version=1.0.0", "text/plain;version=1.0.0"):
        answered = content_type(f"{kind}; escaping={escaping};q=0.6,*/*;q=0.1")
        assert answered.startswith(kind.partition(";")[0])
        assert answered.endswith("escaping=underscores")
