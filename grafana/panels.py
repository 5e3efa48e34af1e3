"""The kinds of panels that the dashboards are made of, and what all of them have in common.

Every panel has a title, a description that says what to make of it, a unit and expressions whose
rates are over ``$__rate_interval``. Sizes are in Grafana's grid: 24 wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    TableSortByFieldState,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    FieldColor,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.heatmap import HeatmapColorOptions
from grafana_foundation_sdk.builders.heatmap import Panel as HeatmapPanel
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.builders.statetimeline import Panel as StateTimelinePanel
from grafana_foundation_sdk.builders.table import Panel as TablePanel
from grafana_foundation_sdk.builders.timeseries import Panel as TimeseriesPanel
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery as AnyQuery
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Queries: TypeAlias = Mapping[str, str]
"""Expressions by the legend of their series, in the template language of Grafana."""

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
THIRD: Final = 8
HALF: Final = 12
WHOLE: Final = 24
TALL: Final = 8
LOW: Final = 4

GOOD, WARN, BAD = "green", "orange", "red"


def lines(
    title: str,
    about: str,
    unit: str,
    queries: Queries,
    *,
    span: int = HALF,
    stacked: bool = False,
    top: float | None = None,
) -> TimeseriesPanel:
    """Lines over time.

    Args:
        title: what is shown.
        about: what to make of it.
        unit: as Grafana calls it.
        queries: expressions by legend.
        span: the width.
        stacked: whether the series are parts of a whole.
        top: the end of the scale, where it is known.

    """
    panel = (
        TimeseriesPanel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(TALL)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .calcs(["mean", "max", "lastNotNull"])
            .show_legend(True)
        )
    )
    if stacked:
        panel = panel.stacking(StackingConfig().mode(StackingMode.NORMAL))
    if top is not None:
        panel = panel.max(top)
    return panel.targets(_targets(queries))


def number(
    title: str,
    about: str,
    unit: str,
    query: str,
    *,
    warn: float | None = None,
    bad: float | None = None,
    span: int = LOW,
) -> StatPanel:
    """One number, with its colour and a small line.

    Args:
        title: what is shown.
        about: what to make of it.
        unit: as Grafana calls it.
        query: the expression.
        warn: from here on it is orange.
        bad: from here on it is red.
        span: the width.

    """
    steps = [Threshold(value=None, color=GOOD)]
    steps += [Threshold(value=warn, color=WARN)] if warn is not None else []
    steps += [Threshold(value=bad, color=BAD)] if bad is not None else []
    return (
        StatPanel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .span(span)
        .height(LOW)
        .graph_mode(BigValueGraphMode.AREA)
        .color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .targets(_targets({"": query}))
    )


def heat(title: str, about: str, unit: str, query: str, *, span: int = HALF) -> HeatmapPanel:
    """A histogram over time; the expression gives the rates of its buckets, by ``le``."""
    target = _target("A", "{{le}}", query).format(PromQueryFormat.HEATMAP)
    options = HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    return (
        HeatmapPanel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .span(span)
        .height(TALL)
        .color(options)
        .targets([target])
    )


def levels(
    title: str, about: str, query: str, legend: str, *, span: int = WHOLE
) -> StateTimelinePanel:
    """What is up, and what is down, over time."""
    words = ValueMap(
        options={
            "0": ValueMappingResult(text="down", color=BAD, index=0),
            "1": ValueMappingResult(text="up", color=GOOD, index=1),
        }
    )
    return (
        StateTimelinePanel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit("short")
        .span(span)
        .height(TALL)
        .mappings([words])
        .targets(_targets({legend: query}))
    )


def table(
    title: str,
    about: str,
    queries: Sequence[tuple[str, str, str]],
    *,
    hidden: Sequence[str],
    renamed: Mapping[str, str],
    links: Mapping[str, tuple[str, str]],
    sort: str,
) -> TablePanel:
    """A table whose rows are joined from the labels of several expressions.

    Args:
        title: what is shown.
        about: what to make of it.
        queries: the column of its values, their unit and the expression, of each.
        hidden: columns that are not shown.
        renamed: the headings of labels.
        links: by heading, the title and the address of what a cell leads to.
        sort: the heading of the column by which it is sorted, the greatest first.

    """
    names = {f"Value #{chr(65 + place)}": name for place, (name, _, _) in enumerate(queries)}
    targets = [
        _target(chr(65 + place), "", expression).instant().format(PromQueryFormat.TABLE)
        for place, (_, _, expression) in enumerate(queries)
    ]
    organize = {
        "excludeByName": dict.fromkeys(("Time", "__name__", *hidden), True),
        "renameByName": {**names, **renamed},
    }
    panel = (
        TablePanel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit("short")
        .span(WHOLE)
        .height(20)
        .filterable(True)
        .targets(list(targets))
        .transformations(
            [
                DataTransformerConfig(id_val="merge", options={}),
                DataTransformerConfig(id_val="organize", options=organize),
            ]
        )
        .sort_by([TableSortByFieldState().display_name(sort).desc(True)])
    )
    for name, unit, _ in queries:
        panel = panel.override_by_name(name, [DynamicConfigValue(id_val="unit", value=unit)])
    for name, (words, url) in links.items():
        link = {"title": words, "url": url, "targetBlank": True}
        panel = panel.override_by_name(name, [DynamicConfigValue(id_val="links", value=[link])])
    return panel


def _targets(queries: Queries) -> list[Builder[AnyQuery]]:
    return [
        _target(chr(65 + place), legend, expression)
        for place, (legend, expression) in enumerate(queries.items())
    ]


def _target(ref_id: str, legend: str, expression: str) -> Dataquery:
    return (
        Dataquery()
        .ref_id(ref_id)
        .expr(" ".join(expression.split()))
        .legend_format(legend or "__auto")
        .range()
        .datasource(SOURCE)
    )
