"""The dashboards as Grafana reads them, and what stands in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from tests.e2e.program import ROOT

FOLDER: Final = ROOT / "grafana" / "dashboards"
FILES: Final = sorted(FOLDER.glob("*.json"))
NAMES: Final = [file.stem for file in FILES]

Json = dict[str, Any]


class Expression(NamedTuple):
    """An expression, and where it stands."""

    place: str
    text: str


def board(name: str) -> Json:
    found: Json = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def panels(name: str) -> Iterator[Json]:
    """The panels of a dashboard, also those under headings."""
    for each in board(name)["panels"]:
        yield from each.get("panels") or [] if each["type"] == "row" else [each]


def headings(name: str) -> list[str]:
    return [each["title"] for each in board(name)["panels"] if each["type"] == "row"]


def expressions(name: str) -> list[Expression]:
    """Every expression of a dashboard, of its annotations too."""
    found = [
        Expression(f"{name}: {panel['title']}: {target['refId']}", target["expr"])
        for panel in panels(name)
        for target in panel["targets"]
    ]
    marks = board(name)["annotations"]["list"]
    return [*found, *(Expression(f"{name}: {each['name']}", each["expr"]) for each in marks)]


def variables(name: str) -> dict[str, Json]:
    return {each["name"]: each for each in board(name)["templating"]["list"]}


def used_variables(text: str) -> set[str]:
    """The names of the variables in a text, but for Grafana's own."""
    found = set(re.findall(r"\$\{?([a-z_]\w*)", text))
    return {each for each in found if not each.startswith("__")}
