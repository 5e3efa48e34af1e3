"""The exposition formats: what a metric looks like in Prometheus text, and in OpenMetrics.

Both have a head for each family and a line for each sample, and differ in a few words of the head
and in the last line. They are written here because the client library's encoder takes 13
microseconds a sample, most of it to make objects and to sort labels, and this takes two. A test
holds every line to what the library would have written; its choice among formats is used here.

Source: prometheus.io/docs/instrumenting/exposition_formats; the OpenMetrics specification 1.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from proxy.core.histogram import Exemplar, HistogramSnapshot
    from proxy.observe.catalogue import MetricType
    from proxy.observe.samples import Labels, Samples

OPENMETRICS: Final = "application/openmetrics-text"

EXPONENT: Final = 1_000_000
"""From here on a number is written with one, as Go does it."""

LAYOUTS: Final = 64
"""Layouts of labels that are remembered: there are fewer in the catalogue."""


class Family(Protocol):
    """What the lines of a metric are made from; see the catalogue."""

    @property
    def name(self) -> str:
        """As it appears, with what the type adds."""
        ...

    @property
    def type(self) -> MetricType:
        """What Prometheus calls it."""
        ...

    @property
    def labels(self) -> Labels:
        """In the order of each sample's values."""
        ...

    @property
    def help(self) -> str:
        """One sentence for people."""
        ...


_ESCAPING: Final = re.compile(r";\s*escaping=[^;,]*")


def content_type(accept: str) -> str:
    """The type of the format that the scraper prefers.

    How it would have names escaped does not matter: ours are names in every format.

    Args:
        accept: the request's ``Accept`` header, or an empty string.

    """
    try:
        return choose_encoder(_ESCAPING.sub("", accept))[1]
    except (TypeError, ValueError):  # a version that is no number; everybody reads plain text
        return choose_encoder("")[1]


def end(*, openmetrics: bool) -> str:
    """What comes after the last family."""
    return "# EOF\n" if openmetrics else ""


def head(entry: Family, *, openmetrics: bool) -> str:
    """The two lines before the samples of a family.

    OpenMetrics calls a family by its name without what the type adds to its samples.
    """
    name, kind = entry.name, entry.type
    text = _escaped(entry.help) if openmetrics else _escaped_line(entry.help)
    if openmetrics and kind in _SUFFIXES:
        name = name.removesuffix(_SUFFIXES[kind])
    elif kind == "info":
        kind = "gauge"
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def lines(entry: Family, samples: Samples, wall_offset: float | None = None) -> Iterator[str]:
    """The lines of a family; a histogram has several a sample.

    Args:
        entry: of the catalogue.
        samples: of the entry.
        wall_offset: Unix time less monotonic time, in seconds, to write exemplars with, which
            only OpenMetrics has; else the lines are the same in both formats.

    """
    for labels, value in samples:
        if isinstance(value, dict):
            yield from _histogram(entry, labels, value, wall_offset)
        else:
            yield line(entry, labels, value)


def line(entry: Family, labels: Labels, value: float) -> str:
    """The line of a sample that is no histogram."""
    return f"{entry.name}{_layout(entry.labels).format(*map(_escaped, labels))} {number(value)}\n"


def number(value: float) -> str:
    """A finite value as Prometheus writes it; nearly all are small counts."""
    if type(value) is int and 0 <= value < EXPONENT:
        return f"{value}.0"
    text = repr(float(value))
    whole, dot, part = text.partition(".")
    if value < EXPONENT or not dot or len(whole) == 1:  # Python writes 1e+16 as Go does
        return text
    mantissa = f"{whole[0]}.{whole[1:]}{part}".rstrip("0.")
    return f"{mantissa}e+{len(whole) - 1:02d}"


def _histogram(
    entry: Family, labels: Labels, value: HistogramSnapshot, wall_offset: float | None
) -> Iterator[str]:
    name, escaped = entry.name, [*map(_escaped, labels)]
    bucket = _layout((*entry.labels, "le"))
    bounds = [*(str(float(bound)) for bound in value["bounds"]), "+Inf"]
    counts, count = accumulate(value["counts"]), 0
    for bound, count, seen in zip(bounds, counts, value["exemplars"], strict=True):
        example = "" if seen is None or wall_offset is None else _exemplar(seen, wall_offset)
        yield f"{name}_bucket{bucket.format(*escaped, bound)} {number(count)}{example}\n"
    rest = _layout(entry.labels).format(*escaped)
    yield f"{name}_count{rest} {number(count)}\n{name}_sum{rest} {number(value['sum'])}\n"


def _exemplar(seen: Exemplar, wall_offset: float) -> str:
    flow, value, now = seen
    return f' # {{flow="{flow}"}} {number(value)} {now + wall_offset}'


def _escaped(value: str) -> str:
    return _escaped_line(value).replace('"', r"\"")


def _escaped_line(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


@lru_cache(maxsize=LAYOUTS)
def _layout(labels: Labels) -> str:
    """Where the values of labels go, for ``str.format``: labels are in order of their names."""
    if not labels:
        return ""
    places = sorted((name, place) for place, name in enumerate(labels))
    return "{{" + ",".join(f'{name}="{{{place}}}"' for name, place in places) + "}}"


_SUFFIXES: Final = {"counter": "_total", "info": "_info"}
