"""The sample configurations: they load, and the reference is complete and tells the truth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli

from proxy.config.load import Problem, load, parse
from proxy.config.model import Admin, Engine, Limits, Listener, Log, PerFlow, Upstream

FOLDER = Path(__file__).parents[2] / "config"
REFERENCE = FOLDER / "sockpair.toml"
TABLES = [Admin, Engine, Log, Listener, Limits, PerFlow, Upstream]

# Inventions of the reference; they have no default.
INVENTED = {"listen", "upstream", "endpoints"}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.toml")), ids=lambda file: file.stem)
def test_samples_load_without_a_warning(file: Path) -> None:
    warnings: list[Problem] = []
    load(file, warnings.append)
    assert warnings == []


def keys(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key below the tables that are named by the operator."""
    for name, value in document.items():
        yield name, value
        if isinstance(value, dict):
            yield from keys(value)


def model_keys() -> dict[str, Any]:
    return {name: field.default for table in TABLES for name, field in table.model_fields.items()}


def uncommented() -> str:
    """The reference with its examples in force."""
    return re.sub(r"(?m)^# (?=\w+ = )", "", REFERENCE.read_text())


def test_the_reference_names_every_key() -> None:
    parse(uncommented(), "uncommented")
    named = {name for name, _ in keys(tomli.loads(uncommented()))}
    assert set(model_keys()) <= named


def test_the_reference_equals_the_defaults() -> None:
    defaults = model_keys()
    for name, value in keys(tomli.loads(REFERENCE.read_text())):
        if name in defaults and not isinstance(value, dict) and name not in INVENTED:
            assert value == defaults[name], name


def test_what_the_reference_comments_out_has_no_default() -> None:
    active = {name for name, _ in keys(tomli.loads(REFERENCE.read_text()))}
    for name, default in model_keys().items():
        assert (name in active) == (default is not None), name


def test_every_key_of_the_reference_has_a_comment() -> None:
    for line in uncommented().splitlines():
        if re.match(r"\w+ = ", line) and line.split()[0] not in INVENTED:
            assert "  # " in line, line
