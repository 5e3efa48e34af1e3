"""The dashboards by themselves: what a person who imports them would stumble over."""

from __future__ import annotations

import re
from typing import Final

import pytest

from grafana.generate import BOARDS, written
from proxy.observe.catalogue import CATALOGUE
from proxy.observe.flow_metrics import FLOW_CATALOGUE, OMITTED
from tests.e2e.program import ROOT
from tests.grafana.boards import (
    FOLDER,
    NAMES,
    board,
    expressions,
    panels,
    used_variables,
    variables,
)

KNOWN: Final = {
    f"{entry.name}{suffix}"
    for entry in (*CATALOGUE, *FLOW_CATALOGUE, OMITTED)
    for suffix in ("", "_bucket", "_sum", "_count")
}


def test_the_files_are_what_the_program_writes() -> None:
    assert sorted(BOARDS) == NAMES
    for name in NAMES:
        assert (FOLDER / f"{name}.json").read_text() == written(name), (
            "python -m grafana.generate writes them anew"
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_shows(name: str) -> None:
    places = set()
    for panel in panels(name):
        assert panel["title"]
        assert panel["description"].endswith((".", "bytes")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(each["datasource"]["uid"] == "${datasource}" for each in panel["targets"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        places.add((place["x"], place["y"]))
    assert len(places) == len(list(panels(name))), "two panels at one place"


@pytest.mark.parametrize("name", NAMES)
def test_every_expression_asks_for_what_there_is(name: str) -> None:
    for place, text in expressions(name):
        metrics = set(re.findall(r"\b(?:sockpair|process)_[a-z_]+(?=\{)", text))
        assert metrics, place
        assert metrics <= KNOWN, place
        for window in re.findall(r"\[(\$?\w+)\]", text):
            assert window in {"$__rate_interval", "$__range"}, place


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_declared_and_chooses_something(name: str) -> None:
    declared = variables(name)
    assert list(declared)[:3] == ["datasource", "job", "instance"]
    asked = " ".join(text for _, text in expressions(name))
    asked += " ".join(str(each["query"]) for each in declared.values())
    assert used_variables(asked) <= declared.keys()
    unused = declared.keys() - used_variables(asked) - {"datasource"}
    assert not unused, "chosen for nothing"


def test_no_two_dashboards_are_one() -> None:
    assert len({board(name)["uid"] for name in NAMES}) == len(NAMES)
    assert all(board(name)["tags"] == ["sockpair"] for name in NAMES)


def test_every_metric_of_a_listener_is_shown_somewhere() -> None:
    asked = " ".join(text for name in NAMES for _, text in expressions(name))
    shown = set(re.findall(r"\bsockpair_[a-z_]+", asked))
    missing = {
        entry.name
        for entry in CATALOGUE
        if entry.name.startswith("sockpair_") and not shown & {entry.name, f"{entry.name}_bucket"}
    }
    assert missing <= NOT_SHOWN


NOT_SHOWN: Final = {
    # What the alerts say, or a person asks for by name.
    "sockpair_admin_connections_refused_total",
    "sockpair_config_last_reload_successful",
    "sockpair_recent_entries",
    "sockpair_endpoint_condition_timestamp_seconds",
    "sockpair_flows_waited_total",
    "sockpair_flows_wait_abandoned_total",
    # The same as on the other leg, unless datagrams are dropped, which is shown.
    "sockpair_endpoint_received_datagrams_total",
    "sockpair_endpoint_sent_datagrams_total",
}


def test_provisioning_is_where_the_readme_says() -> None:
    for file in ("datasources/sockpair.yml", "dashboards/sockpair.yml"):
        assert (ROOT / "grafana" / "provisioning" / file).is_file()
