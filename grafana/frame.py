"""What every dashboard has: its variables, the marks of reloads, and the way to the others.

``$job``, ``$instance``, ``$listener`` and ``$upstream`` choose; the same names mean the same in all
of them, and the links between them take the choice along.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    TimePicker,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    Panel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from grafana.panels import SOURCE
from grafana.queries import HOUSE, of

TAG: Final = "sockpair"

RELOADED: Final = f"1000 * {of('config_last_reload_success_timestamp_seconds', HOUSE)}"
"""Milliseconds; the value itself is the time, so that the mark stands where the reload was."""


def board(uid: str, title: str, about: str) -> Dashboard:
    """An empty dashboard."""
    return (
        Dashboard(f"sockpair: {title}")
        .uid(f"sockpair-{uid}")
        .description(about)
        .tags([TAG])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timepicker(TimePicker().refresh_intervals(["5s", "10s", "30s", "1m", "5m"]))
        .link(_others())
        .annotation(_reloads())
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(job("job", "Job", "sockpair_build_info"))
        .with_variable(names("instance", 'sockpair_build_info{job=~"$job"}'))
    )


def stack(built: Dashboard, heading: str, panels: Iterable[Builder[Panel]]) -> Dashboard:
    """A dashboard with one row more: its heading, and the panels under it."""
    built = built.with_row(Row(heading))
    for each in panels:
        built = built.with_panel(each)
    return built


def job(name: str, label: str, metric: str) -> QueryVariable:
    """A variable of one scrape job: those that have this metric."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({metric}, job)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def listeners() -> QueryVariable:
    """A variable of listeners."""
    return names("listener", of("flows_opened_total", HOUSE))


def upstreams() -> QueryVariable:
    """A variable of upstreams."""
    return names("upstream", of("endpoint_up", HOUSE))


def names(label: str, series: str) -> QueryVariable:
    """A variable of any number of the values of a label; at first of all of them."""
    everything = VariableOption(text="All", value="$__all", selected=True)
    return (
        QueryVariable(label)
        .label(label.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({series}, {label})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )


def _others() -> DashboardLink:
    return (
        DashboardLink("Other dashboards of sockpair")
        .type(DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )


def _reloads() -> AnnotationQuery:
    return (
        AnnotationQuery()
        .name("Reloads")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("blue")
        .expr(RELOADED)
        .use_value_for_time(True)
        .title_format("reloaded")
        .text_format("{{instance}}")
        .tag_keys("instance")
        .step("60s")
        .target(Dataquery().ref_id("A").expr(RELOADED).datasource(SOURCE).range())
    )
